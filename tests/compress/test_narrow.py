"""Narrower students: projected weights, against scikit-learn's principal components and a model that fits anyway."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from bundle import Task
from compress.errors import ModelError
from compress.narrow import narrow, principal_components, student_of
from compress.recipe_training import Student
from tests.support.models import VOCABULARY, tiny_classifier

INPUTS = {"input_ids": torch.tensor([[2, 5, 6, 7, 3], [2, 9, 3, 0, 0]])}
INPUTS["attention_mask"] = (INPUTS["input_ids"] > 0).long()


def test_principal_components_are_scikit_learns() -> None:
    table = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.1, 12)
    found = principal_components(table, 4).numpy()
    expected = PCA(n_components=4).fit(table.numpy()).components_.T
    assert np.abs((found * expected).sum(axis=0)) == pytest.approx(1, abs=1e-4)  # but for their signs


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.TOKEN_CLASSIFICATION])
def test_a_narrower_model_has_the_shape_asked_for_and_runs(family: str, task: Task) -> None:
    model = tiny_classifier(family, layers=3, labels=3, task=task)
    model.config.id2label = dict(enumerate("abc"))
    recipe = Student(layers=2, hidden_size=32, heads=2, intermediate_size=48)
    student = student_of(model, recipe, ["a", "b", "c"], seed=0)
    config = student.config
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (32, 2, 48)
    assert config.num_hidden_layers == 2
    assert config.id2label == {0: "a", 1: "b", 2: "c"}
    with torch.inference_mode():
        logits = student(**INPUTS).logits
    assert logits.shape == ((2, 5, 3) if task is Task.TOKEN_CLASSIFICATION else (2, 3))
    assert torch.isfinite(logits).all()
    again = student_of(model, recipe, ["a", "b", "c"], seed=0)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))


def test_heads_are_64_wide_and_neurons_four_times_the_width_unless_said() -> None:
    student = student_of(tiny_classifier(), Student(layers=1, hidden_size=16, intermediate_size=64), ["a", "b"], 0)
    assert (student.config.num_attention_heads, student.config.intermediate_size) == (1, 64)


def test_words_that_lie_in_fewer_directions_keep_their_distances() -> None:
    """A table of rank 32 loses nothing but its mean's direction when it is projected on 32 components."""
    model = tiny_classifier()
    table = model.base_model.embeddings.word_embeddings.weight
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        flat = torch.randn(VOCABULARY, 8, generator=source) @ torch.randn(8, 64, generator=source)
        table.copy_(flat - flat.mean(dim=0))
    small = narrow(model, 32, heads=2, intermediate_size=64, seed=0)
    projected = small.base_model.embeddings.word_embeddings.weight / (64 / 32) ** 0.5
    assert torch.allclose(torch.cdist(projected, projected), torch.cdist(table, table), atol=1e-3)


@pytest.mark.parametrize(
    ("family", "hidden", "heads", "neurons", "message"),
    [
        ("bert", 64, 4, 64, "for a model 64 wide; expected a smaller width"),
        ("bert", 32, 3, 64, "found 32 with 3 heads"),
        ("bert", 32, 2, 256, r"student.intermediate_size: found 256; expected at most the model's 128"),
        ("distilbert", 32, 2, 64, "'distilbert' cannot be made narrower"),
        ("mpnet", 32, 2, 64, "'mpnet' cannot be made narrower"),
    ],
)
def test_a_width_that_cannot_be_had(family: str, hidden: int, heads: int, neurons: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        narrow(tiny_classifier(family), hidden, heads, neurons, seed=0)
