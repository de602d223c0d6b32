"""What can go wrong in each stage: one message that says what to do, nothing half-written, and a run that goes on."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.command import Result, limbeck
from tests.support.models import save_tiny_model, write_tiny_recipe
from tests.support.rows import read_lines, write_lines
from tests.support.runs import STAGES, Finished
from tests.support.small_disk import can_mount, on_small_disk


def assert_one_message(result: Result, *parts: str, code: int = 1) -> None:
    """One error line on stderr, and no trace."""
    assert result.returncode == code, result.stdout + result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0], lines[0]


def run(recipe: Path, out: Path, *overrides: str, setup: Callable[[], None] | None = None) -> Result:
    options = [word for override in overrides for word in ("--set", override)]
    return limbeck("compress", recipe, "--out", out, *options, setup=setup)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["distil.epochs=1"], ["distil: unknown key; did you mean 'distill'?"]),
        (["data.folder=nowhere"], ["nowhere: no such folder"]),
        (["teacher.model=package:not_there_at_all"], ["is not installed: pip install"]),
        pytest.param(["teacher.model=./nowhere"], ["./nowhere: no such folder"], marks=pytest.mark.slow),
        (["data.max_length=200"], ["takes at most 40 tokens"]),
        (["student.layers=9"], ["student.layers: found 9, but the model has 2 layers"]),
        (["data.columns.label=class"], ["train.jsonl:1: no column 'class'; found text, label"]),
        pytest.param(["task=multi-label"], ["train.jsonl:1: no column 'labels'"], marks=pytest.mark.slow),
        pytest.param(["task=pair"], ["train.jsonl:1: no column 'text_pair'"], marks=pytest.mark.slow),
        pytest.param(["task=token-classification"], ["train.jsonl:1: no column 'tokens'"], marks=pytest.mark.slow),
        pytest.param(["data.min_rows_per_label=1000"], ["expected at least 1000"], marks=pytest.mark.slow),
        pytest.param(["data.columns.slice=town"], ["train.jsonl:1: no column 'town'"], marks=pytest.mark.slow),
        pytest.param(
            ["data.columns.slice=text"],
            ["column 'text' has", "slices need a column of at most 50"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: value[0] if "=" in value[0] else "",
)
def test_what_a_user_can_mend_is_one_message(
    finished: Callable[[str], Finished], tmp_path: Path, overrides: list[str], parts: list[str]
) -> None:
    assert_one_message(run(finished("single-label").recipe, tmp_path / "out", *overrides), *parts)
    assert not (tmp_path / "out/bundle").exists()


def broken(finished: Finished, folder: Path, change: Callable[[Path], None]) -> Result:
    """Run the recipe on changed data."""
    shutil.copytree(finished.recipe.parent / "data", folder / "data")
    change(folder / "data")
    return run(finished.recipe, folder / "out", f"data.folder={folder / 'data'}")


def _remove(folder: Path) -> None:
    (folder / "validation.jsonl").unlink()


def _empty(folder: Path) -> None:
    (folder / "test.jsonl").write_text("\n\n")


def _one_class(folder: Path) -> None:
    for name in ("train", "validation", "test"):
        rows = read_lines(folder / f"{name}.jsonl")
        write_lines(folder / f"{name}.jsonl", [row | {"label": "positive"} for row in rows])


def _other_labels(folder: Path) -> None:
    rows = read_lines(folder / "test.jsonl")
    write_lines(folder / "test.jsonl", [*rows[:4], rows[4] | {"label": "neutral"}])


def _half_a_line(folder: Path) -> None:
    path = folder / "train.jsonl"
    path.write_text(path.read_text()[:-20])


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_remove, "no validation file; expected validation with one of .jsonl, .csv, .parquet"),
        pytest.param(_empty, "test.jsonl: no rows", marks=pytest.mark.slow),
        pytest.param(
            _one_class, "train has the label positive only; expected at least two labels", marks=pytest.mark.slow
        ),
        (_other_labels, "test.jsonl:5: label 'neutral' is not among the training labels ['negative', 'positive']"),
        pytest.param(_half_a_line, "train.jsonl:240: not JSON", marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_data_that_cannot_be_used(
    finished: Callable[[str], Finished], tmp_path: Path, change: Callable[[Path], None], part: str
) -> None:
    assert_one_message(broken(finished("single-label"), tmp_path, change), part)


def test_a_teacher_with_other_labels(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "teacher", layers=2, labels=["joy", "anger"])
    options = [f"teacher.model={tmp_path / 'teacher'}", "teacher.fine_tune=null"]
    result = run(finished("single-label").recipe, tmp_path / "out", *options)
    assert_one_message(result, "its labels are ['joy', 'anger'], the data's are ['negative', 'positive']")


def test_a_teacher_whose_tokenizer_is_not_its_own(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    """The tokenizer knows more words than the model has embeddings for."""
    folder = save_tiny_model(tmp_path / "teacher", layers=2)
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"]["vocab"]["more"] = 99
    (folder / "tokenizer.json").write_text(json.dumps(document))
    result = run(finished("single-label").recipe, tmp_path / "out", f"teacher.model={folder}")
    assert_one_message(result, "its tokenizer gives ids up to 99, but the model has embeddings for 18")


def test_weights_that_are_damaged(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "teacher", layers=2)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    result = run(finished("single-label").recipe, tmp_path / "out", f"teacher.model={folder}")
    assert_one_message(result, f"{folder}: cannot be loaded for single-label")


def test_a_rate_that_is_too_high_stops_with_the_step(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    options = ["teacher.fine_tune.learning_rate=1e30", "teacher.fine_tune.max_grad_norm=1e30"]
    result = run(finished("single-label").recipe, tmp_path / "out", *options)
    assert_one_message(result, "fine-tuning: the loss became", "at step", "of epoch 1; lower learning_rate")
    assert not (tmp_path / "out/work/teacher/model").exists()


def test_a_student_that_is_lost_in_distillation(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    done = finished("single-label")
    shutil.copytree(done.out / "work/teacher", tmp_path / "out/work/teacher")
    result = run(done.recipe, tmp_path / "out", "distill.learning_rate=1e30", "distill.max_grad_norm=1e30")
    assert_one_message(result, "distilling: the loss became")
    assert "teacher: done earlier" in result.stdout


# A disk of a few pages. What a stage finds free is enough to begin and too little to end.
FREE_PAGES = {
    "teacher": 60,
    "targets": 2,
    "distill": 40,
    "export": 30,
    "calibrate": 2,
    "quantize": 8,
    "baselines": 20,
    "evaluate": 2,
    "package": 20,
}


@pytest.fixture(scope="module")
def mounts() -> None:
    if not can_mount():
        pytest.skip("needs mounts in a user namespace: unshare -rm")


FIRST_AND_LAST = (STAGES[0], STAGES[-1])


@pytest.mark.parametrize(
    "stage", [stage if stage in FIRST_AND_LAST else pytest.param(stage, marks=pytest.mark.slow) for stage in STAGES]
)
def test_a_full_disk_is_one_message_and_leaves_nothing_half_written(
    finished: Callable[[str], Finished], mounts: None, tmp_path: Path, stage: str
) -> None:
    done = finished("single-label")
    out, kept = tmp_path / "out", tmp_path / "kept.txt"
    out.mkdir()
    earlier = STAGES[: STAGES.index(stage)]
    setup = partial(on_small_disk, out, done.out / "work", earlier, FREE_PAGES[stage], kept)
    result = run(done.recipe, out, setup=setup)
    assert f"{stage}\n" in result.stdout, result.stderr  # it began
    assert_one_message(result)
    assert "No space left on device" in result.stderr or "is the disk full?" in result.stderr
    left = kept.read_text().splitlines()
    assert not [name for name in left if name.startswith(("bundle", ".bundle"))]
    assert f"work/{stage}/stage.json" not in left
    for before in earlier:
        assert f"work/{before}/stage.json" in left


@pytest.mark.slow
def test_no_place_for_the_weights_of_a_teacher(
    finished: Callable[[str], Finished], mounts: None, tmp_path: Path
) -> None:
    done = finished("single-label")
    model = save_tiny_model(tmp_path / "tuned", layers=2, labels=["negative", "positive"])
    (tmp_path / "out").mkdir()
    setup = partial(on_small_disk, tmp_path / "out", done.out / "work", (), 40, tmp_path / "kept.txt")
    result = run(done.recipe, tmp_path / "out", f"teacher.model={model}", "teacher.fine_tune=null", setup=setup)
    assert_one_message(result)
    assert "No space left on device" in result.stderr


@pytest.mark.slow
def test_a_run_goes_on_when_there_is_place_again(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    """The disk is full in the middle of the bundle: the next run makes it, of the same models."""
    done = finished("single-label")
    shutil.copytree(done.out / "work", tmp_path / "out/work")
    shutil.rmtree(tmp_path / "out/work/package")
    result = run(done.recipe, tmp_path / "out", setup=_no_place_in_bundles)
    assert_one_message(result, "No space left on device")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["work"]
    again = run(done.recipe, tmp_path / "out")
    assert again.returncode == 0, again.stderr
    int8 = "model.int8.onnx"
    assert (tmp_path / "out/bundle" / int8).read_bytes() == (done.out / "bundle" / int8).read_bytes()


def _no_place_in_bundles() -> None:
    """Let the disk be full when the second model of a bundle is written to it."""
    sync, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        if ".bundle." in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            calls += 1
            if calls == 4:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    os.fsync = full


@pytest.mark.parametrize("task", ["multi-label", "token-classification"])
def test_a_single_kind_of_answer_cannot_be_learned(tmp_path: Path, task: str) -> None:
    recipe = write_tiny_recipe(tmp_path, task)
    for name in ("train", "validation", "test"):
        path = tmp_path / "data" / f"{name}.jsonl"
        nothing = {"labels": []} if task == "multi-label" else None
        rows = [row | (nothing or {"tags": ["O"] * len(row["tokens"])}) for row in read_lines(path)]
        write_lines(path, rows)
    part = "no row with a label" if task == "multi-label" else "no word with a tag other than O"
    assert_one_message(run(recipe, tmp_path / "out"), part)
