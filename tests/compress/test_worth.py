"""Whether a student is worth its latency: it must be above each cheap model for certain."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from bundle.manifest import BaselineMetrics, Interval
from compress import evaluate, worth
from compress.counts import Counts
from compress.measure import answers, ruler_of
from compress.report import worth_lines
from compress.student import untaught_student
from tests.support.runs import Finished, reopened, stage_folder

BEFORE = ("teacher", "targets", "distill", "export", "calibrate", "quantize")


def baseline(name: str, score: float, gain: tuple[float, float, float], milliseconds: float | None = 1.0) -> object:
    return BaselineMetrics(
        name=name,
        score=Interval(value=score, low=score, high=score),
        student_gain=Interval(value=gain[0], low=gain[1], high=gain[2]),
        size_bytes=2_000_000,
        milliseconds_per_text=milliseconds,
    )


def test_a_student_that_is_above_all_of_them_for_certain() -> None:
    lines = worth_lines([baseline("TF-IDF", 0.8, (0.1, 0.02, 0.15)), baseline("static", 0.7, (0.2, 0.1, 0.3), None)])
    assert lines == [
        "TF-IDF: 80.0 [80.0–80.0], 2.0 MB, 1.00 ms a text; the student is above it by 10.0 [2.0–15.0] points",
        "static: 70.0 [70.0–70.0], 2.0 MB; the student is above it by 20.0 [10.0–30.0] points",
        "The student clearly beats every baseline",
    ]


@pytest.mark.parametrize("low", [0.0, -0.01])
def test_a_student_that_might_be_no_better_is_not_worth_its_latency(low: float) -> None:
    verdict = worth_lines([baseline("TF-IDF", 0.8, (0.1, low, 0.2)), baseline("static", 0.7, (0.2, 0.1, 0.3))])[-1]
    assert verdict.startswith("The student is NOT worth its latency: it does not clearly beat TF-IDF (")


def test_nothing_is_said_where_nothing_was_measured() -> None:
    assert worth_lines([]) == []


def write_baselines(folder: Path, right: dict[str, np.ndarray]) -> None:
    """What `worth.run` writes, of baselines that are right where `right` says."""
    summary = {}
    for number, (name, correct) in enumerate(right.items()):
        ones = np.ones((len(correct), 1), dtype=np.int64)
        arrays = {"hits": ones, "predicted": ones, "support": ones, "correct": correct, "decisions": ones[:, 0]}
        np.savez(folder / f"{number}.npz", **arrays)
        summary[name] = {"size_bytes": 1, "milliseconds_per_text": None, "names": ["all"]}
    (folder / "baselines.json").write_text(json.dumps(summary))


def test_the_gain_is_the_paired_difference(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    """A baseline that is right where the student is, but for some texts: the interval is that of these texts alone."""
    run = reopened(finished("single-label"), tmp_path / "run")
    texts = 200
    student = np.random.default_rng(0).integers(0, 2, size=texts)
    worse = student.copy()
    worse[np.flatnonzero(student)[:20]] = 0
    folder = tmp_path / "baselines"
    folder.mkdir()
    write_baselines(folder, {"worse": worse, "same": student})
    ones = np.ones((texts, 1), dtype=np.int64)
    own = answers(ruler_of(run), "int8", evaluate.subjects(run)["int8"], run.splits.test)
    counts = Counts(("all",), ones, ones, ones, student, ones[:, 0])
    found = worth.judge(run, folder, type(own)(own.rows, own.encoded, own.decisions, counts))
    assert found[0].student_gain.value == pytest.approx(0.1)
    assert 0.05 < found[0].student_gain.low < 0.1 < found[0].student_gain.high < 0.15
    assert found[1].student_gain == Interval(value=0, low=0, high=0)
    verdict = worth_lines(found)[-1]
    assert "does not clearly beat same" in verdict
    assert "worse" not in verdict


def test_the_student_without_distillation_starts_where_the_teacher_started(
    finished: Callable[[str], Finished], tmp_path: Path
) -> None:
    """Not from the fine-tuned teacher's layers, which know the answers; and it sees the labels only."""
    done = finished("single-label")
    run = reopened(done, tmp_path, BEFORE)
    fresh = untaught_student(run).state_dict()
    taught = load_file(run.folder("teacher") / "model/model.safetensors")
    before = load_file(done.recipe.parent / "teacher/model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    last = name.replace("layer.0", "layer.1")  # the student has the teacher's last layer
    assert np.array_equal(fresh[name], before[last])
    assert not np.array_equal(taught[last], before[last])


def test_a_killed_run_of_the_baselines_gives_the_same(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    done = finished("multi-label")
    run = reopened(done, tmp_path, BEFORE)
    summary = worth.run(run, stage_folder(run, "baselines"))
    assert list(summary) == [worth.TFIDF, worth.STATIC, worth.UNDISTILLED]
    for number in range(3):
        for source in (done.out / "work/baselines", run.folder("baselines")):
            assert (source / f"{number}.npz").is_file()
        ours, theirs = (np.load(f / f"{number}.npz") for f in (run.folder("baselines"), done.out / "work/baselines"))
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
    recorded = {row.name: row.score.value for row in done.bundle.manifest.baselines}
    rows = done.rows("test")
    assert set(recorded) == set(summary)
    assert all(0.5 < value <= 1 for value in recorded.values())
    assert len(rows) == len(np.load(run.folder("baselines") / "0.npz")["correct"])
