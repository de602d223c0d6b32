"""A set of students from one run: targets in equal ratios, each cut from the one before."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from bundle import open_bundle
from compress.errors import RecipeError
from compress.pareto import Point, check_order, dominated, spread
from tests.support.command import limbeck, started
from tests.support.pruned import PARTS, STAGES, finish_pruned, summary, write_pruned_recipe


def test_targets_are_equal_ratios_apart_and_end_where_they_should() -> None:
    assert spread(2, 32, 4) == [4, 8, 16, 32]
    assert spread(40, 5, 3) == [20, 10, 5]
    assert spread(2.5, 7.77, 2) == [4.41, 7.77]


@pytest.mark.parametrize(
    ("targets", "kind"), [([12, 25], "speedup"), ([21.5, 10.7], "size_mb"), ([2, 1, 0.5], "latency_ms")]
)
def test_targets_that_are_given_get_stronger(targets: list[float], kind: str) -> None:
    check_order(targets, kind)
    with pytest.raises(RecipeError, match=f"expected {kind} targets above [01], each"):
        check_order(targets[::-1], kind)
    for wrong in ([targets[0], targets[0]], [0, *targets], [*targets, float("inf")], [float("nan")]):
        with pytest.raises(RecipeError):
            check_order(wrong, kind)


@pytest.mark.parametrize("given", ["1", "many", "2;3", "3,x"])
def test_what_is_neither_a_number_nor_targets_is_refused(given: str, tmp_path: Path) -> None:
    result = limbeck("compress", tmp_path / "recipe.yaml", "--pareto", given)
    assert result.returncode == 2
    assert repr(given) in result.stderr.replace("\n", "")


def point(quality: float, milliseconds: float) -> Point:
    return Point(1, 1, quality, 1, milliseconds, "")


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.9, 3), (0.8, 2), (0.7, 1)], [False, False, False]),
        ([(0.9, 3), (0.9, 2)], [True, False]),
        ([(0.9, 3), (0.95, 2), (0.7, 1)], [True, False, False]),
        ([(0.9, 3), (0.9, 3)], [False, False]),
    ],
)
def test_a_point_is_beaten_by_one_that_is_no_worse(points: list[tuple[float, float]], expected: list[bool]) -> None:
    assert dominated([point(*values) for values in points]) == expected


@pytest.mark.slow
def test_a_set_of_two_goes_on_after_a_kill(tmp_path: Path) -> None:
    # in steps finer than the two targets lie apart
    done = finish_pruned(tmp_path, target={"size_mb": 0.136}, prune=PARTS["prune"] | {"block": 8})
    out = tmp_path / "set"
    for stage in (*STAGES[:4], "baselines"):
        shutil.copytree(done.out / "work" / stage, out / "work" / stage)
    command = ["compress", done.recipe, "--out", out, "--pareto", 2]
    with started(*command) as running:
        running.wait_until((out / "pareto/2/work/prune/checkpoints/step-1/plan.json").exists)
        running.send(signal.SIGKILL)
        running.result()
    result = limbeck(*command)
    assert result.returncode == 0, result.stderr

    first, second = (open_bundle(out / "pareto" / number / "bundle").manifest for number in "12")
    assert first.target is not None
    assert second.target is not None
    assert second.target.wanted == 0.136
    assert 0.136 < first.target.wanted < summary(out / "pareto/1", "prune")["before"]
    assert first.metrics[2].onnx_bytes > second.metrics[2].onnx_bytes
    assert (first.version, second.version) == ("1-1", "1-2")
    # the second is cut from the first
    assert summary(out / "pareto/2", "prune")["before"] == summary(out / "pareto/1", "prune")["measured"]
    assert not (out / "pareto/1/work/teacher").exists()
    assert not (out / "bundle").exists()
    told = json.loads((out / "pareto/pareto.json").read_text())
    assert [row["bundle"] for row in told] == ["pareto/1/bundle", "pareto/2/bundle"]
    assert told[1]["onnx_bytes"] == second.metrics[2].onnx_bytes
    assert "students by target" in result.stdout

    before = {path: path.stat().st_mtime_ns for path in out.rglob("manifest.json")}
    assert limbeck(*command).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("manifest.json")} == before


def test_a_set_needs_a_target(tmp_path: Path) -> None:
    recipe = write_pruned_recipe(tmp_path, target=None, prune=None)
    result = limbeck("compress", recipe, "--out", tmp_path / "set", "--pareto", 2)
    assert result.returncode == 1
    assert "target: not given; --pareto needs the strongest target that is wanted" in result.stderr
    assert not (tmp_path / "set").exists()
