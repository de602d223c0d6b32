"""What the teacher says of the transfer set, against torch's own forward; and what a kill leaves of it."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from bundle import Task
from compress import targets, teacher
from compress.errors import ModelError
from compress.stage import CHECKPOINTS, Run
from service.engine.tokenization import Tokenizer
from tests.support.runs import Finished, reopened, stage_folder


@pytest.fixture
def single(finished: Callable[[str], Finished]) -> Finished:
    return finished("single-label")


def torch_rows(run: Run, examples: list[Any]) -> np.ndarray:
    """By transformers' own class, one text at a time."""
    folder = run.folder("teacher") / teacher.MODEL
    tagged = run.recipe.task is Task.TOKEN_CLASSIFICATION
    kind = AutoModelForTokenClassification if tagged else AutoModelForSequenceClassification
    model = kind.from_pretrained(folder).eval()
    tokenizer = Tokenizer(run.folder("teacher") / teacher.TOKENIZER, run.recipe.data.max_length)
    encoded = run.spec.encode(tokenizer, examples, run.splits.labels)
    rows = []
    for index, encoding in enumerate(encoded.encodings):
        inputs = {"input_ids": torch.tensor([encoding.ids]), "token_type_ids": torch.tensor([encoding.type_ids])}
        with torch.inference_mode():
            output = model(**inputs).logits[0].numpy()
        rows.append(output[encoded.positions[encoded.rows_of([index])]] if tagged else output[None])
    return np.concatenate(rows)


@pytest.mark.parametrize("task", Task)
def test_the_kept_logits_are_those_of_torch(
    finished: Callable[[str], Finished], task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every row of training and unlabeled texts, in their order; memory-mapped when they are read."""
    monkeypatch.setattr(targets, "autocast_dtype", lambda *_: None)
    run = reopened(finished(task), tmp_path, ("teacher",))
    summary = targets.run(run, stage_folder(run, "targets"))
    kept = np.load(run.folder("targets") / targets.LOGITS, mmap_mode="r")
    assert isinstance(kept, np.memmap)
    assert kept.dtype == np.float32
    examples = targets.transfer_set(run, run.folder("targets"))
    assert examples == [*run.splits.train, *run.splits.unlabeled]
    assert summary == {"texts": 300, "augmented": 0, "precision": "float32"}
    assert np.allclose(kept, torch_rows(run, examples), atol=1e-5)


def test_in_half_precision_they_are_close(single: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "autocast_dtype", lambda *_: torch.bfloat16)
    run = reopened(single, tmp_path, ("teacher",))
    assert targets.run(run, stage_folder(run, "targets"))["precision"] == "bfloat16"
    kept = np.load(run.folder("targets") / targets.LOGITS)
    expected = torch_rows(run, targets.transfer_set(run, run.folder("targets")))
    assert 0 < np.abs(kept - expected).max() < 0.3
    assert np.abs(kept - expected).mean() < 0.03


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.5, 30), (1.0, 60)])
def test_a_share_of_the_unlabeled_texts(single: Finished, tmp_path: Path, share: float, count: int) -> None:
    run = reopened(single, tmp_path, ("teacher",), [f"distill.unlabeled_share={share}"])
    examples = run.unlabeled
    assert len(examples) == count
    assert [e for e in run.splits.unlabeled if e in examples] == examples  # in their order
    again = reopened(single, tmp_path / "again", (), [f"distill.unlabeled_share={share}"])
    assert again.unlabeled == examples


@pytest.mark.parametrize("task", Task)
def test_augmented_rows_are_labeled_by_the_teacher(
    finished: Callable[[str], Finished], task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "autocast_dtype", lambda *_: None)
    run = reopened(finished(task), tmp_path, ("teacher",), ["distill.augment.copies=2", "data.limit=40"])
    summary = targets.run(run, stage_folder(run, "targets"))
    assert summary["augmented"] == 80
    examples = targets.transfer_set(run, run.folder("targets"))
    made = examples[-80:]
    assert {example.target for example in made} == {None}
    originals = {(e.text, e.text_pair) for e in run.splits.train}
    assert sum((e.text, e.text_pair) not in originals for e in made) > 40
    if task is Task.TOKEN_CLASSIFICATION:
        assert all(e.text == " ".join(e.words) for e in made)
    kept = np.load(run.folder("targets") / targets.LOGITS)
    assert np.allclose(kept, torch_rows(run, examples), atol=1e-5)


class _Killed(BaseException):
    pass


def dying(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the teacher answer some batches, then end as a kill would."""
    predict = targets.predict

    def dies(*arguments: Any, **options: Any) -> Iterator[Any]:
        for number, answer in enumerate(predict(*arguments, batch_size=64, **options)):
            if number == after:
                raise _Killed
            yield answer

    monkeypatch.setattr(targets, "predict", dies)


def test_a_killed_run_goes_on_and_ends_with_the_same_file(
    single: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = reopened(single, tmp_path, ("teacher",))
    folder = stage_folder(run, "targets")
    with monkeypatch.context() as patch:
        patch.setattr(targets, "_FLUSH_SECONDS", 0.0)
        dying(3, patch)
        with pytest.raises(_Killed):
            targets.run(run, folder)
    assert json.loads((folder / CHECKPOINTS / "done.json").read_text()) == {"texts": 192}
    assert not (folder / targets.LOGITS).exists()  # never half of it where it is read
    asked = []
    predict = targets.predict

    def watched(*arguments: Any, **options: Any) -> Iterator[Any]:
        for indices, rows in predict(*arguments, **options):
            asked.extend(indices)
            yield indices, rows

    monkeypatch.setattr(targets, "predict", watched)
    targets.run(run, folder)
    assert len(asked) == 300 - 192
    whole = single.out / "work/targets" / targets.LOGITS
    assert (folder / targets.LOGITS).read_bytes() == whole.read_bytes()


def test_a_kill_after_the_end_and_another_at_the_new_start_change_nothing(
    single: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first says to be done is not done in the array that the second begins."""
    run = reopened(single, tmp_path, ("teacher",))
    folder = stage_folder(run, "targets")
    with monkeypatch.context() as patch:
        patch.setattr(targets, "_FLUSH_SECONDS", 0.0)
        targets.run(run, folder)  # killed before the stage was recorded: its file is cleared away, checkpoints stay
    (folder / targets.LOGITS).unlink()
    with monkeypatch.context() as patch:
        dying(1, patch)
        with pytest.raises(_Killed):
            targets.run(run, folder)
    targets.run(run, folder)
    whole = single.out / "work/targets" / targets.LOGITS
    assert (folder / targets.LOGITS).read_bytes() == whole.read_bytes()


def test_a_teacher_that_gives_no_numbers(single: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = reopened(single, tmp_path, ("teacher",))
    load = targets.load_classifier

    def broken(*arguments: Any, **options: Any) -> Any:
        model = load(*arguments, **options)
        with torch.no_grad():
            model.get_input_embeddings().weight[5] = float("nan")
        return model

    monkeypatch.setattr(targets, "load_classifier", broken)
    with pytest.raises(ModelError, match="logits that are not finite"):
        targets.run(run, stage_folder(run, "targets"))
    assert not (run.folder("targets") / targets.LOGITS).exists()


def test_no_place_for_the_logits_is_found_out_at_once(
    single: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    run = reopened(single, tmp_path, ("teacher",))
    folder = stage_folder(run, "targets")
    with pytest.raises(OSError, match="No space left on device") as caught:
        targets.run(run, folder)
    assert str(caught.value.filename) == str(folder / CHECKPOINTS / targets.LOGITS)
    assert list(folder.rglob("*.npy")) == []
