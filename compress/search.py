"""Stage: try the INT8 methods that the recipe names, and keep the fastest that holds the gate on validation.

A method that does not hold gets its most sensitive matrices back in float until it does. FP16 for CUDA is made beside
them; it has nothing to be chosen from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console

from compress import calibrate, distill, export, teacher
from compress.examples import Example
from compress.gate import Measured, check_gate, reasons
from compress.latency import Timed, measure_latency
from compress.measure import Answers, Ruler, Subject, answers, flips, ruler_of
from compress.metrics import paired_drop
from compress.precision import to_float16
from compress.progress import track
from compress.quantize import quantizable_activations, quantizable_matrices, quantize_model
from compress.quantize_static import calibrate as calibrate_ranges
from compress.quantize_weights import quantize_weights_only
from compress.recipe import Gate, Quantize
from compress.sensitivity import FallBack, QuantizeFunction, fall_back, measure_sensitivity
from compress.stage import Run
from compress.tasks import METRICS
from service.engine.tokenization import Encoding, Tokenizer

MODEL, HALF_MODEL = "model.int8.onnx", "model.fp16.onnx"
_SENSITIVITY_TEXTS = 128
_LATENCY_TEXTS = 64
_FLOAT = "FP32"
_CLEAR_GAIN = 0.05
"""A method that is less faster than this is not taken instead of an earlier one: noise must not choose a model."""


@dataclass(frozen=True)
class Held:
    """What a candidate is held against: the validation split, and what teacher and FP32 student say of it."""

    ruler: Ruler
    gate: Gate
    examples: Sequence[Example]
    teacher: Answers
    student: Answers
    subject: Subject
    """The FP32 student."""

    def verdict(self, path: Path, *, judge_size: bool = True) -> "Verdict":
        """Return how good a candidate is, and what it breaks of the limits that validation can judge."""
        subject = Subject(path, self.subject.tokenizer, self.subject.fitted)
        found = answers(self.ruler, path.stem, subject, self.examples)
        drop = None
        if found.counts is not None and self.teacher.counts is not None:
            main = METRICS[self.ruler.spec.metric]
            samples = self.ruler.config.bootstrap_samples
            drop = paired_drop(main, self.teacher.counts, found.counts, samples, self.ruler.seed)
        measured = Measured(
            variant=path.stem,
            dtype="float32",  # batch invariance is measured once, of the candidate that is kept
            metric=self.ruler.spec.metric,
            quality_drop=drop,
            recall_drops={},
            slice_drops={},
            label_flips=flips(self.ruler, self.student, found),
            batch_invariance=None,
            calibration_error=None,
            onnx_bytes=path.stat().st_size,
            latency_ms=None,
        )
        gate = self.gate if judge_size else self.gate.model_copy(update={"max_size_mb": None})
        return Verdict(tuple(reasons(check_gate(gate, measured))), self.quality_of(found))

    def quality_of(self, said: Answers) -> float | None:
        """Return the main metric of answers to the validation split; None without true labels."""
        return None if said.counts is None else self.ruler.spec.measure(said.counts)


@dataclass(frozen=True)
class Verdict:
    """What validation says of a candidate."""

    failures: tuple[str, ...]
    quality: float | None
    """The main metric; None without true labels."""


@dataclass(frozen=True)
class Candidate:
    """One method's model."""

    method: str
    path: Path
    kept_float: tuple[str, ...]
    failures: tuple[str, ...]
    quality: float | None = None
    onnx_bytes: int = 0


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write `model.int8.onnx` and, where the recipe wants it, `model.fp16.onnx`."""
    recipe, splits = run.recipe, run.splits
    tokenizer = Tokenizer(run.student / distill.TOKENIZER, recipe.data.max_length)
    fitted = calibrate.read_fitted(run.folder("calibrate"), "student")
    ruler = ruler_of(run)
    student = Subject(run.folder("export") / export.STUDENT, tokenizer, fitted)
    reference = Subject(
        run.folder("export") / export.TEACHER,
        Tokenizer(run.folder("teacher") / teacher.TOKENIZER, recipe.data.max_length),
        calibrate.read_fitted(run.folder("calibrate"), "teacher"),
    )
    held = Held(
        ruler,
        recipe.gate,
        splits.validation,
        calibrate.known_answers(run, reference, calibrate.TEACHER_ROWS),
        calibrate.known_answers(run, student, calibrate.STUDENT_ROWS),
        student,
    )
    texts = [example.input for example in splits.train[: recipe.quantize.calibration_texts]]
    return write_variants(folder, recipe.quantize, held, tokenizer.encode(texts))


def write_variants(folder: Path, config: Quantize, held: Held, calibration_texts: Sequence[Encoding]) -> dict[str, Any]:
    """Write the chosen INT8 model and the FP16 one to `folder`; return what was tried."""
    source, console = held.subject.path, held.ruler.console
    candidates = [_candidate(folder, method, config, held, calibration_texts) for method in config.candidates]
    times = _relative_times(candidates, held) if len(candidates) > 1 else {}
    chosen = _fastest(candidates, times)
    for candidate in candidates:
        console.print(f"  {_described(candidate, times, chosen=candidate is chosen)}", soft_wrap=True, markup=False)
    chosen.path.replace(folder / MODEL)
    for other in candidates:
        other.path.unlink(missing_ok=True)
    if config.fp16:
        onnx.save(to_float16(onnx.load(source)), folder / HALF_MODEL)
    return {
        "method": chosen.method,
        "kept_float": list(chosen.kept_float),
        "validation": {"teacher": held.quality_of(held.teacher), "student": held.quality_of(held.student)},
        "candidates": [
            {
                "method": c.method,
                "kept_float": len(c.kept_float),
                "failures": list(c.failures),
                "relative_time": times.get(c.method),
                "quality": c.quality,
                "onnx_bytes": c.onnx_bytes,
            }
            for c in candidates
        ],
    }


def quantizer(
    method: str,
    config: Quantize,
    float_path: Path,
    texts: Sequence[Encoding],
    pad_id: int,
    console: Console,
    scratch: Path,
) -> QuantizeFunction:
    """Return the function that makes a method's model from a float one and the names that stay float."""
    if method == "weight-only":
        return lambda model, kept: quantize_weights_only(
            model, embeddings=config.embeddings, weight_bits=config.weight_bits, keep_float=kept
        )
    ranges = None
    if method == "static":
        model = onnx.load(float_path)
        with track(console, "calibrating", 2 * len(texts)) as advance:
            ranges = calibrate_ranges(
                model, quantizable_activations(model), texts, pad_id, scratch=scratch, advance=advance
            )
    return lambda model, kept: quantize_model(model, config, keep_float=kept, activation_ranges=ranges)[0]


def _candidate(folder: Path, method: str, config: Quantize, held: Held, texts: Sequence[Encoding]) -> Candidate:
    source, console, tokenizer = held.subject.path, held.ruler.console, held.subject.tokenizer
    make = quantizer(method, config, source, texts, tokenizer.pad_id, console, folder)
    path = folder / f"{method}.onnx"
    onnx.save(make(onnx.load(source), frozenset()), path)
    verdict, kept = held.verdict(path), frozenset[str]()
    if verdict.failures and config.fall_back:
        told = "; ".join(verdict.failures)
        console.print(f"  {method}: does not hold on validation: {told}", soft_wrap=True, markup=False)
    if verdict.failures and config.fall_back and held.verdict(source, judge_size=False).failures:
        console.print("  the FP32 student does not hold either: no matrix is put back in float")
    elif verdict.failures and config.fall_back:
        found = _fallen_back(folder, make, held)
        if found.holds:  # else all of it would be float to no avail
            onnx.save(found.model, path)
            kept, verdict = found.kept_float, held.verdict(path)
    return Candidate(method, path, tuple(sorted(kept)), verdict.failures, verdict.quality, path.stat().st_size)


def _fastest(candidates: Sequence[Candidate], times: Mapping[str, float]) -> Candidate:
    """Return the fastest that holds (of those that do not: the first); an earlier one unless a later gains enough."""
    best: Candidate | None = None
    for candidate in candidates:
        if candidate.failures:
            continue
        if best is None or times[candidate.method] < (1 - _CLEAR_GAIN) * times[best.method]:
            best = candidate
    return best or candidates[0]


def _fallen_back(folder: Path, make: QuantizeFunction, held: Held) -> FallBack:
    tokenizer, model = held.subject.tokenizer, onnx.load(held.subject.path)
    encodings = tokenizer.encode([example.input for example in held.examples[:_SENSITIVITY_TEXTS]])
    with track(held.ruler.console, "measuring sensitivity", len(quantizable_matrices(model))) as advance:
        ranked = measure_sensitivity(model, make, encodings, tokenizer.pad_id, scratch=folder, advance=advance)
    return fall_back(model, make, ranked, lambda path: not held.verdict(path).failures, scratch=folder)


def _relative_times(candidates: Sequence[Candidate], held: Held) -> dict[str, float]:
    """Return each method's time of one text as a share of the FP32 student's: fastest rounds, all taking turns."""
    encodings = held.subject.tokenizer.encode([example.input for example in held.examples[:_LATENCY_TEXTS]])
    pad_id = held.subject.tokenizer.pad_id
    timed = {candidate.method: Timed(candidate.path, encodings, pad_id) for candidate in candidates}
    timed[_FLOAT] = Timed(held.subject.path, encodings, pad_id)
    found = measure_latency(timed, held.ruler.config.latency_rounds, held.ruler.console, sizes=(1,))
    return {c.method: found[c.method][1].fastest_ms / found[_FLOAT][1].fastest_ms for c in candidates}


def _described(candidate: Candidate, times: Mapping[str, float], *, chosen: bool) -> str:
    parts = [f"{times[candidate.method]:.2f} × the time of FP32"] if candidate.method in times else []
    parts += [f"{len(candidate.kept_float)} matrices back in float"] if candidate.kept_float else []
    verdict = "holds on validation" if not candidate.failures else f"does not hold: {'; '.join(candidate.failures)}"
    mark = " (chosen)" if chosen and times else ""
    return f"{candidate.method}: {'; '.join([*parts, verdict])}{mark}"
