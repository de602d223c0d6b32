"""What ONNX models answer: rows of texts run alone, and whether batch mates change them."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from bundle.manifest import BatchInvariance
from compress.errors import EvaluationError
from compress.progress import track
from compress.rows import Encoded, FloatArray
from service.engine.session import Session
from service.engine.tokenization import Encoding, pad

_BATCHINGS = 4
_LARGEST_BATCH = 32


def rows_alone(path: Path, encoded: Encoded, pad_id: int, console: Console, title: str) -> FloatArray:
    """Return the rows (R, C) of every text run alone; raises EvaluationError when one is not finite."""
    session = Session(path)
    results: list[FloatArray] = []
    with track(console, title, len(encoded.encodings)) as advance:
        for index, encoding in enumerate(encoded.encodings):
            output = session.run(pad([encoding], pad_id))
            if encoded.positions is None:
                results.append(output)
            else:
                results.append(output[0, encoded.positions[encoded.first[index] : encoded.first[index + 1]]])
            advance(1, "")
    result = np.concatenate(results)
    if not math.isfinite(float(result.sum())):
        # argmax would quietly call NaN a label
        raise EvaluationError(f"{path}: the model gives logits that are not finite; training went wrong before this")
    return result


def batch_invariance(
    path: Path, encodings: Sequence[Encoding], pad_id: int, seed: int, console: Console | None = None, title: str = ""
) -> BatchInvariance:
    """Compare every text's logits alone with its logits in random batches of 1 to 32, bit by bit.

    Of a model that gives logits for tokens (B, T, C), those of a text's own tokens are compared. Progress goes to
    `console`, where one is given.
    """
    session = Session(path)
    random = np.random.default_rng(seed)
    worst, equal = 0.0, True
    with track(console or Console(quiet=True), title, len(encodings) * (1 + _BATCHINGS)) as advance:
        alone = []
        for encoding in encodings:
            alone.append(session.run(pad([encoding], pad_id))[0])
            advance(1, "")
        for _ in range(_BATCHINGS):
            order = random.permutation(len(encodings)).tolist()
            while order:
                size = int(random.integers(1, _LARGEST_BATCH + 1))
                members, order = order[:size], order[size:]
                outputs = session.run(pad([encodings[index] for index in members], pad_id))
                for index, output in zip(members, outputs, strict=True):
                    together = output if output.ndim == 1 else output[: encodings[index].tokens]
                    equal = equal and together.tobytes() == alone[index].tobytes()
                    worst = max(worst, float(np.abs(together - alone[index]).max()))
                advance(len(members), "")
    return BatchInvariance(texts=len(encodings), batchings=_BATCHINGS, max_difference=worst, bit_equal=equal)
