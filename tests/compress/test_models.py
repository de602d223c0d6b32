"""Finding, loading and cutting models."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from bundle.manifest import Task
from compress.errors import ModelError
from compress.models import (
    check_same_vocabulary,
    evenly_spaced,
    load_classifier,
    load_tokenizer,
    resolve_model,
    save_tokenizer,
    take_layers,
)
from compress.tasks import SPECS
from compress.teacher import check_max_length, check_vocabulary_size
from service.engine.tokenization import Tokenizer
from tests.support.bundles import TEXTS
from tests.support.models import FAMILIES, save_tiny_model, tiny_classifier

SINGLE = SPECS[Task.SINGLE_LABEL]
INPUTS = {"input_ids": torch.tensor([[2, 5, 6, 7, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.int64)}


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return model(**INPUTS).logits.numpy()


@pytest.mark.parametrize(
    ("number", "count", "expected"), [(3, 6, [1, 3, 5]), (6, 6, [0, 1, 2, 3, 4, 5]), (1, 12, [11])]
)
def test_layers_are_evenly_spaced_and_end_with_the_last(number: int, count: int, expected: list[int]) -> None:
    assert evenly_spaced(number, count) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_holds_the_layers_asked_for(family: str) -> None:
    """Against torch: a teacher whose other layers are taken out of its list computes the same."""
    teacher = tiny_classifier(family, layers=4)
    student = take_layers(teacher, (0, 2), ["a", "b"], seed=0)
    body = teacher.base_model
    layers = body.transformer.layer if family == "distilbert" else body.encoder.layer
    for index in (3, 1):
        del layers[index]
    assert np.array_equal(logits(student), logits(teacher))
    assert student.config.num_hidden_layers == 2
    assert student.config.id2label == {0: "a", 1: "b"}


def test_a_student_with_all_layers_is_the_teacher() -> None:
    teacher = tiny_classifier(layers=3)
    assert np.array_equal(logits(take_layers(teacher, 3, ["a", "b"], seed=0)), logits(teacher))


@pytest.mark.parametrize("layers", [0, 5, (1, 0), (0, 0), (4,), (-1,), ()])
def test_layers_that_are_not_there(layers: int | tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="rising numbers from 0 to 3"):
        take_layers(tiny_classifier(layers=4), layers, ["a", "b"], seed=0)


def test_a_fine_tuned_models_labels_are_put_in_the_datas_order(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, labels=["positive", "negative"])
    reordered = load_classifier(str(folder), ["negative", "positive"], 0, SINGLE, keep_head=True)
    as_saved = load_classifier(str(folder), ["positive", "negative"], 0, SINGLE, keep_head=True)
    assert np.allclose(logits(reordered), logits(as_saved)[:, ::-1], atol=1e-6)
    assert abs(np.diff(logits(as_saved))) > 1e-3  # else the order would not show
    assert reordered.config.label2id == {"negative": 0, "positive": 1}


def test_a_fine_tuned_model_with_other_labels_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, labels=["joy", "anger"])
    with pytest.raises(ModelError, match=r"its labels are \['joy', 'anger'\], the data's are"):
        load_classifier(str(folder), ["negative", "positive"], 0, SINGLE, keep_head=True)


def test_a_new_head_is_decided_by_the_seed(tmp_path: Path) -> None:
    folder = str(save_tiny_model(tmp_path))
    labels = ["a", "b", "c"]
    first, again, other = (load_classifier(folder, labels, seed, SINGLE, keep_head=False) for seed in (1, 1, 2))
    assert logits(first).shape == (1, 3)
    assert np.array_equal(logits(first), logits(again))
    assert not np.array_equal(logits(first), logits(other))


def test_models_are_found_in_folders_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "weights_package"
    save_tiny_model(package / "inside" / "model")
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert resolve_model("package:weights-package") == str(package / "inside" / "model")
    assert resolve_model("weights_package/inside/model", tmp_path) == str(package / "inside" / "model")
    assert resolve_model("some/hub-id", tmp_path) == "some/hub-id"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("package:not_there_at_all", "is not installed"),
        ("package:json", "holds no folder"),
        ("package:no.dots", "expected the name of a package"),
    ],
)
def test_packages_without_weights(reference: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve_model(reference)


def test_a_student_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    save_tokenizer(load_tokenizer(str(folder)), tmp_path / "same.json")
    check_same_vocabulary(str(folder), Tokenizer(tmp_path / "same.json", 16))
    text = (tmp_path / "same.json").read_text()
    (tmp_path / "other.json").write_text(text.replace('"movie"', '"swapped"'))
    with pytest.raises(ModelError, match="is not the teacher's"):
        check_same_vocabulary(str(folder), Tokenizer(tmp_path / "other.json", 16))


def test_a_family_whose_layers_we_cannot_take() -> None:
    torch.manual_seed(0)
    config = transformers.XLNetConfig(vocab_size=30, d_model=32, n_layer=4, n_head=4, d_inner=64)
    model = transformers.XLNetForSequenceClassification(config)
    with pytest.raises(ModelError, match="'xlnet' cannot be taken"):
        take_layers(model, 2, ["a", "b"], seed=0)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_classifier(str(tmp_path), ["a", "b"], 0, SINGLE, keep_head=False)
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path))


def test_the_saved_tokenizer_gives_transformers_ids(tmp_path: Path) -> None:
    reference = load_tokenizer(str(save_tiny_model(tmp_path)))
    save_tokenizer(reference, tmp_path / "served.json")
    served = Tokenizer(tmp_path / "served.json", max_length=6)
    expected = reference(TEXTS, truncation=True, max_length=6)["input_ids"]
    assert [encoding.ids for encoding in served.encode(TEXTS)] == expected
    assert served.pad_id == reference.pad_token_id
    with pytest.raises(OSError, match="No space left"):  # the library's own `save` raises what nobody expects
        save_tokenizer(reference, Path("/dev/full"))


@pytest.mark.parametrize(("family", "limit"), [("bert", 40), ("roberta", 39)])
def test_texts_longer_than_the_models_positions(family: str, limit: int) -> None:
    model = tiny_classifier(family)
    check_max_length(model, limit, "model")
    with pytest.raises(ModelError, match=f"takes at most {limit} tokens"):
        check_max_length(model, limit + 1, "model")


def test_a_tokenizer_of_more_words_than_the_model_has(tmp_path: Path) -> None:
    save_tokenizer(load_tokenizer(str(save_tiny_model(tmp_path / "model"))), tmp_path / "tokenizer.json")
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", 16)
    model = tiny_classifier()
    check_vocabulary_size(model, tokenizer, "model")
    model.config.vocab_size = 10
    with pytest.raises(ModelError, match="gives ids up to 17, but the model has embeddings for 10"):
        check_vocabulary_size(model, tokenizer, "model")


@pytest.mark.parametrize("task", Task)
def test_a_model_is_loaded_for_its_task(tmp_path: Path, task: Task) -> None:
    labels = ["O", "B-X", "I-X"]
    folder = save_tiny_model(tmp_path, labels=labels, task=task)
    for keep_head in (True, False):
        model = load_classifier(str(folder), labels, 0, SPECS[task], keep_head=keep_head)
        shape = model(**INPUTS).logits.shape
        assert shape == ((1, 5, 3) if task is Task.TOKEN_CLASSIFICATION else (1, 3))
        assert model.config.id2label == dict(enumerate(labels))
        expected = {Task.MULTI_LABEL: "multi_label_classification", Task.TOKEN_CLASSIFICATION: None}
        assert model.config.problem_type == expected.get(task, "single_label_classification")
        student = take_layers(model, 1, labels, seed=0)
        assert type(student) is type(model)
        assert student.config.problem_type == model.config.problem_type


def test_a_taggers_labels_are_put_in_the_datas_order(tmp_path: Path) -> None:
    saved, wanted = ["B-X", "O", "I-X"], ["O", "B-X", "I-X"]
    folder = str(save_tiny_model(tmp_path, labels=saved, task=Task.TOKEN_CLASSIFICATION))
    spec = SPECS[Task.TOKEN_CLASSIFICATION]
    reordered = load_classifier(folder, wanted, 0, spec, keep_head=True)
    as_saved = load_classifier(folder, saved, 0, spec, keep_head=True)
    assert np.allclose(logits(reordered), logits(as_saved)[..., [1, 0, 2]], atol=1e-6)
