"""Several teachers: the average of what they say, against numpy; and runs in which several teach."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bundle import Task
from compress import distill, targets, teacher
from compress.ensemble import Average, shared_rows
from compress.rows import Encoded, one_row_each
from service.engine.tokenization import Encoding, Tokenizer
from tests.compress.test_targets import torch_rows
from tests.support.command import limbeck
from tests.support.models import save_tiny_model, write_tiny_recipe
from tests.support.runs import Finished, reopened, stage_folder
from tests.support.tokenizers import wordpiece


def words_of(*texts: list[int]) -> Encoded:
    """Rows that are these words of these texts."""
    first = np.cumsum([0, *map(len, texts)])
    words = np.array([word for text in texts for word in text], dtype=np.int64)
    encodings = [Encoding([1], [0], False) for _ in texts]
    return Encoded(encodings, np.zeros(len(words), dtype=np.int64), first, words, words)


def test_rows_of_one_text_each_are_averaged_by_weight() -> None:
    source = np.random.default_rng(0)
    rows = [source.normal(size=(5, 3)).astype(np.float32) for _ in range(3)]
    encoded = one_row_each([], np.zeros(5, dtype=np.int64))
    encoded = Encoded(encoded.encodings, encoded.targets, np.arange(6))
    average = Average(encoded, 3)
    for logits, weight in zip(rows, (1.0, 2.0, 0.5), strict=True):
        average.add(logits, weight, encoded)
    assert np.allclose(average.logits(), np.average(rows, axis=0, weights=(1.0, 2.0, 0.5)), atol=1e-6)
    average.add_rows(np.array([4, 0]), np.ones((2, 3), dtype=np.float32), 3.5)
    assert np.allclose(average.logits()[0], (np.average(rows, axis=0, weights=(1, 2, 0.5))[0] + 1) / 2, atol=1e-6)
    assert average.logits().dtype == np.float32


def test_words_that_another_tokenizer_cut_are_left_to_the_others() -> None:
    reference, other = words_of([0, 1, 2], [0], [0, 1]), words_of([0, 1], [0, 1], [])
    average = Average(reference, 1)
    average.add(np.arange(6, dtype=np.float32)[:, None], 1.0, reference)
    average.add(np.array([[10], [11], [12], [13]], dtype=np.float32), 1.0, other)
    assert average.logits()[:, 0].tolist() == [5.0, 6.0, 2.0, 7.5, 4.0, 5.0]
    average = Average(reference, 1)
    average.add(np.arange(6, dtype=np.float32)[:, None], 1.0, reference)
    average.add(np.empty((0, 1), dtype=np.float32), 1.0, words_of([], [], []))
    assert average.logits()[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_student_learns_of_the_words_that_its_teacher_saw() -> None:
    students, teachers = words_of([0, 1, 2], [0], [0, 1]), words_of([0, 1], [0, 1], [])
    logits = np.array([[10], [11], [12], [13]], dtype=np.float32)
    rows, kept = shared_rows(students, teachers, logits)
    assert kept[:, 0].tolist() == [10, 11, 12]
    assert rows.first.tolist() == [0, 2, 3, 3]
    assert rows.words is not None
    assert rows.words.tolist() == [0, 1, 0]
    assert rows.texts.tolist() == [0, 0, 1]
    assert rows.encodings is students.encodings
    same, unchanged = shared_rows(teachers, words_of([0, 1], [0, 1], []), logits)
    assert same is teachers
    assert unchanged is logits


@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.TOKEN_CLASSIFICATION])
def test_the_students_targets_are_the_weighted_mean_of_its_teachers(
    finished: Callable[[str], Finished], task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By transformers' own forward of each. The second is fine-tuned here, too."""
    monkeypatch.setattr(targets, "autocast_dtype", lambda *_: None)
    done = finished(task)
    second = save_tiny_model(tmp_path / "second", layers=1, seed=4)
    others = f"[{{model: {second}, weight: 3, fine_tune: {{epochs: 2, learning_rate: 2e-3, precision: fp32}}}}]"
    run = reopened(done, tmp_path / "out", ("teacher",), [f"teacher.others={others}", "data.limit=60"])
    summary = teacher.run_other(run, stage_folder(run, "teacher-2"), 0)
    assert summary["epochs"] == 2
    summary = targets.run(run, stage_folder(run, "targets"))
    assert set(summary["validation"]) == {"teacher", "teacher-2", "together"}
    assert 0.3 < summary["validation"]["together"] <= 1
    examples = targets.transfer_set(run, run.folder("targets"))
    first = torch_rows(run, examples)
    monkeypatch.setattr(
        type(run), "folder", lambda self, stage: self.out / "work" / stage.replace("teacher", "teacher-2")
    )
    expected = (first + 3 * torch_rows(run, examples)) / 4
    kept = np.load(tmp_path / "out/work/targets" / targets.LOGITS)
    assert kept.dtype == np.float32
    assert np.allclose(kept, expected, atol=1e-5)


def test_teachers_of_one_name_have_events_of_their_own(
    finished: Callable[[str], Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two folders called alike: the second training would take back what the first told."""
    models = [save_tiny_model(tmp_path / folder / "model", layers=1, seed=4) for folder in ("a", "b")]
    others = ", ".join(f"{{model: {model}, fine_tune: {{}}}}" for model in models)
    run = reopened(finished(Task.SINGLE_LABEL), tmp_path / "out", ("teacher",), [f"teacher.others=[{others}]"])
    titles: list[str] = []

    def noted(*_: object, title: str, **__: object) -> dict[str, object]:
        titles.append(title)
        return {}

    monkeypatch.setattr(teacher, "train", noted)
    for number in range(2):
        teacher.run_other(run, stage_folder(run, teacher.other(number)), number)
    assert titles == ["fine-tuning teacher-2 model", "fine-tuning teacher-3 model"]


def test_teachers_may_have_tokenizers_of_their_own(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    """Words are found again where the second splits them into several tokens and cuts texts earlier."""
    import transformers

    second = save_tiny_model(tmp_path / "second", layers=1, tokenizer=wordpiece(), labels=None, seed=4)
    model = transformers.AutoModelForTokenClassification.from_config(
        transformers.AutoConfig.from_pretrained(second, vocab_size=100, num_labels=2)
    )
    model.save_pretrained(second)
    others = f"[{{model: {second}, fine_tune: {{epochs: 1}}}}]"
    run = reopened(finished("token-classification"), tmp_path / "out", ("teacher",), [f"teacher.others={others}"])
    teacher.run_other(run, stage_folder(run, "teacher-2"), 0)
    targets.run(run, stage_folder(run, "targets"))
    kept = np.load(run.folder("targets") / targets.LOGITS)
    own = Tokenizer(run.folder("teacher") / teacher.TOKENIZER, 32)
    examples = targets.transfer_set(run, run.folder("targets"))
    assert len(kept) == int(run.spec.encode(own, examples, run.splits.labels).first[-1])
    assert np.isfinite(kept).all()


@pytest.mark.slow
def test_a_run_with_two_teachers_says_what_they_are_worth(tmp_path: Path) -> None:
    second = save_tiny_model(tmp_path / "second", layers=1, seed=4)
    fine_tune = {"epochs": 3, "batch_size": 16, "learning_rate": 2e-3, "precision": "fp32"}
    others = {"others": [{"model": str(second), "fine_tune": fine_tune}]}
    recipe = write_tiny_recipe(tmp_path, teacher={"model": "teacher", "fine_tune": fine_tune} | others)
    result = limbeck("compress", recipe, "--out", tmp_path / "out", "--set", "evaluate.baselines=false")
    assert result.returncode == 0, result.stderr
    assert "accuracy on validation: teacher " in result.stdout
    assert "Several teachers" in (tmp_path / "out/bundle/README.md").read_text()
    again = limbeck("compress", recipe, "--out", tmp_path / "out", "--set", "evaluate.baselines=false")
    assert "teacher-2: done earlier" in again.stdout
    weighed = limbeck(
        "compress", recipe, "--out", tmp_path / "out", "--set", "evaluate.baselines=false", "--set", "teacher.weight=2"
    )
    assert weighed.returncode == 0, weighed.stderr
    assert "teacher-2: done earlier" in weighed.stdout
    assert "targets: done earlier" not in weighed.stdout
    assert distill.MODEL  # the student was taught anew
    assert "distill: done earlier" not in weighed.stdout
