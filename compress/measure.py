"""The same measurements for every model: quality, flips, batch invariance, size, latency."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from bundle.manifest import (
    Calibration,
    CalibrationBin,
    Interval,
    Latency,
    LatencyByBatch,
    Quality,
    SliceMetrics,
    SpeedupByBatch,
    StageMetrics,
)
from compress.confidence import Fitted, reliability
from compress.counts import Counts, subset
from compress.examples import Example
from compress.latency import Timed, measure_latency
from compress.metrics import (
    disagreement,
    interval,
    macro_f1,
    paired_drop,
    paired_retention,
    per_class,
    recall_drops,
)
from compress.outputs import batch_invariance, rows_alone
from compress.recipe import Evaluate
from compress.rows import Encoded, FloatArray
from compress.slices import find_slices
from compress.stage import Run
from compress.tasks import METRICS, Decisions, TaskSpec
from service.engine.postprocess import activate
from service.engine.tokenization import Tokenizer

TEACHER, STUDENT = "teacher", "student"


@dataclass(frozen=True)
class Subject:
    """A model to be measured."""

    path: Path
    tokenizer: Tokenizer
    fitted: Fitted
    timed: bool = True
    """Whether its latency on this machine's CPU says anything."""


@dataclass(frozen=True)
class Answers:
    """What a model says of the test split."""

    rows: FloatArray
    """(R, C) logits."""
    encoded: Encoded
    decisions: Decisions
    counts: Counts | None
    """None without true labels."""


@dataclass(frozen=True)
class Ruler:
    """What all models are measured with."""

    spec: TaskSpec
    labels: Sequence[str]
    config: Evaluate
    seed: int
    console: Console
    column: str | None = None
    """The name of the user's column for slices."""


def ruler_of(run: Run) -> Ruler:
    """Return what the models of a run are measured with."""
    recipe = run.recipe
    return Ruler(run.spec, run.splits.labels, recipe.evaluate, recipe.seed, run.console, recipe.data.columns.slice)


def answers(ruler: Ruler, name: str, subject: Subject, examples: Sequence[Example]) -> Answers:
    """Run every text alone and decide."""
    encoded = ruler.spec.encode(subject.tokenizer, examples, ruler.labels)
    rows = rows_alone(subject.path, encoded, subject.tokenizer.pad_id, ruler.console, f"evaluating {name}")
    return _decided(ruler, subject, examples, encoded, rows)


def decide(ruler: Ruler, subject: Subject, examples: Sequence[Example], rows: FloatArray) -> Answers:
    """Decide from rows (R, C) that were computed before."""
    return _decided(ruler, subject, examples, ruler.spec.encode(subject.tokenizer, examples, ruler.labels), rows)


def _decided(
    ruler: Ruler, subject: Subject, examples: Sequence[Example], encoded: Encoded, rows: FloatArray
) -> Answers:
    spec = ruler.spec
    decisions = spec.decide(rows, subject.fitted.threshold_array, subject.fitted.temperature)
    labeled = all(example.target is not None for example in examples)
    counts = spec.count(examples, encoded, decisions, ruler.labels) if labeled else None
    return Answers(rows, encoded, decisions, counts)


def measure(
    ruler: Ruler,
    subjects: Mapping[str, Subject],
    found: Mapping[str, Answers],
    examples: Sequence[Example],
    mates: Sequence[Example],
) -> list[StageMetrics]:
    """Return the metrics of each subject; the first is the teacher, and STUDENT the one that flips are counted from.

    `mates` are the texts whose scores must not depend on one another.
    """
    latency = _latency(ruler, subjects, examples)
    slices = _slices(ruler, found[TEACHER], examples) if found[TEACHER].counts is not None else {}
    rows = []
    for name, subject in subjects.items():
        own, reference = found[name], found[TEACHER if name == TEACHER else STUDENT]
        invariance = None
        if name != TEACHER and subject.timed:
            encodings = subject.tokenizer.encode([example.input for example in mates])
            title = f"batch invariance of {name}"
            pad_id = subject.tokenizer.pad_id
            invariance = batch_invariance(subject.path, encodings, pad_id, ruler.seed, ruler.console, title)
        rows.append(
            StageMetrics(
                stage=name,
                quality=_quality(ruler, found[TEACHER], own, subject.fitted, slices),
                onnx_bytes=subject.path.stat().st_size,
                latency_ms=LatencyByBatch(**_by_batch(latency[name])) if name in latency else None,
                speedup=_speedup(latency[TEACHER], latency[name]) if name in latency else None,
                label_flips=flips(ruler, reference, own),
                batch_invariance=invariance,
            )
        )
    return rows


def flips(ruler: Ruler, reference: Answers, own: Answers) -> Interval:
    """Return the share of decisions that differ between two models with the same tokenizer."""
    same = reference.decisions == own.decisions
    same = same.all(axis=1) if same.ndim > 1 else same
    decisions = np.diff(own.encoded.first)
    texts = np.repeat(np.arange(len(decisions)), decisions)
    correct = np.bincount(texts, weights=same, minlength=len(decisions)).astype(np.int64)
    empty = np.zeros((len(decisions), 0), dtype=np.int64)
    counts = Counts((), empty, empty, empty, correct, decisions.astype(np.int64))
    return interval(disagreement, counts, ruler.config.bootstrap_samples, ruler.seed)


def _quality(
    ruler: Ruler, teacher: Answers, own: Answers, fitted: Fitted, slices: Mapping[str, np.ndarray]
) -> Quality | None:
    if own.counts is None or teacher.counts is None:
        return None
    spec, samples, seed = ruler.spec, ruler.config.bootstrap_samples, ruler.seed
    main = METRICS[spec.metric]
    scores = {spec.metric: interval(main, own.counts, samples, seed)}
    for name, metric in (("accuracy", METRICS["accuracy"]), ("macro_f1", macro_f1)):
        scores.setdefault(name, interval(metric, own.counts, samples, seed))
    parts = {}
    for name, mask in slices.items():
        reference, part = subset(teacher.counts, mask), subset(own.counts, mask)
        drop = paired_drop(main, reference, part, samples, seed)
        parts[name] = SliceMetrics(texts=len(part), value=main(part), drop=drop)
    return Quality(
        scores=scores,
        retained=paired_retention(main, teacher.counts, own.counts, samples, seed),
        drop=paired_drop(main, teacher.counts, own.counts, samples, seed),
        recall_drops=recall_drops(teacher.counts, own.counts, samples, seed),
        per_class=per_class(own.counts),
        slices=parts,
        calibration=calibration(spec, own, fitted.temperature),
    )


def calibration(spec: TaskSpec, own: Answers, temperature: float) -> Calibration:
    """Return how far confidence is from being right where logits are divided by `temperature`."""
    found = reliability(activate(own.rows, spec.activation, temperature), own.encoded.targets, spec.multi_label)
    return Calibration(
        expected_error=found.expected_error, bins=tuple(CalibrationBin(**vars(part)) for part in found.bins)
    )


def _slices(ruler: Ruler, teacher: Answers, examples: Sequence[Example]) -> Mapping[str, np.ndarray]:
    columns = {ruler.column: [example.slice for example in examples]} if ruler.column else {}
    return find_slices([e.text for e in examples], [e.tokens for e in teacher.encoded.encodings], columns)


def _latency(
    ruler: Ruler, subjects: Mapping[str, Subject], examples: Sequence[Example]
) -> dict[str, dict[int, Latency]]:
    order = np.random.default_rng(ruler.seed).permutation(len(examples))[: ruler.config.latency_texts]
    texts = [examples[index].input for index in order]
    timed = {
        name: Timed(subject.path, subject.tokenizer.encode(texts), subject.tokenizer.pad_id)
        for name, subject in subjects.items()
        if subject.timed
    }
    return measure_latency(timed, ruler.config.latency_rounds, ruler.console)


def _by_batch(found: Mapping[int, Latency]) -> dict[str, Latency]:
    return {f"batch_{size}": latency for size, latency in found.items()}


def _speedup(reference: Mapping[int, Latency], own: Mapping[int, Latency]) -> SpeedupByBatch:
    return SpeedupByBatch(
        **{f"batch_{size}": reference[size].median_ms / latency.median_ms for size, latency in own.items()}
    )
