"""Importance of what can be cut, against finite differences of the weights themselves and against autograd."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bundle import Task
from compress.anatomy import Anatomy, anatomy_of
from compress.batches import Batch, TrainingSet, make_batch, rows_of
from compress.importance import Importance, measure_importance
from compress.recipe_training import Distill
from compress.rows import Encoded, one_row_each
from compress.soft_loss import distillation
from service.engine.tokenization import Encoding
from tests.support.models import FAMILIES, VOCABULARY, tiny_classifier

LOSS = distillation(Distill(), multi_label=False)
STEP = 1e-4


def training_set(texts: int, labels: int, *, words: bool = False, same: bool = False) -> TrainingSet:
    random = np.random.default_rng(0)
    lengths = [7] * texts if same else random.integers(4, 9, texts).tolist()
    rows = [random.integers(4, VOCABULARY, length).tolist() for length in lengths]
    encodings = [Encoding(rows[0] if same else ids, [0] * len(ids), truncated=False) for ids in rows]
    if words:  # the second and the third token of each text
        first = np.arange(texts + 1, dtype=np.int64) * 2
        positions = np.tile(np.array([1, 2]), texts)
        encoded = Encoded(encodings, np.zeros(2 * texts, dtype=np.int64), first, positions)
    else:
        encoded = one_row_each(encodings, np.zeros(texts, dtype=np.int64))
    logits = random.normal(size=(int(encoded.first[-1]), labels)).astype(np.float32)
    return TrainingSet(encoded, logits)


def measured(model: nn.Module, data: TrainingSet, kind: str, **options: int) -> Importance:
    texts = range(len(data.encoded.encodings))
    return measure_importance(model, data, texts, LOSS, kind, pad_id=0, **{"seed": 0, **options})


def slope(change: Callable[[float], None], value: Callable[[], Tensor]) -> Tensor:
    """The derivative of `value` at factor 1, by changing weights and changing them back."""
    with torch.no_grad():
        change(1 + STEP)
        above = value()
        change((1 - STEP) / (1 + STEP))
        below = value()
        change(1 / (1 - STEP))
    return (above - below) / (2 * STEP)


def changes(anatomy: Anatomy) -> dict[str, Callable[[float], None]]:
    """Ways to scale one head, one neuron and one hidden number in the weights."""
    layer, width = anatomy.layers[1], anatomy.layers[1].head_width

    def head(factor: float) -> None:
        layer.out.weight[:, 2 * width : 3 * width] *= factor

    def neuron(factor: float) -> None:
        layer.down.weight[:, 77] *= factor

    def hidden(factor: float) -> None:
        first = next(module for module in anatomy.embeddings.modules() if isinstance(module, nn.LayerNorm))
        for norm in (first, *(n for part in anatomy.layers for n in (part.attention_norm, part.norm))):
            norm.weight[5] *= factor
            norm.bias[5] *= factor

    return {"head": head, "neuron": neuron, "hidden": hidden}


def chosen(found: Importance) -> dict[str, float]:
    return {"head": found.heads[1][2], "neuron": found.neurons[1][77], "hidden": found.hidden[5]}


@pytest.mark.parametrize("family", FAMILIES)
def test_taylor_is_the_mean_slope_of_the_loss(family: str) -> None:
    model = tiny_classifier(family, layers=2).double()
    data = training_set(5, 2)
    found = chosen(measured(model, data, "taylor", batch_size=2))

    def losses() -> Tensor:  # each text alone: nothing is padded
        batches = [make_batch(data, [i], 0, torch.device("cpu")) for i in range(5)]
        return torch.cat([squared(model, batch) for batch in batches])

    for name, change in changes(anatomy_of(model)).items():
        expected = float(slope(change, losses).abs().mean())
        assert found[name] == pytest.approx(expected, rel=2e-3, abs=1e-9), name


def squared(model: nn.Module, batch: Batch) -> Tensor:
    """The logit MSE as everybody writes it, in the model's own precision."""
    taken = {k: v for k, v in batch.inputs.items() if k != "token_type_ids"}
    return (model(**taken).logits - batch.teacher_logits).square().mean(dim=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_fisher_of_one_logit_is_its_squared_slope(family: str) -> None:
    model = tiny_classifier(family, layers=2, labels=1).double()
    data = training_set(5, 1)
    found = chosen(measured(model, data, "fisher", batch_size=3))

    def logits() -> Tensor:
        batches = [make_batch(data, [i], 0, torch.device("cpu")) for i in range(5)]
        return torch.cat([logit(model, batch) for batch in batches])

    for name, change in changes(anatomy_of(model)).items():
        expected = float(slope(change, logits).square().mean())
        assert found[name] == pytest.approx(expected, rel=2e-3, abs=1e-9), name


def logit(model: nn.Module, batch: Batch) -> Tensor:
    return model(**{k: v for k, v in batch.inputs.items() if k != "token_type_ids"}).logits[:, 0]


@pytest.mark.parametrize("words", [False, True], ids=["a row a text", "a row a word"])
def test_random_signs_estimate_the_sum_over_logits_and_rows(words: bool) -> None:
    """One text 600 times: the mean over its signs is the sum of squared slopes of all its logits, from autograd."""
    task = Task.TOKEN_CLASSIFICATION if words else Task.SINGLE_LABEL
    model = tiny_classifier(layers=2, labels=3, task=task)
    data = training_set(600, 3, words=words, same=True)
    found = measured(model, data, "fisher", batch_size=100)
    layer = anatomy_of(model).layers[1]
    gate = torch.ones(4, requires_grad=True)
    width = layer.head_width
    hook = layer.out.register_forward_pre_hook(lambda _, x: (x[0] * gate.repeat_interleave(width),))
    rows = rows_of(model, make_batch(data, [0], 0, torch.device("cpu")))
    hook.remove()
    exact = sum(torch.autograd.grad(value, gate, retain_graph=True)[0].square() for value in rows.flatten())
    assert found.heads[1] == pytest.approx(exact.numpy(), rel=0.25)


def test_fisher_of_the_softmax_is_that_of_its_probabilities() -> None:
    """Against F = Σ p_c (∂ log p_c)², the definition, with the probabilities written out."""
    model = tiny_classifier(layers=2, labels=3)
    data = training_set(900, 3, same=True)
    found = measured(model, data, "fisher-softmax", batch_size=100)
    layer = anatomy_of(model).layers[0]
    gate = torch.ones(128, requires_grad=True)
    hook = layer.down.register_forward_pre_hook(lambda _, x: (x[0] * gate,))
    log_p = rows_of(model, make_batch(data, [0], 0, torch.device("cpu"))).log_softmax(dim=-1)[0]
    hook.remove()
    slopes = [torch.autograd.grad(value, gate, retain_graph=True)[0].square() for value in log_p]
    exact = sum(p * s for p, s in zip(log_p.detach().exp(), slopes, strict=True)).numpy()
    large = exact > np.median(exact)
    assert found.neurons[0][large] == pytest.approx(exact[large], rel=0.3)


def test_a_student_that_is_its_teacher_has_fisher_and_no_taylor() -> None:
    model = tiny_classifier(layers=2)
    data = training_set(6, 2)
    rows = [rows_of(model, make_batch(data, [i], 0, torch.device("cpu"))).detach().numpy() for i in range(6)]
    same = TrainingSet(data.encoded, np.concatenate(rows))
    taylor, fisher = measured(model, same, "taylor"), measured(model, same, "fisher")
    assert max(scores.max() for scores in taylor.heads) < 1e-4
    assert min(scores.max() for scores in fisher.heads) > 1e-3
    assert (fisher.layers > 0).all()


def test_what_is_unused_has_no_importance_and_the_model_is_left_alone() -> None:
    model = tiny_classifier(layers=2)
    layer = anatomy_of(model).layers[0]
    with torch.no_grad():
        layer.down.weight[:, 3] = 0
        layer.out.weight[:, : layer.head_width] = 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = training_set(6, 2)
    found = measured(model, data, "fisher")
    assert found.neurons[0][3] == 0
    assert found.heads[0][0] == 0
    assert (found.neurons[0][4:] > 0).any()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not layer.out._forward_pre_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_seed_decides() -> None:
    model, data = tiny_classifier(layers=2), training_set(6, 2)
    first, again, other = (measured(model, data, "fisher", seed=seed).hidden for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
