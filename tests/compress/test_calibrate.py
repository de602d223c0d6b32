"""What is fitted on the validation split, against scipy's optimizer and scikit-learn."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax
from sklearn.metrics import f1_score, log_loss

from bundle import Task, open_bundle
from compress import calibrate, distill, evaluate, export
from compress.confidence import Fitted
from compress.measure import STUDENT, TEACHER
from compress.recipe import Calibrate
from compress.rows import UNLABELED
from compress.stage import Run
from compress.tasks import SPECS
from service.engine.tokenization import Tokenizer
from tests.support.command import limbeck
from tests.support.runs import Finished, reopened, stage_folder

BEFORE = ("teacher", "targets", "distill", "export")


@pytest.mark.parametrize("task", Task)
def test_what_was_fitted_is_the_optimum_on_the_validation_split(
    finished: Callable[[str], Finished], task: Task, tmp_path: Path
) -> None:
    run = reopened(finished(task), tmp_path, BEFORE)
    summary = calibrate.run(run, stage_folder(run, "calibrate"))
    fitted = calibrate.read_fitted(run.folder("calibrate"), STUDENT)
    assert summary["temperature"] == fitted.temperature
    rows = np.load(run.folder("calibrate") / calibrate.STUDENT_ROWS).astype(np.float64)
    subject = evaluate.Subject(*_subject(run))
    encoded = run.spec.encode(subject.tokenizer, run.splits.validation, run.splits.labels)
    targets = encoded.targets
    assert len(rows) == len(targets)

    def loss(temperature: float) -> float:
        if task is Task.MULTI_LABEL:
            return log_loss(targets.ravel(), expit(rows / temperature).ravel())
        return -log_softmax(rows / temperature, axis=1)[np.arange(len(rows)), targets].mean()

    best = minimize_scalar(lambda x: loss(np.exp(x)), bounds=(-4.6, 4.6), method="bounded")
    if fitted.temperature != 1.0:  # 1 where every answer is right, which says nothing of the temperature
        assert loss(fitted.temperature) == pytest.approx(best.fun, abs=1e-4)
    if task is Task.MULTI_LABEL:
        scores = expit(rows / fitted.temperature)
        tuned, plain = (
            [f1_score(targets[:, c], scores[:, c] >= t[c]) for c in range(3)] for t in (fitted.thresholds, [0.5] * 3)
        )
        assert all(a >= b for a, b in zip(tuned, plain, strict=True))
    else:
        assert fitted.thresholds is None


def _subject(run: Run) -> tuple[Path, Tokenizer, Fitted]:
    tokenizer = Tokenizer(run.folder("distill") / distill.TOKENIZER, run.recipe.data.max_length)
    return run.folder("export") / export.STUDENT, tokenizer, Fitted()


def test_the_bundle_has_what_was_fitted_for_the_student(finished: Callable[[str], Finished]) -> None:
    done = finished("multi-label")
    values = json.loads((done.out / "work/calibrate/calibration.json").read_text())
    manifest = done.bundle.manifest
    assert manifest.temperature == values[STUDENT]["temperature"]
    assert list(manifest.thresholds.values()) == values[STUDENT]["thresholds"]
    assert values[TEACHER]["temperature"] != values[STUDENT]["temperature"]  # each has its own


def random_rows(count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    source = np.random.default_rng(0)
    truth = source.integers(0, 3, size=count)
    return (np.eye(3)[truth] * 2 + source.normal(size=(count, 3)) * 2).astype(np.float32), truth


def test_what_the_recipe_does_not_want_is_not_fitted() -> None:
    rows, truth = random_rows()
    fitted = calibrate.fit(rows, truth, SPECS[Task.SINGLE_LABEL], Calibrate(temperature=False))
    assert (fitted.temperature, fitted.thresholds, fitted.abstention) == (1.0, None, None)
    several = np.eye(3, dtype=np.int64)[truth]
    fitted = calibrate.fit(rows, several, SPECS[Task.MULTI_LABEL], Calibrate(thresholds=False))
    assert fitted.thresholds is None
    assert fitted.temperature != 1.0


@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.PAIR, Task.TOKEN_CLASSIFICATION])
def test_abstention_keeps_the_precision_it_states(task: Task) -> None:
    rows, truth = random_rows()
    labels = np.where(np.arange(len(truth)) % 7 == 0, UNLABELED, truth)  # rows without a label are left out
    fitted = calibrate.fit(rows, labels, SPECS[task], Calibrate(abstention_precision=0.9))
    assert fitted.abstention is not None
    known = labels != UNLABELED
    scores = np.exp(log_softmax(rows[known] / fitted.temperature, axis=1))
    kept = scores.max(axis=1) >= fitted.abstention.threshold
    right = scores.argmax(axis=1) == labels[known]
    assert right[kept].mean() == pytest.approx(fitted.abstention.precision)
    assert fitted.abstention.precision >= 0.9 > right.mean()
    assert kept.mean() == pytest.approx(fitted.abstention.coverage)


def test_abstention_stands_in_the_bundle_and_on_its_card(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    done = finished("single-label")
    run = reopened(done, tmp_path, BEFORE)
    result = limbeck("compress", done.recipe, "--out", run.out, "--set", "calibrate.abstention_precision=0.9")
    assert result.returncode == 0, result.stderr
    assert "abstention: scores from" in result.stdout
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert set(manifest.abstention) == {"threshold", "precision", "coverage"}
    assert manifest.abstention["precision"] >= 0.9
    assert "% of the time on the validation split" in (tmp_path / "bundle/README.md").read_text()


def test_a_precision_that_is_never_reached_is_said(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    source = np.random.default_rng(1)
    rows, truth = source.normal(size=(200, 2)).astype(np.float32), source.integers(0, 2, size=200)
    fitted = calibrate.fit(rows, truth, SPECS[Task.SINGLE_LABEL], Calibrate(abstention_precision=0.99))
    assert fitted.abstention is None
    assert calibrate._abstention_text(fitted, 0.99) == "no score reaches a precision of 99.0% on the validation split"
