"""Losses against the papers' formulas written out in numpy."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from compress.losses import UNLABELED, distillation_loss, hard_cross_entropy, logit_mse, temperature_kl

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(5, 3)) * 3, RNG.normal(size=(5, 3)) * 3
LABELS = np.array([0, 2, 1, UNLABELED, UNLABELED])


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_temperature_kl_is_hintons(temperature: float) -> None:
    p, log_q = softmax(TEACHER / temperature, axis=1), log_softmax(STUDENT / temperature, axis=1)
    expected = temperature**2 * (p * (np.log(p) - log_q)).sum(axis=1).mean()
    assert float(temperature_kl(tensor(STUDENT), tensor(TEACHER), temperature)) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_keeps_its_size_at_high_temperature() -> None:
    """Hinton et al. 2015, equation 4: at high T the gradient tends to that of logit matching, (z - v) / N."""
    student = tensor(STUDENT - STUDENT.mean(axis=1, keepdims=True)).requires_grad_()
    teacher = tensor(TEACHER - TEACHER.mean(axis=1, keepdims=True))
    temperature_kl(student, teacher, 300.0).backward()
    expected = (student.detach() - teacher) / STUDENT.shape[1] / len(STUDENT)
    assert torch.allclose(student.grad, expected, atol=2e-3)


def test_logit_mse() -> None:
    assert float(logit_mse(tensor(STUDENT), tensor(TEACHER))) == pytest.approx(((STUDENT - TEACHER) ** 2).mean())


def test_cross_entropy_skips_unlabeled_rows() -> None:
    expected = -log_softmax(STUDENT, axis=1)[[0, 1, 2], LABELS[:3]].mean()
    assert float(hard_cross_entropy(tensor(STUDENT), tensor(LABELS))) == pytest.approx(expected, rel=1e-5)
    none = hard_cross_entropy(tensor(STUDENT).requires_grad_(), torch.full((5,), UNLABELED))
    none.backward()  # still part of the graph
    assert float(none.detach()) == 0


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_the_mix_is_linear(kind: str) -> None:
    def mixed(weight: float) -> float:
        loss = distillation_loss(
            tensor(STUDENT), tensor(TEACHER), tensor(LABELS), kind=kind, temperature=2.0, hard_label_weight=weight
        )
        return float(loss)

    soft = (
        logit_mse(tensor(STUDENT), tensor(TEACHER))
        if kind == "mse"
        else temperature_kl(tensor(STUDENT), tensor(TEACHER), 2.0)
    )
    hard = hard_cross_entropy(tensor(STUDENT), tensor(LABELS))
    assert mixed(0.0) == pytest.approx(float(soft))
    assert mixed(1.0) == pytest.approx(float(hard))
    assert mixed(0.25) == pytest.approx(0.75 * float(soft) + 0.25 * float(hard))


def test_a_perfect_student_has_no_loss() -> None:
    assert float(logit_mse(tensor(TEACHER), tensor(TEACHER))) == 0
    assert float(temperature_kl(tensor(TEACHER), tensor(TEACHER), 3.0)) == pytest.approx(0, abs=1e-6)
