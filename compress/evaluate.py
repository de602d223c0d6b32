"""Stage five: the same measurements for teacher, student and INT8, with the code that serves."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bundle.manifest import BatchInvariance, LatencyByBatch, SpeedupByBatch, StageMetrics
from compress import export, quantize, teacher
from compress.data import Example
from compress.errors import EvaluationError
from compress.latency import measure_latency
from compress.machine import describe_machine, load_average
from compress.metrics import accuracy, bootstrap_interval, macro_f1, per_class
from compress.progress import track
from compress.stage import Run, write_atomic
from service.engine.session import Session
from service.engine.tokenization import Encoding, Tokenizer, pad

METRICS = "metrics.json"
TEACHER, STUDENT, INT8 = "teacher", "student", "int8"
_INVARIANCE_BATCHINGS = 4
_LARGEST_BATCH = 32


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write `metrics.json`: one StageMetrics a model, in the order teacher, student, INT8."""
    config, splits = run.recipe.evaluate, run.splits
    tokenizer = Tokenizer(run.folder("teacher") / teacher.TOKENIZER, run.recipe.data.max_length)
    models = {
        TEACHER: run.folder("export") / export.TEACHER,
        STUDENT: run.folder("export") / export.STUDENT,
        INT8: run.folder("quantize") / quantize.MODEL,
    }
    test = teacher.labeled_set(tokenizer, splits.test, splits.labels)
    logits = {name: _logits(path, test.encodings, tokenizer.pad_id, run.console, name) for name, path in models.items()}
    predicted = {name: values.argmax(axis=1).astype(np.int64) for name, values in logits.items()}
    timed = _sample(test.encodings, config.latency_texts, run.recipe.seed)
    latency = measure_latency(models, timed, tokenizer.pad_id, config.latency_rounds, run.console)
    mates = _enough(splits.test, [*splits.validation, *splits.train], config.invariance_texts)
    encodings = tokenizer.encode([example.input for example in mates])
    rows = []
    for name, path in models.items():
        invariance = None
        if name != TEACHER:
            invariance = batch_invariance(Session(path), encodings, tokenizer.pad_id, run.recipe.seed)
        classes = len(splits.labels)
        rows.append(
            StageMetrics(
                stage=name,
                accuracy=bootstrap_interval(
                    accuracy, test.labels, predicted[name], config.bootstrap_samples, run.recipe.seed
                ),
                macro_f1=bootstrap_interval(
                    lambda expected, found, n=classes: macro_f1(expected, found, n),  # type: ignore[misc]
                    test.labels,
                    predicted[name],
                    config.bootstrap_samples,
                    run.recipe.seed,
                ),
                per_class=per_class(test.labels, predicted[name], splits.labels),
                onnx_bytes=path.stat().st_size,
                latency_ms=latency[name],
                speedup=_speedup(latency[TEACHER], latency[name]),
                agreement=accuracy(predicted[TEACHER if name == TEACHER else STUDENT], predicted[name]),
                batch_invariance=invariance,
            )
        )
    write_atomic(folder / METRICS, json.dumps([row.model_dump() for row in rows], indent=2))
    return {"machine": describe_machine(), "load_average": load_average(), "test_rows": len(splits.test)}


def read_metrics(folder: Path) -> list[StageMetrics]:
    """Return what `run` wrote."""
    return [StageMetrics.model_validate(row) for row in json.loads((folder / METRICS).read_text(encoding="utf-8"))]


def batch_invariance(session: Session, encodings: Sequence[Encoding], pad_id: int, seed: int) -> BatchInvariance:
    """Compare every text's logits alone with its logits in random batches of 1 to 32, bit by bit."""
    alone = np.concatenate([session.run(pad([encoding], pad_id)) for encoding in encodings])
    random = np.random.default_rng(seed)
    worst, equal = 0.0, True
    for _ in range(_INVARIANCE_BATCHINGS):
        order = random.permutation(len(encodings)).tolist()
        while order:
            size = int(random.integers(1, _LARGEST_BATCH + 1))
            members, order = order[:size], order[size:]
            together = session.run(pad([encodings[index] for index in members], pad_id))
            equal = equal and together.tobytes() == alone[members].tobytes()
            worst = max(worst, float(np.abs(together - alone[members]).max()))
    return BatchInvariance(texts=len(encodings), batchings=_INVARIANCE_BATCHINGS, max_difference=worst, bit_equal=equal)


def _speedup(reference: LatencyByBatch, own: LatencyByBatch) -> SpeedupByBatch:
    return SpeedupByBatch(
        batch_1=reference.batch_1.median_ms / own.batch_1.median_ms,
        batch_32=reference.batch_32.median_ms / own.batch_32.median_ms,
    )


def _logits(path: Path, encodings: Sequence[Encoding], pad_id: int, console: Console, name: str) -> NDArray[np.float32]:
    """Return the logits (N, C) of every text run alone."""
    session = Session(path)
    results = []
    with track(console, f"evaluating {name}", len(encodings)) as advance:
        for encoding in encodings:
            results.append(session.run(pad([encoding], pad_id)))
            advance(1, "")
    result = np.concatenate(results)
    if not math.isfinite(float(result.sum())):
        # argmax would quietly call NaN a label
        raise EvaluationError(f"{path}: the model gives logits that are not finite; training went wrong before this")
    return result


def _sample(encodings: Sequence[Encoding], size: int, seed: int) -> list[Encoding]:
    order = np.random.default_rng(seed).permutation(len(encodings))[:size]
    return [encodings[index] for index in order]


def _enough(test: list[Example], others: list[Example], number: int) -> list[Example]:
    return [*test, *others][: max(number, len(test))]
