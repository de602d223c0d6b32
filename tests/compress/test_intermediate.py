"""What is read from inside a model, against transformers' own outputs."""

import numpy as np
import pytest
import torch
import transformers

from compress.errors import ModelError
from compress.intermediate import (
    IntermediateLoss,
    Projections,
    check_layer_map,
    default_layer_map,
    read,
    self_attentions,
)
from compress.losses import attention_transfer, hidden_mse, relation_kl
from compress.models import take_layers
from tests.support.models import FAMILIES, tiny_classifier, tiny_config

INPUTS = {
    "input_ids": torch.tensor([[2, 5, 6, 7, 8, 3], [2, 8, 9, 3, 0, 0], [2, 10, 11, 12, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]),
    "token_type_ids": torch.zeros(3, 6, dtype=torch.int64),
}
MASK = INPUTS["attention_mask"]
WEIGHTS = ("hidden", "embedding", "attention", "relation")


def narrow(family: str = "bert", layers: int = 2) -> torch.nn.Module:
    """A student half as wide as the others, with the same number of heads."""
    config = tiny_config(family, layers)
    config.hidden_size, config.intermediate_size = 32, 64
    if family == "electra":
        config.embedding_size = 32
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def plain(family: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    untyped = ("distilbert", "mpnet")
    return {name: x for name, x in inputs.items() if name != "token_type_ids" or family not in untyped}


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_attentions_are_those_of_transformers(family: str) -> None:
    model = tiny_classifier(family, layers=3)
    found = read(model, INPUTS, hidden=True, layers=[0, 2])
    model.set_attn_implementation("eager")
    expected = model(**plain(family, INPUTS), output_hidden_states=True, output_attentions=True)
    assert torch.allclose(found.logits, expected.logits, atol=1e-5)
    assert len(found.hidden) == 4
    for ours, theirs in zip(found.hidden, expected.hidden_states, strict=True):
        assert torch.allclose(ours[MASK == 1], theirs[MASK == 1], atol=1e-5)
    for layer, projected in found.attention.items():
        masked = projected.scores().masked_fill(MASK[:, None, None, :] == 0, -torch.inf)
        assert torch.allclose(masked.softmax(dim=-1), expected.attentions[layer], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_that_the_layer_mixes(family: str) -> None:
    """Attention times values, put through the layer's output matrix, is what the output matrix gave."""
    model = tiny_classifier(family, layers=1)
    output_layer = next(
        module
        for name, module in model.named_modules()
        if name.endswith(("attention.output.dense", "attention.out_lin", "attention.attn.o"))
    )
    seen = []
    output_layer.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    projected = read(model, INPUTS, layers=[0]).attention[0]
    weights = projected.scores().masked_fill(MASK[:, None, None, :] == 0, -torch.inf).softmax(dim=-1)
    values = projected.value.unflatten(-1, (projected.heads, -1)).transpose(1, 2)
    mixed = (weights @ values).transpose(1, 2).flatten(2)
    assert torch.allclose(mixed[MASK == 1], seen[0][MASK == 1], atol=1e-5)


def test_only_what_is_asked_for_is_read_and_no_hook_stays() -> None:
    model = tiny_classifier()
    found = read(model, INPUTS)
    assert found.hidden == ()
    assert found.attention == {}
    read(model, INPUTS, layers=[1])
    assert not any(module._forward_hooks for module in model.modules())


def test_families_without_queries_that_can_be_found_are_refused() -> None:
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ModelError, match="'gpt2' cannot be found; expected an encoder like BERT"):
        self_attentions(model)


def test_the_default_layer_map_ends_with_the_last() -> None:
    assert default_layer_map(3, 6) == (1, 3, 5)
    assert default_layer_map(4, 12) == (2, 5, 8, 11)
    with pytest.raises(ModelError, match="the student has 3 layers, the teacher 2"):
        default_layer_map(3, 2)


@pytest.mark.parametrize("layer_map", [(0,), (0, 1, 2), (1, 0), (1, 1), (0, 4), (-1, 2)])
def test_a_layer_map_that_does_not_fit_is_refused(layer_map: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"expected 2 rising numbers from 0 to 3, .* such as \[1, 3\]"):
        check_layer_map(layer_map, 2, 4)


def test_projections_are_made_where_widths_differ_and_drawn_by_seed() -> None:
    assert list(Projections(8, 8, hidden=True, embedding=True, seed=0).parameters()) == []
    projections = Projections(8, 12, hidden=True, embedding=False, seed=0)
    assert projections.embedding is None
    assert projections.hidden.shape == (8, 12)
    assert torch.equal(projections.hidden, Projections(8, 12, hidden=True, embedding=False, seed=0).hidden)
    assert not torch.equal(projections.hidden, Projections(8, 12, hidden=True, embedding=False, seed=1).hidden)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_weighted_sum_of_its_parts(family: str) -> None:
    student, teacher = narrow(family), tiny_classifier(family, layers=4)
    weights = {"hidden": 1.0, "embedding": 0.5, "attention": 0.25, "relation": 2.0}
    beside = IntermediateLoss(student, teacher, **weights, layer_map=(0, 3), relation_layer=2, relation_heads=8)
    logits, found = beside(student, teacher, INPUTS)
    ours, theirs = (read(model, INPUTS, hidden=True, layers=range(4)[:n]) for model, n in ((student, 2), (teacher, 4)))
    projections = beside.projections
    hidden = [
        hidden_mse(ours.hidden[i + 1], theirs.hidden[j + 1], MASK, projections.hidden) for i, j in ((0, 0), (1, 3))
    ]
    attention = [
        attention_transfer(ours.attention[i].scores(), theirs.attention[j].scores(), MASK) for i, j in ((0, 0), (1, 3))
    ]
    relation = sum(
        relation_kl(getattr(ours.attention[1], name), getattr(theirs.attention[2], name), MASK, 8)
        for name in ("query", "key", "value")
    )
    expected = (
        sum(hidden) / 2
        + 0.5 * hidden_mse(ours.hidden[0], theirs.hidden[0], MASK, projections.embedding)
        + 0.25 * sum(attention) / 2
        + 2 * relation
    )
    assert found.shape == (3,)
    assert torch.allclose(found, expected, rtol=1e-5)
    assert torch.equal(logits, student(**plain(family, INPUTS)).logits)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient(family: str, weight: str) -> None:
    teacher = tiny_classifier(family, layers=2)
    student = take_layers(teacher, 2, ["a", "b"], seed=0)
    _, loss = IntermediateLoss(student, teacher, **{weight: 1.0})(student, teacher, INPUTS)
    loss.sum().backward()
    assert loss.detach().numpy() == pytest.approx(0, abs=1e-6)
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert gradients
    assert max(float(g.abs().max()) for g in gradients) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_micro_batches_do_not_change_the_loss(family: str) -> None:
    student, teacher = narrow(family), tiny_classifier(family, layers=4)
    beside = IntermediateLoss(student, teacher, **dict.fromkeys(WEIGHTS, 1.0))
    _, whole = beside(student, teacher, INPUTS)
    padded = {name: torch.nn.functional.pad(x, (0, 4)) for name, x in INPUTS.items()}
    assert torch.allclose(beside(student, teacher, padded)[1], whole, rtol=1e-4)
    parts = [beside(student, teacher, {name: x[rows] for name, x in INPUTS.items()})[1] for rows in ([0], [1, 2])]
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-4)


def test_student_and_projections_learn_and_the_teacher_does_not() -> None:
    student, teacher = narrow().train(), tiny_classifier(layers=4).train()
    beside = IntermediateLoss(student, teacher, **dict.fromkeys(WEIGHTS, 1.0))
    before = {name: x.clone() for name, x in teacher.state_dict().items()}
    optimizer = torch.optim.Adam([*student.parameters(), *beside.parameters()], lr=3e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = beside(student, teacher, INPUTS)[1].mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    assert list(beside.state_dict()) == ["projections.hidden", "projections.embedding"]
    assert not teacher.training
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(x, before[name]) for name, x in teacher.state_dict().items())


def test_the_loss_is_float32_under_autocast() -> None:
    student, teacher = narrow(), tiny_classifier(layers=4)
    beside = IntermediateLoss(student, teacher, **dict.fromkeys(WEIGHTS, 1.0))
    _, exact = beside(student, teacher, INPUTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, rounded = beside(student, teacher, INPUTS)
    assert logits.dtype == torch.bfloat16
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, exact, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 1.0, "layer_map": (0, 4)}, "the layer map is"),
        ({"relation": 1.0, "relation_layer": 4}, "the relation layer is 4; expected one of the teacher's layers"),
        ({"relation": 1.0, "relation_heads": 3}, "3 relation heads do not divide the student's width 32"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_training(options: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        IntermediateLoss(narrow(), tiny_classifier(layers=4), **options)


def test_attention_transfer_is_refused_for_other_numbers_of_heads_or_relative_positions() -> None:
    config = tiny_config()
    config.num_attention_heads = 2
    student = transformers.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ModelError, match="layer 0 of the student has 2 attention heads, layer 0 of the teacher 4"):
        IntermediateLoss(student, tiny_classifier(), attention=1.0)
    config = tiny_config()
    config.position_embedding_type = "relative_key"
    student = transformers.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ModelError, match="the student has positions of type 'relative_key'"):
        IntermediateLoss(student, tiny_classifier(), attention=1.0)


def test_token_classification_gives_logits_of_every_token() -> None:
    model = transformers.AutoModelForTokenClassification.from_config(tiny_config(labels=3)).eval()
    logits, loss = IntermediateLoss(model, model, hidden=1.0)(model, model, INPUTS)
    assert logits.shape == (3, 6, 3)
    assert loss.shape == (3,)
