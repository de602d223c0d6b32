"""The measurements of every model, against scikit-learn, seqeval and what a person would count."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from sklearn.metrics import accuracy_score, recall_score

from bundle import Task
from compress import evaluate
from compress.errors import EvaluationError
from compress.examples import Example
from compress.measure import STUDENT, TEACHER, Answers, Ruler, answers, flips, measure, ruler_of
from compress.outputs import rows_alone
from compress.recipe import Evaluate
from compress.rows import Encoded, one_row_each
from compress.stage import Run
from compress.tasks import SPECS
from service.engine.tokenization import Encoding
from tests.support.runs import QUIET, Finished, reopened


def ruler(task: Task = Task.SINGLE_LABEL) -> Ruler:
    return Ruler(SPECS[task], ["a", "b", "c"], Evaluate(bootstrap_samples=200), 0, QUIET)


def said(decisions: list, first: list[int] | None = None) -> Answers:
    array = np.array(decisions)
    texts = (first and len(first) - 1) or len(decisions)
    encodings = [Encoding([0], [0], False)] * texts
    encoded = one_row_each(encodings, np.zeros(len(decisions), dtype=np.int64))
    if first is not None:
        encoded = Encoded(encodings, encoded.targets, np.array(first), np.zeros(len(decisions), dtype=np.int64))
    return Answers(np.zeros((len(decisions), 3), dtype=np.float32), encoded, array, None)


def test_flips_are_the_share_of_decisions_that_differ() -> None:
    found = flips(ruler(), said([0, 1, 2, 0]), said([0, 2, 2, 1]))
    assert found.value == 0.5
    assert found.low < 0.5 < found.high
    assert flips(ruler(), said([0, 1]), said([0, 1])).high == 0


def test_a_set_of_labels_flips_as_a_whole() -> None:
    one = said([[True, False, True], [False, False, False], [True, True, True]])
    two = said([[True, True, False], [False, False, False], [True, True, True]])
    assert flips(ruler(Task.MULTI_LABEL), one, two).value == pytest.approx(1 / 3)


def test_the_words_of_a_text_flip_each_for_itself() -> None:
    """Texts of 3, 0 and 1 words: a text without a row is no decision."""
    first = [0, 3, 3, 4]
    found = flips(ruler(Task.TOKEN_CLASSIFICATION), said([0, 1, 2, 0], first), said([0, 1, 1, 1], first))
    assert found.value == 0.5


@pytest.fixture(scope="module")
def run(finished: Callable[[str], Finished], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return reopened(
        finished("single-label"), tmp_path_factory.mktemp("measured"), overrides=["data.columns.slice=label"]
    )


def test_quality_is_scikit_learns(run: Run) -> None:
    found, measuring = evaluate.subjects(run), ruler_of(run)
    test = run.splits.test
    own = {name: answers(measuring, name, subject, test) for name, subject in found.items()}
    rows = {row.stage: row for row in measure(measuring, found, own, test, test[:10])}
    assert list(rows) == [TEACHER, STUDENT, "int8", "fp16"]
    truth = [example.target for example in test]
    said_by = {name: [run.splits.labels[i] for i in answer.decisions] for name, answer in own.items()}
    for name, row in rows.items():
        guesses = said_by[name]
        assert row.quality.scores["accuracy"].value == pytest.approx(accuracy_score(truth, guesses))
        recall = recall_score(truth, guesses, labels=run.splits.labels, average=None)
        assert [c.recall for c in row.quality.per_class.values()] == pytest.approx(recall.tolist())
        teachers = recall_score(truth, said_by[TEACHER], labels=run.splits.labels, average=None)
        drops = [drop.value for drop in row.quality.recall_drops.values()]
        assert drops == pytest.approx((teachers - recall).tolist())
        bins = row.quality.calibration.bins
        assert sum(part.count for part in bins) == len(test)
    assert rows["fp16"].latency_ms is rows["fp16"].speedup is rows["fp16"].batch_invariance is None
    for size in ("batch_1", "batch_8", "batch_32"):
        ratio = getattr(rows[TEACHER].latency_ms, size).median_ms / getattr(rows["int8"].latency_ms, size).median_ms
        assert getattr(rows["int8"].speedup, size) == pytest.approx(ratio)
    assert rows["int8"].batch_invariance.texts == 10


def test_slices_are_by_the_users_column_and_by_length(run: Run) -> None:
    found, measuring = evaluate.subjects(run), ruler_of(run)
    test = run.splits.test
    own = {name: answers(measuring, name, found[name], test) for name in (TEACHER, STUDENT)}
    pair = {name: found[name] for name in own}
    parts = measure(measuring, pair, own, test, test[:4])[1].quality.slices
    for label in run.splits.labels:
        mask = np.array([example.target == label for example in test])
        right = np.array([run.splits.labels[i] for i in own[STUDENT].decisions]) == label
        assert parts[f"label: {label}"].value == pytest.approx(right[mask].mean())
        assert parts[f"label: {label}"].texts == mask.sum()
    lengths = [name for name in parts if name.startswith("length: ")]
    assert len(lengths) == 3
    assert sum(parts[name].texts for name in lengths) == len(test)


def test_without_true_labels_there_is_no_quality_but_everything_else(run: Run) -> None:
    found, measuring = evaluate.subjects(run), ruler_of(run)
    texts = [Example(e.text, None, e.source) for e in run.splits.test[:20]]
    own = {name: answers(measuring, name, subject, texts) for name, subject in found.items()}
    for row in measure(measuring, found, own, texts, texts):
        assert row.quality is None
        assert row.onnx_bytes > 0
        assert 0 <= row.label_flips.value <= 1


@pytest.mark.parametrize(("number", "texts"), [(5, 80), (80, 80), (100, 100), (10_000, 380)])
def test_enough_texts_are_run_among_others(run: Run, number: int, texts: int) -> None:
    """All of the test split, and where it is too small validation and training texts."""
    splits = run.splits
    assert len(evaluate._enough(splits.test, [*splits.validation, *splits.train], number)) == texts


def test_a_row_of_numbers_that_are_none_is_no_answer(run: Run, tmp_path: Path) -> None:
    subject = evaluate.subjects(run)[STUDENT]
    model = onnx.load(subject.path)
    bias = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [2])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([np.nan, 0], dtype=np.float32), bias.name))
    onnx.save(model, tmp_path / "broken.onnx")
    encoded = run.spec.encode(subject.tokenizer, run.splits.test[:3], run.splits.labels)
    with pytest.raises(EvaluationError, match=r"broken\.onnx: the model gives logits that are not finite"):
        rows_alone(tmp_path / "broken.onnx", encoded, 0, QUIET, "evaluating")
