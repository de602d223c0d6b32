"""Runs a bundle's golden inputs on this machine and compares with the scores recorded where it was made."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundle import LAYOUT, Bundle, GoldenInput
from bundle.errors import GoldenMismatchError, InvalidManifestError
from service.engine.postprocess import activate
from service.engine.session import Session
from service.engine.session_options import CPU
from service.engine.tokenization import TextInput, Tokenizer, pad


@dataclass(frozen=True)
class GoldenReport:
    """What a golden check that passed has seen."""

    inputs: int
    largest_difference: float
    tolerance: float


def check_signature(bundle: Bundle, session: Session) -> None:
    """Raise InvalidManifestError unless the graph has the inputs and the output that the manifest names."""
    manifest = bundle.manifest
    if set(session.input_names) != set(manifest.input_names) or session.output_name != manifest.output_name:
        raise InvalidManifestError(
            f"{session.path}: the graph has inputs {sorted(session.input_names)} and output {session.output_name!r}, "
            f"but the manifest says {sorted(manifest.input_names)} and {manifest.output_name!r}"
        )


def check_golden(bundle: Bundle, variant_name: str, session: Session, tokenizer: Tokenizer) -> GoldenReport:
    """Classify every golden input alone and hold the scores against the recorded ones.

    Raises GoldenMismatchError when a score moved by more than the variant's tolerance, or when the top label changed
    although the recorded margin (highest score minus second) is larger than the tolerance; the errors of
    `Bundle.golden`; SessionError when the model cannot be run; KeyError when there is no such variant.
    """
    check_signature(bundle, session)
    tolerance = bundle.manifest.variant(variant_name).golden_tolerance
    largest = 0.0
    golden_inputs = bundle.golden()
    for number, golden in enumerate(golden_inputs, start=1):
        found = _scores(bundle, session, tokenizer, golden)
        expected = np.asarray(golden.scores[variant_name], dtype=np.float64).reshape(-1, found.shape[1])
        where = f"{bundle.path(LAYOUT.golden)}:{number}: variant {variant_name!r} on {session.provider}"
        if len(expected) != len(found):
            raise GoldenMismatchError(
                f"{where}: found {len(found)} tokens, expected {len(expected)}; the tokenizer is not the bundle's own"
            )
        for row, of_row in zip(found, expected, strict=True):
            largest = max(largest, _compare(where, bundle.manifest.labels, row, of_row, tolerance))
    return GoldenReport(len(golden_inputs), largest, tolerance)


def verify_variant(bundle: Bundle, variant_name: str) -> GoldenReport:
    """Load a variant, on the CPU where it may run there or else on the first provider it lists, and check its scores.

    Raises what `check_golden` raises, LabelMismatchError, SessionError and TokenizerLoadError.
    """
    variant = bundle.manifest.variant(variant_name)
    provider = CPU if CPU in variant.execution_providers else variant.execution_providers[0]
    session = Session(bundle.path(variant.file), provider=provider, labels=len(bundle.manifest.labels))
    tokenizer = Tokenizer(bundle.path(LAYOUT.tokenizer), bundle.manifest.max_length)
    return check_golden(bundle, variant_name, session, tokenizer)


def _scores(bundle: Bundle, session: Session, tokenizer: Tokenizer, golden: GoldenInput) -> NDArray[np.float64]:
    """Return scores (R, C): one row a text, or one a token (token classification)."""
    text: TextInput = golden.text if golden.text_pair is None else (golden.text, golden.text_pair)
    logits = session.run(pad(tokenizer.encode([text]), tokenizer.pad_id))  # (1, C) or (1, T, C)
    rows = logits.reshape(-1, logits.shape[-1])
    return np.asarray(activate(rows, bundle.manifest.activation, bundle.manifest.temperature), dtype=np.float64)


def _compare(
    where: str, labels: Sequence[str], found: NDArray[np.float64], expected: NDArray[np.float64], tolerance: float
) -> float:
    """Return the largest difference of one row's scores (C,), or raise GoldenMismatchError."""
    differences = np.abs(found - expected)
    worst = int(np.argmax(differences))  # a NaN counts as the largest
    if not differences[worst] <= tolerance:  # written so that a NaN fails too
        raise GoldenMismatchError(
            f"{where}: label {labels[worst]!r}: found score {found[worst]:.6f}, expected {expected[worst]:.6f} "
            f"within {tolerance:g}; this machine computes differently: choose another variant, or compress again here"
        )
    top_found, top_expected = int(np.argmax(found)), int(np.argmax(expected))
    if top_found != top_expected:
        margin = expected[top_expected] - np.partition(expected, -2)[-2]
        if margin > tolerance:
            raise GoldenMismatchError(
                f"{where}: found top label {labels[top_found]!r} ({found[top_found]:.6f}), expected "
                f"{labels[top_expected]!r} ({expected[top_expected]:.6f}), whose margin of {margin:.6f} is over the "
                f"tolerance of {tolerance:g}; this machine computes differently: choose another variant, or compress "
                "again here"
            )
    return float(differences[worst])
