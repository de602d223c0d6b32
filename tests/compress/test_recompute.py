"""Gradient checkpointing: the same gradients, less kept."""

import pytest
import torch
from torch import nn

from compress.batches import forward
from compress.errors import ModelError
from compress.intermediate import IntermediateLoss
from compress.recompute import recomputed
from tests.support.models import FAMILIES, VOCABULARY, tiny_classifier

INPUTS = {
    "input_ids": torch.randint(4, VOCABULARY, (6, 20), generator=torch.Generator().manual_seed(1)),
    "attention_mask": torch.ones(6, 20, dtype=torch.int64),
}


def gradients(model: nn.Module, wanted: bool) -> tuple[torch.Tensor, int]:
    """All gradients of a step with dropout, and how many bytes the forward pass kept for it."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    model.train()
    model.zero_grad()
    torch.manual_seed(7)
    with recomputed(model, wanted):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = forward(model, INPUTS)
        own = {parameter.data_ptr() for parameter in model.parameters()}
        logits.square().sum().backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return found, sum(size for pointer, size in kept.items() if pointer not in own)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same_and_less_is_kept(family: str) -> None:
    plain, kept = gradients(tiny_classifier(family, layers=4), False)
    again, kept_again = gradients(tiny_classifier(family, layers=4), True)
    assert torch.equal(plain, again)
    assert plain.norm() > 0.01
    assert kept_again < kept / 3


def test_hidden_states_and_attention_can_be_compared_meanwhile() -> None:
    found = []
    for wanted in (False, True):
        student, teacher = tiny_classifier(seed=1), tiny_classifier(layers=4, seed=5)
        loss = IntermediateLoss(student, teacher, hidden=1.0, attention=0.3, relation=1.0)
        student.train()
        torch.manual_seed(7)
        with recomputed(student, wanted):
            _, extra = loss(student, teacher, INPUTS)
            extra.sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
    assert torch.equal(*found)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_classifier()
    before = model.bert.encoder.layer[0].forward
    with recomputed(model, True):
        assert model.bert.encoder.layer[0].forward != before
    assert model.bert.encoder.layer[0].forward == before


def test_a_family_that_is_not_known_is_told() -> None:
    class Other(nn.Module):
        base_model_prefix = "other"
        config = type("Config", (), {"model_type": "other"})()

    message = "gradient_checkpointing: the layers of a model of type 'other' cannot be found"
    with pytest.raises(ModelError, match=message), recomputed(Other(), True):
        pass
