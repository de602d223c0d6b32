"""FGM against the perturbation computed by hand; R-Drop against scipy."""

import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr, softmax

from compress.errors import TrainingError
from compress.lora import with_lora
from compress.regularize import FGM, r_drop
from tests.support.models import FAMILIES, tiny_classifier

INPUTS = {
    "input_ids": torch.tensor([[2, 5, 6, 7, 3], [2, 8, 9, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
}
LABELS = torch.tensor([0, 1])
RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 3))


def loss(model: torch.nn.Module) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(**INPUTS).logits, LABELS)


@pytest.mark.parametrize("family", FAMILIES)
def test_fgm_moves_the_embeddings_along_the_gradient_and_restores_them(family: str) -> None:
    model = tiny_classifier(family)
    weight = model.get_input_embeddings().weight
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clean = loss(model)
    clean.backward()
    gradient = weight.grad.clone()
    with FGM(model, 0.5).perturbed():
        name = next(name for name, parameter in model.named_parameters() if parameter is weight)
        expected = before[name] + 0.5 * gradient / np.sqrt(float((gradient.double() ** 2).sum()))
        assert torch.allclose(weight, expected, atol=1e-6)
        adversarial = loss(model)
        adversarial.backward()
    assert float(adversarial.detach()) > float(clean.detach())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not torch.allclose(weight.grad, gradient)  # both passes count


def test_fgm_restores_the_embeddings_when_the_pass_fails() -> None:
    model = tiny_classifier()
    weight = model.get_input_embeddings().weight
    before = weight.detach().clone()
    loss(model).backward()
    with pytest.raises(ZeroDivisionError), FGM(model, 0.5).perturbed():
        raise ZeroDivisionError
    assert torch.equal(weight, before)


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_fgm_stays_put_without_a_direction(value: float) -> None:
    model = tiny_classifier()
    weight = model.get_input_embeddings().weight
    before = weight.detach().clone()
    weight.grad = torch.full_like(weight, value)
    with FGM(model, 0.5).perturbed():
        assert torch.equal(weight, before)


def test_fgm_needs_a_gradient() -> None:
    model = tiny_classifier()
    with pytest.raises(TrainingError, match="have no gradient; call backward"), FGM(model, 0.5).perturbed():
        pass
    model.get_input_embeddings().requires_grad_(False)
    with pytest.raises(TrainingError, match="frozen"):
        FGM(model, 0.5)


def test_fgm_and_lora_exclude_each_other() -> None:
    pytest.importorskip("peft")
    with pytest.raises(TrainingError, match="LoRA"):
        FGM(with_lora(tiny_classifier(), 2, 4, 0.0), 0.5)


def test_r_drop_is_the_mean_of_both_divergences() -> None:
    """Wu et al. 2021, equation 2."""
    p, q = softmax(FIRST, axis=1), softmax(SECOND, axis=1)
    expected = (rel_entr(p, q) + rel_entr(q, p)).sum(axis=1) / 2
    found = r_drop(torch.from_numpy(FIRST), torch.from_numpy(SECOND), multi_label=False)
    assert found.numpy() == pytest.approx(expected, rel=1e-4)
    p, q = expit(FIRST), expit(SECOND)
    expected = (rel_entr(p, q) + rel_entr(q, p) + rel_entr(1 - p, 1 - q) + rel_entr(1 - q, 1 - p)).mean(axis=1) / 2
    found = r_drop(torch.from_numpy(FIRST), torch.from_numpy(SECOND), multi_label=True)
    assert found.numpy() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("multi_label", [False, True])
def test_r_drop_pulls_both_passes_and_rests_where_they_agree(multi_label: bool) -> None:
    first, second = (torch.from_numpy(x).float().requires_grad_() for x in (FIRST, SECOND))
    r_drop(first, second, multi_label=multi_label).sum().backward()
    step = 1e-2  # against a difference quotient
    for passed, other in ((first, second), (second, first)):
        bump = torch.zeros_like(passed)
        bump[1, 2] = step
        above, below = (
            float(r_drop((passed + b).detach().double(), other.detach(), multi_label=multi_label).sum())
            for b in (bump, -bump)
        )
        assert float(passed.grad[1, 2]) == pytest.approx((above - below) / (2 * step), rel=2e-2, abs=1e-4)
    same = torch.from_numpy(FIRST).requires_grad_()
    agreed = r_drop(same, same, multi_label=multi_label)
    agreed.sum().backward()
    assert agreed.detach().numpy() == pytest.approx(0, abs=1e-6)
    assert same.grad.numpy() == pytest.approx(0, abs=1e-6)
