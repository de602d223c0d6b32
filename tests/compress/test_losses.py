"""Losses against the papers' formulas written out in numpy."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from compress.losses import UNLABELED, distillation_loss, logit_mse, temperature_kl

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(5, 3)) * 3, RNG.normal(size=(5, 3)) * 3
LABELS = np.array([0, 2, 1, UNLABELED, UNLABELED])


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_temperature_kl_is_hintons(temperature: float) -> None:
    p, log_q = softmax(TEACHER / temperature, axis=1), log_softmax(STUDENT / temperature, axis=1)
    expected = temperature**2 * (p * (np.log(p) - log_q)).sum(axis=1)
    assert temperature_kl(tensor(STUDENT), tensor(TEACHER), temperature).numpy() == pytest.approx(expected, rel=1e-4)


def test_the_gradient_keeps_its_size_at_high_temperature() -> None:
    """Hinton et al. 2015, equation 4: at high T the gradient tends to that of logit matching, (z - v) / N."""
    student = tensor(STUDENT - STUDENT.mean(axis=1, keepdims=True)).requires_grad_()
    teacher = tensor(TEACHER - TEACHER.mean(axis=1, keepdims=True))
    temperature_kl(student, teacher, 300.0).mean().backward()
    expected = (student.detach() - teacher) / STUDENT.shape[1] / len(STUDENT)
    assert torch.allclose(student.grad, expected, atol=2e-3)


def test_logit_mse() -> None:
    expected = ((STUDENT - TEACHER) ** 2).mean(axis=1)
    assert logit_mse(tensor(STUDENT), tensor(TEACHER)).numpy() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["mse", "kl"])
@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_mix_is_row_by_row_and_leaves_unlabeled_rows_to_the_teacher(kind: str, weight: float) -> None:
    student, teacher, labels = tensor(STUDENT), tensor(TEACHER), tensor(LABELS)
    options = {"kind": kind, "temperature": 2.0, "hard_label_weight": weight}
    soft = logit_mse(student, teacher) if kind == "mse" else temperature_kl(student, teacher, 2.0)
    hard = -log_softmax(STUDENT, axis=1)[[0, 1, 2], LABELS[:3]]
    rows = soft.numpy().copy()
    rows[:3] = (1 - weight) * rows[:3] + weight * hard
    found = float(distillation_loss(student, teacher, labels, **options))
    assert found == pytest.approx(rows.mean(), rel=1e-5)
    parts = [distillation_loss(student[part], teacher[part], labels[part], **options) for part in ([0, 3], [1, 2, 4])]
    assert float(2 * parts[0] + 3 * parts[1]) / 5 == pytest.approx(found, rel=1e-5)


def test_a_perfect_student_has_no_loss() -> None:
    assert float(logit_mse(tensor(TEACHER), tensor(TEACHER)).max()) == 0
    assert float(temperature_kl(tensor(TEACHER), tensor(TEACHER), 3.0).max()) == pytest.approx(0, abs=1e-6)
