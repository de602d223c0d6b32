"""Stage: what is fitted on the validation split, so that scores mean what they say."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from compress import distill, export, teacher
from compress.confidence import Abstention, Fitted, abstention, fit_temperature, tune_thresholds
from compress.measure import Answers, Subject, decide, ruler_of
from compress.outputs import rows_alone
from compress.recipe import Calibrate
from compress.rows import UNLABELED, FloatArray, IdArray
from compress.stage import Run, read_json, write_atomic
from compress.tasks import TaskSpec
from service.engine.postprocess import activate
from service.engine.tokenization import Tokenizer

CALIBRATION = "calibration.json"
TEACHER_ROWS, STUDENT_ROWS = "teacher.npy", "student.npy"


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write `calibration.json`, and the rows of teacher and student (R, C) on the validation split."""
    recipe, splits, spec = run.recipe, run.splits, run.spec
    sources = {
        "teacher": (run.folder("teacher") / teacher.TOKENIZER, export.TEACHER, TEACHER_ROWS),
        "student": (run.student / distill.TOKENIZER, export.STUDENT, STUDENT_ROWS),
    }
    fitted = {}
    for name, (tokenizer_path, model, target) in sources.items():
        tokenizer = Tokenizer(tokenizer_path, recipe.data.max_length)
        encoded = spec.encode(tokenizer, splits.validation, splits.labels)
        title = f"validating {name}"
        rows = rows_alone(run.folder("export") / model, encoded, tokenizer.pad_id, run.console, title)
        np.save(folder / target, rows)
        fitted[name] = fit(rows, encoded.targets, spec, recipe.calibrate)
    write_atomic(folder / CALIBRATION, json.dumps({name: asdict(value) for name, value in fitted.items()}, indent=2))
    own = fitted["student"]
    run.console.print(f"  temperature {own.temperature:.2f}" + _thresholds_text(own, splits.labels), soft_wrap=True)
    if recipe.calibrate.abstention_precision is not None:
        run.console.print(f"  abstention: {_abstention_text(own, recipe.calibrate.abstention_precision)}")
    return asdict(own)


def fit(rows: FloatArray, targets: IdArray, spec: TaskSpec, config: Calibrate) -> Fitted:
    """Fit what the recipe asks for on rows (R, C) with their targets; unlabeled rows are left out."""
    temperature = fit_temperature(rows, targets, spec.multi_label) if config.temperature else 1.0
    scores = activate(rows, spec.activation, temperature)
    thresholds = None
    if spec.multi_label and config.thresholds:
        thresholds = tuple(float(value) for value in tune_thresholds(scores, targets))
    stated = None
    if config.abstention_precision is not None and not spec.multi_label:
        labeled = targets != UNLABELED
        right = scores[labeled].argmax(axis=1) == targets[labeled]
        stated = abstention(scores[labeled].max(axis=1), right, config.abstention_precision)
    return Fitted(round(temperature, 6), thresholds, stated)


def read_fitted(folder: Path, model: str) -> Fitted:
    """Return what was fitted for `teacher` or `student`."""
    values = (read_json(folder / CALIBRATION) or {})[model]
    stated = values["abstention"]
    thresholds = None if values["thresholds"] is None else tuple(values["thresholds"])
    return Fitted(values["temperature"], thresholds, None if stated is None else Abstention(**stated))


def known_answers(run: Run, subject: Subject, rows_file: str) -> Answers:
    """Return what a model says of the validation split, from the rows that this stage kept."""
    return decide(ruler_of(run), subject, run.splits.validation, np.load(run.folder("calibrate") / rows_file))


def _thresholds_text(fitted: Fitted, labels: list[str]) -> str:
    if fitted.thresholds is None:
        return ""
    pairs = zip(labels, fitted.thresholds, strict=True)
    return "; thresholds " + ", ".join(f"{label} {value:.2f}" for label, value in pairs)


def _abstention_text(fitted: Fitted, wanted: float) -> str:
    if fitted.abstention is None:
        return f"no score reaches a precision of {wanted:.1%} on the validation split"
    found = fitted.abstention
    return (
        f"scores from {found.threshold:.3f} on are right {found.precision:.1%} of the time, {found.coverage:.1%} of all"
    )
