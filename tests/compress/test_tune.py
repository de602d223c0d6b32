"""The search over a recipe's keys: what it asks for, what it finds, and how it goes on after a kill."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compress import errors, train
from compress import tune as module
from compress.errors import RecipeError, TrainingError
from compress.stage import Run
from compress.tune import tune
from tests.support.command import limbeck, started
from tests.support.pruned import summary, write_pruned_recipe
from tests.support.runs import Finished

pytest.importorskip("optuna", reason="needs optuna: pip install 'limbeck[train]'")

QUIET = Console(quiet=True)
SPACE = {"distill.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}, "student.layers": [1, 2, [0]]}


@pytest.fixture
def single(finished: Callable[[str], Finished]) -> Finished:
    return finished("single-label")


def space(found: dict[str, Any]) -> str:
    return "tune=" + json.dumps({"space": found})


def searched(finished: Finished, out: Path, trials: int, found: dict[str, Any] = SPACE) -> list[dict[str, Any]]:
    """The trials of a search."""
    tune(finished.recipe, [space(found)], out, QUIET, trials)
    trials_: list[dict[str, Any]] = json.loads((out / module.REPORT).read_text())["trials"]
    return trials_


def fake_scores(
    monkeypatch: pytest.MonkeyPatch, score: Callable[[dict[str, str]], float | None]
) -> list[dict[str, str]]:
    """Let a formula say how good a student is; the values that were asked for."""
    asked = []

    def scored(recipe_path: Path, overrides: list[str], out: Path, console: Console, last: str) -> float | None:
        asked.append(dict(word.split("=", 1) for word in overrides[1:]))
        return score(asked[-1])

    monkeypatch.setattr(module, "_score", scored)
    return asked


def test_the_best_of_many_trials_is_near_the_optimum(
    single: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parabola over the logarithm: better than the same number of random draws would be on average."""
    import math

    fake_scores(monkeypatch, lambda v: -((math.log10(float(v["distill.learning_rate"])) + 3) ** 2))
    best = tune(single.recipe, [space(SPACE)], tmp_path, QUIET, 30)
    assert best["score"] > -0.01
    rate = float(dict(word.split("=") for word in best["set"])["distill.learning_rate"])
    assert 7e-4 < rate < 1.4e-3


@pytest.mark.slow
def test_how_a_student_is_pruned_is_searched_by_what_comes_out(tmp_path: Path) -> None:
    """The score is the pruned student's, as its stage says; teacher and distillation are those of the first trial."""
    recipe, out = write_pruned_recipe(tmp_path), tmp_path / "out"
    found = {"prune.final_epochs": [1, 4], "vocabulary.min_count": [1]}
    best = tune(recipe, [space(found), "prune.steps=1"], out, QUIET, 3)
    rows = json.loads((out / module.REPORT).read_text())["trials"]
    assert len({row["score"] for row in rows}) == 2
    last = summary(out, "prune")["steps"][-1]
    assert rows[-1]["score"] == pytest.approx(last["validation_score"])
    assert best["score"] == max(row["score"] for row in rows)
    assert not (out / "work/export").exists()
    unpruned = write_pruned_recipe(tmp_path / "unpruned", target=None, prune=None)
    with pytest.raises(RecipeError, match="prune says how target is reached; target is not given"):
        tune(unpruned, [space(found)], tmp_path / "none", QUIET, 1)


def test_measurements_that_are_none_stop_a_search_before_its_first_trial(tmp_path: Path) -> None:
    recipe = write_pruned_recipe(tmp_path)
    with pytest.raises(RecipeError, match=r"nowhere.json is not the costs.json of a finished run"):
        tune(recipe, [space(SPACE), "prune.measurements=nowhere.json"], tmp_path / "out", QUIET, 2)
    assert not (tmp_path / "out/work").exists()


def test_whole_numbers_and_lists_stay_what_they_are(
    single: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fake_scores(monkeypatch, lambda _: 0.5)
    searched(single, tmp_path, 12, {"distill.epochs": {"low": 1, "high": 3}, "student.layers": [1, [0, 1]]})
    assert {values["distill.epochs"] for values in asked} == {"1", "2", "3"}
    assert {values["student.layers"] for values in asked} == {"1", "[0, 1]"}


def test_an_interrupted_search_asks_for_the_same_values(
    single: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(values: dict[str, str]) -> float | None:
        rate = float(values["distill.learning_rate"])
        return None if rate > 5e-3 else rate  # some cannot be trained with

    asked = fake_scores(monkeypatch, score)
    whole = searched(single, tmp_path / "whole", 16)
    assert any(trial["score"] is None for trial in whole)
    before = len(asked)
    calls = 0

    def killed(values: dict[str, str]) -> float | None:
        nonlocal calls
        calls += 1
        if calls in (3, 9):
            raise KeyboardInterrupt
        return score(values)

    again = fake_scores(monkeypatch, killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            searched(single, tmp_path / "killed", 16)
    assert searched(single, tmp_path / "killed", 16) == whole
    assert len(again) == before + 2
    assert searched(single, tmp_path / "killed", 17)[:16] == whole  # more trials go on


def test_a_trial_teaches_a_student_and_keeps_the_teacher(single: Finished, tmp_path: Path) -> None:
    for stage in ("teacher", "targets"):
        shutil.copytree(single.out / "work" / stage, tmp_path / "work" / stage)
    found = {"distill.learning_rate": [1e-6, 2e-3], "distill.epochs": [2]}
    override = space(found)
    result = limbeck("tune", single.recipe, "--out", tmp_path, "--trials", 3, "--set", override)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("teacher: done earlier") == 3
    report = json.loads((tmp_path / module.REPORT).read_text())
    by_rate = {row["set"][0]: row["score"] for row in report["trials"]}
    assert report["best"]["score"] == max(by_rate.values())
    assert f"best validation score {report['best']['score']:.4f}" in result.stdout
    assert "--set distill.learning_rate=" in result.stdout
    assert not (tmp_path / "bundle").exists()
    again = limbeck("tune", single.recipe, "--out", tmp_path, "--trials", 3, "--set", override)
    assert "going on after 3 trials" in again.stdout
    assert "trial 4" not in again.stdout


@pytest.mark.slow
def test_a_killed_search_goes_on_in_its_trial(single: Finished, tmp_path: Path) -> None:
    for stage in ("teacher", "targets"):
        shutil.copytree(single.out / "work" / stage, tmp_path / "work" / stage)
    options = ("tune", single.recipe, "--out", tmp_path, "--trials", 2, "--set", "distill.checkpoint_seconds=0")
    arguments = (*options, "--set", space({"distill.learning_rate": {"low": 1e-3, "high": 3e-3}}))
    with started(*arguments) as running:
        running.wait_until(lambda: (tmp_path / "work/distill/checkpoints/float/checkpoint.pt").exists())
        running.send(signal.SIGKILL)
    result = limbeck(*arguments)
    assert result.returncode == 0, result.stderr
    assert "distilling: resuming at step" in result.stdout
    assert len(json.loads((tmp_path / module.REPORT).read_text())["trials"]) == 2


def test_values_that_do_not_go_together_are_given_up(single: Finished, tmp_path: Path) -> None:
    """A temperature belongs to one of the losses alone: each value passes by itself."""
    for stage in ("teacher", "targets"):
        shutil.copytree(single.out / "work" / stage, tmp_path / "work" / stage)
    found = {"distill.loss": ["mse", "kl"], "distill.temperature": [1.0, 4.0], "distill.epochs": [1]}
    overrides = [space(found), "distill.loss=kl"]
    best = tune(single.recipe, overrides, tmp_path, QUIET, 6)
    trials = json.loads((tmp_path / module.REPORT).read_text())["trials"]
    together = {tuple(row["set"][:2]): row["score"] for row in trials}
    assert together[('distill.loss="mse"', "distill.temperature=4.0")] is None
    assert together[tuple(best["set"][:2])] == best["score"]


@pytest.mark.parametrize("kind", errors.FAULTS)
def test_a_fault_is_no_trial(
    kind: type[Exception], single: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disk full, model not there: stop, and ask for the same values once that is mended."""
    tried: list[list[str]] = []

    def fail(run: Run, last: str) -> None:
        tried.append([str(run.recipe.distill.learning_rate)])
        raise kind("the disk is full")

    monkeypatch.setattr(module, "run_until", fail)
    for _ in range(2):
        with pytest.raises(kind, match="the disk is full"):
            searched(single, tmp_path, 3, {"distill.learning_rate": {"low": 1e-5, "high": 1e-2}})
    assert tried[0] == tried[1]
    assert not (tmp_path / module.REPORT).exists()


def test_a_checkpoint_on_a_full_disk_is_such_a_fault(tmp_path: Path) -> None:
    with pytest.raises(errors.UnsavedError, match="is the disk full"):
        train._save(tmp_path / "no such folder" / "checkpoint.pt", {})


def test_half_a_line_of_the_journal_is_cut_off(
    single: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_scores(monkeypatch, lambda values: float(values["distill.learning_rate"]))
    whole = searched(single, tmp_path, 3)
    journal = tmp_path / "work" / "tune.journal"
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 4, "wor')
    assert searched(single, tmp_path, 5)[:3] == whole


def test_a_student_that_is_its_teacher_gives_nothing_to_search_by(single: Finished, tmp_path: Path) -> None:
    for stage in ("teacher", "targets"):
        shutil.copytree(single.out / "work" / stage, tmp_path / "work" / stage)
    layers = json.loads((single.out / "work/teacher/model/config.json").read_text())["num_hidden_layers"]
    overrides = [space({"distill.epochs": [1, 2]}), f"student.layers={layers}", "target={size_mb: 0.1}"]
    with pytest.raises(errors.RecipeError, match="trials cannot be told apart; leave target out"):
        tune(single.recipe, overrides, tmp_path, QUIET, 2)


def test_a_search_in_which_nothing_can_be_trained(
    single: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_scores(monkeypatch, lambda _: None)
    with pytest.raises(TrainingError, match=r"no trial could be trained to its end; look at the ranges of tune\.space"):
        searched(single, tmp_path, 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (None, "no tune.space; expected keys to search over"),
        (space({"gate.max_quality_drop": [0.1, 0.2]}), "gate.max_quality_drop does not decide how good the student is"),
        (space({"distill.learning": [1]}), "distill.learning: unknown key; did you mean 'learning_rate'"),
        (space({"distill.epochs": {"low": 0, "high": 3}}), "distill.epochs"),
        (space({"distill.epochs": {"low": 3, "high": 3}}), "expected low below high"),
        (space({}), "tune.space"),
    ],
)
def test_a_space_that_cannot_be_searched(single: Finished, tmp_path: Path, override: str | None, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        tune(single.recipe, [override] if override else [], tmp_path, QUIET, 2)
    assert message in str(caught.value)
    assert not (tmp_path / "work").exists()
