"""Stage: the same measurements for teacher, student and variants on the test split, with the code that serves."""

import json
from pathlib import Path
from typing import Any

from bundle.manifest import BaselineMetrics, StageMetrics, TargetOutcome
from compress import calibrate, distill, export, search, teacher, worth
from compress.evidence import gather, write_evidence
from compress.examples import Example
from compress.machine import describe_machine, load_average
from compress.measure import STUDENT, TEACHER, Subject, answers, measure, ruler_of
from compress.outcome import target_outcome
from compress.stage import Run, write_atomic
from service.engine.tokenization import Tokenizer

METRICS, BASELINES, TARGET = "metrics.json", "baselines.json", "target.json"
INT8, FP16 = "int8", "fp16"


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write `metrics.json`, a StageMetrics a model: teacher, student, variants; what else is told of them beside it."""
    recipe, splits = run.recipe, run.splits
    found = subjects(run)
    ruler = ruler_of(run)
    said = {name: answers(ruler, name, subject, splits.test) for name, subject in found.items()}
    mates = _enough(splits.test, [*splits.validation, *splits.train], recipe.evaluate.invariance_texts)
    rows = measure(ruler, found, said, splits.test, mates)
    write_atomic(folder / METRICS, json.dumps([row.model_dump() for row in rows], indent=2))
    evidence = {name: gather(ruler, found[name], said[name], said[TEACHER], splits.test) for name in found}
    write_evidence(folder, evidence)
    beaten = worth.judge(run, run.folder("baselines"), said[INT8]) if recipe.evaluate.baselines else []
    write_atomic(folder / BASELINES, json.dumps([row.model_dump() for row in beaten], indent=2))
    outcome = target_outcome(run, next(row for row in rows if row.stage == INT8), found[INT8])
    write_atomic(folder / TARGET, "null" if outcome is None else outcome.model_dump_json(indent=2))
    return {"machine": describe_machine(), "load_average": load_average(), "test_rows": len(splits.test)}


def subjects(run: Run) -> dict[str, Subject]:
    """Return the models of a run, the teacher first."""
    length, fitted_folder = run.recipe.data.max_length, run.folder("calibrate")
    of_teacher = Tokenizer(run.folder("teacher") / teacher.TOKENIZER, length)
    own = Tokenizer(run.student / distill.TOKENIZER, length)
    fitted = calibrate.read_fitted(fitted_folder, "student")
    found = {
        TEACHER: Subject(
            run.folder("export") / export.TEACHER, of_teacher, calibrate.read_fitted(fitted_folder, "teacher")
        ),
        STUDENT: Subject(run.folder("export") / export.STUDENT, own, fitted),
        INT8: Subject(run.folder("quantize") / search.MODEL, own, fitted),
    }
    half = run.folder("quantize") / search.HALF_MODEL
    if half.is_file():
        found[FP16] = Subject(half, own, fitted, timed=False)
    return found


def read_metrics(folder: Path) -> list[StageMetrics]:
    """Return what `run` wrote."""
    return [StageMetrics.model_validate(row) for row in json.loads((folder / METRICS).read_text(encoding="utf-8"))]


def read_baselines(folder: Path) -> list[BaselineMetrics]:
    """Return what `run` wrote of the baselines."""
    return [BaselineMetrics.model_validate(row) for row in json.loads((folder / BASELINES).read_text(encoding="utf-8"))]


def read_target(folder: Path) -> TargetOutcome | None:
    """Return what `run` wrote of the target, or None."""
    found = json.loads((folder / TARGET).read_text(encoding="utf-8"))
    return None if found is None else TargetOutcome.model_validate(found)


def _enough(test: list[Example], others: list[Example], number: int) -> list[Example]:
    return [*test, *others][: max(number, len(test))]
