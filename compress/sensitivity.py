"""Which matrices lose most in INT8, measured one at a time, and a model that keeps those in float.

How a quantised model is made is the caller's: a function from a copy of the float model and the names that stay float.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from compress.quantize import quantizable_matrices
from service.engine.session import Session
from service.engine.tokenization import Encoding, pad

QuantizeFunction = Callable[[onnx.ModelProto, frozenset[str]], onnx.ModelProto]
"""(a float model that may be used up, names of matrices that stay float) -> the quantised model."""

_BATCH = 16


@dataclass(frozen=True)
class FallBack:
    """A quantised model with as many matrices in float as its gate asked for."""

    model: onnx.ModelProto
    kept_float: frozenset[str]
    holds: bool
    """Whether the gate held for `model`; False means that it failed even with every matrix in float."""


def measure_sensitivity(
    model: onnx.ModelProto,
    quantize: QuantizeFunction,
    encodings: Sequence[Encoding],
    pad_id: int,
    *,
    scratch: Path | None = None,
    advance: Callable[[int, str], None] | None = None,
) -> list[tuple[str, float]]:
    """Return (matrix, divergence), most sensitive first: what quantising this matrix alone does to the outputs.

    The divergence is the mean squared difference of the logits, (B, C) or (B, T, C), from those of a model whose
    matrices are all float (its embeddings are quantised if `quantize` does so); of (B, T, C) only real tokens count.
    `advance(1, name)` is called after each matrix. The argument is not changed.
    """
    names = quantizable_matrices(model)
    ordered = sorted(encodings, key=lambda encoding: encoding.tokens)
    batches = [ordered[i : i + _BATCH] for i in range(0, len(ordered), _BATCH)]
    everything = frozenset(names)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "candidate.onnx"

        def outputs(kept: frozenset[str]) -> list[NDArray[np.float32]]:
            onnx.save(quantize(_copy(model), kept), path)
            return _outputs(Session(path), batches, pad_id)

        reference = outputs(everything)
        found = []
        for name in names:
            found.append((name, divergence(reference, outputs(everything - {name}))))
            if advance is not None:
                advance(1, name)
    return sorted(found, key=lambda pair: -pair[1])


def divergence(expected: Sequence[NDArray[np.float32]], found: Sequence[NDArray[np.float32]]) -> float:
    """Return the mean squared difference over all values of two lists of arrays of the same shapes."""
    total = sum(float(((a.astype(np.float64) - b) ** 2).sum()) for a, b in zip(expected, found, strict=True))
    return total / sum(array.size for array in expected)


def fall_back(
    model: onnx.ModelProto,
    quantize: QuantizeFunction,
    sensitivity: Sequence[tuple[str, float]],
    holds: Callable[[Path], bool],
    *,
    scratch: Path | None = None,
) -> FallBack:
    """Return the model with the fewest matrices back in float for which `holds` is true, most sensitive first.

    `sensitivity` is what `measure_sensitivity` gave; `holds` is given a file that is gone when it returns. The number
    is found by bisection, in about log₂ of the number of matrices' tries: the result was itself tried and held, and
    the same with one matrix less in float was tried and failed. The argument is not changed.
    """
    ranked = [name for name, _ in sensitivity]
    with tempfile.TemporaryDirectory(dir=scratch) as folder:

        def attempt(count: int) -> FallBack:
            kept = frozenset(ranked[:count])
            candidate = quantize(_copy(model), kept)
            path = Path(folder) / f"candidate-{count}.onnx"
            onnx.save(candidate, path)
            held = holds(path)
            path.unlink()
            return FallBack(candidate, kept, held)

        best = attempt(0)
        if best.holds or not ranked:
            return best
        best = attempt(len(ranked))
        if not best.holds:
            return best
        failed, held = 0, len(ranked)
        while held - failed > 1:
            middle = (failed + held) // 2
            tried = attempt(middle)
            if tried.holds:
                best, held = tried, middle
            else:
                failed = middle
    return best


def _outputs(session: Session, batches: Sequence[Sequence[Encoding]], pad_id: int) -> list[NDArray[np.float32]]:
    """Return logits batch by batch: (B, C), or (tokens, C) of the real tokens where the model gives (B, T, C)."""
    found = []
    for batch in batches:
        arrays = pad(batch, pad_id)
        logits = session.run(arrays)
        found.append(logits[arrays["attention_mask"] == 1] if logits.ndim == 3 else logits)
    return found


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    return twin
