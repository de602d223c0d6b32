"""Losses against the papers' formulas written out in numpy, and against scipy and scikit-learn."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, rel_entr, softmax
from sklearn.metrics import log_loss

from compress.errors import ModelError
from compress.losses import (
    attention_transfer,
    binary_kl,
    distillation_loss,
    hard_cross_entropy,
    hidden_mse,
    logit_mse,
    relation_kl,
    temperature_kl,
)
from compress.rows import UNLABELED

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(5, 3)) * 3, RNG.normal(size=(5, 3)) * 3
LABELS = np.array([0, 2, 1, UNLABELED, UNLABELED])
MULTI_LABELS = np.array([[0, 1, 1], [0, 0, 0], [1, 1, 1], [UNLABELED] * 3, [UNLABELED] * 3])

LENGTHS = (7, 3, 5)
MASK = torch.tensor([[int(t < length) for t in range(7)] for length in LENGTHS])
HIDDEN, TEACHER_HIDDEN = RNG.normal(size=(3, 7, 8)), RNG.normal(size=(3, 7, 12))
PROJECTION = RNG.normal(size=(8, 12))
SCORES, TEACHER_SCORES = RNG.normal(size=(3, 2, 7, 7)), RNG.normal(size=(3, 2, 7, 7))


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_temperature_kl_is_hintons(temperature: float) -> None:
    p, log_q = softmax(TEACHER / temperature, axis=1), log_softmax(STUDENT / temperature, axis=1)
    expected = temperature**2 * (p * (np.log(p) - log_q)).sum(axis=1)
    assert temperature_kl(tensor(STUDENT), tensor(TEACHER), temperature).numpy() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_binary_kl_is_the_relative_entropy_of_each_label(temperature: float) -> None:
    p, q = expit(TEACHER / temperature), expit(STUDENT / temperature)
    expected = temperature**2 * (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).mean(axis=1)
    assert binary_kl(tensor(STUDENT), tensor(TEACHER), temperature).numpy() == pytest.approx(expected, rel=1e-4)


def test_binary_kl_is_the_two_class_kl_of_a_label_and_its_absence() -> None:
    student, teacher = (np.stack([x[:, 0], np.zeros(5)], axis=1) for x in (STUDENT, TEACHER))
    found = binary_kl(tensor(STUDENT[:, :1]), tensor(TEACHER[:, :1]), 3.0)
    assert torch.allclose(found, temperature_kl(tensor(student), tensor(teacher), 3.0), rtol=1e-4)


def test_binary_kl_of_extreme_logits_is_finite() -> None:
    extreme = torch.tensor([[500.0, -500.0]], requires_grad=True)
    loss = binary_kl(extreme, torch.tensor([[-500.0, 500.0]]), 1.0)
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(500)
    assert torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize("kl", [temperature_kl, binary_kl])
def test_the_gradient_keeps_its_size_at_high_temperature(kl: Callable) -> None:
    """Hinton et al. 2015, equation 4: at high T the gradient tends to that of logit matching, (z - v) / N.

    A Bernoulli variable has the variance 1/4 there, and the mean is over N labels.
    """
    student = tensor(STUDENT - STUDENT.mean(axis=1, keepdims=True)).requires_grad_()
    teacher = tensor(TEACHER - TEACHER.mean(axis=1, keepdims=True))
    kl(student, teacher, 300.0).mean().backward()
    expected = (student.detach() - teacher) / STUDENT.shape[1] / len(STUDENT)
    assert torch.allclose(student.grad, expected if kl is temperature_kl else expected / 4, atol=2e-3)


def test_logit_mse() -> None:
    expected = ((STUDENT - TEACHER) ** 2).mean(axis=1)
    assert logit_mse(tensor(STUDENT), tensor(TEACHER)).numpy() == pytest.approx(expected, rel=1e-5)


def test_hard_cross_entropy_is_scikit_learns_log_loss() -> None:
    probabilities = softmax(STUDENT, axis=1)
    expected = [log_loss([LABELS[i]], probabilities[i : i + 1], labels=[0, 1, 2]) for i in range(3)]
    found = hard_cross_entropy(tensor(STUDENT), tensor(LABELS), multi_label=False)
    assert found.numpy() == pytest.approx([*expected, 0, 0], rel=1e-5)


def test_hard_cross_entropy_of_several_labels_is_the_mean_of_their_log_losses() -> None:
    expected = [log_loss(MULTI_LABELS[i], expit(STUDENT[i]), labels=[0, 1]) for i in range(3)]
    found = hard_cross_entropy(tensor(STUDENT), tensor(MULTI_LABELS), multi_label=True)
    assert found.numpy() == pytest.approx([*expected, 0, 0], rel=1e-5)


@pytest.mark.parametrize("multi_label", [False, True])
def test_rows_without_a_label_give_no_hard_gradient(multi_label: bool) -> None:
    logits = tensor(STUDENT).requires_grad_()
    targets = tensor(MULTI_LABELS if multi_label else LABELS)
    hard_cross_entropy(logits, targets, multi_label=multi_label).sum().backward()
    assert (logits.grad.abs().sum(dim=1) > 0).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("kind", ["mse", "kl"])
@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_mix_is_row_by_row_and_leaves_unlabeled_rows_to_the_teacher(
    kind: str, weight: float, multi_label: bool
) -> None:
    student, teacher, targets = tensor(STUDENT), tensor(TEACHER), tensor(MULTI_LABELS if multi_label else LABELS)
    options = {"kind": kind, "temperature": 2.0, "hard_label_weight": weight, "multi_label": multi_label}
    kl = binary_kl if multi_label else temperature_kl
    expected = (logit_mse(student, teacher) if kind == "mse" else kl(student, teacher, 2.0)).numpy().copy()
    if multi_label:
        p = expit(STUDENT[:3])
        hard = -np.where(MULTI_LABELS[:3] == 1, np.log(p), np.log(1 - p)).mean(axis=1)
    else:
        hard = -log_softmax(STUDENT, axis=1)[[0, 1, 2], LABELS[:3]]
    expected[:3] = (1 - weight) * expected[:3] + weight * hard
    found = distillation_loss(student, teacher, targets, **options)
    assert found.numpy() == pytest.approx(expected, rel=1e-5)
    parts = [distillation_loss(student[part], teacher[part], targets[part], **options) for part in ([0, 3], [1, 2, 4])]
    assert torch.equal(torch.cat(parts), found[[0, 3, 1, 2, 4]])


def test_hidden_mse_is_tinyberts() -> None:
    """Jiao et al. 2020, equation 8, of each text by itself."""
    found = hidden_mse(tensor(HIDDEN), tensor(TEACHER_HIDDEN), MASK, tensor(PROJECTION))
    expected = [((HIDDEN[i, :n] @ PROJECTION - TEACHER_HIDDEN[i, :n]) ** 2).mean() for i, n in enumerate(LENGTHS)]
    assert found.numpy() == pytest.approx(expected, rel=1e-5)
    same_width = hidden_mse(tensor(HIDDEN), tensor(TEACHER_HIDDEN[..., :8]), MASK, None)
    expected = [((HIDDEN[i, :n] - TEACHER_HIDDEN[i, :n, :8]) ** 2).mean() for i, n in enumerate(LENGTHS)]
    assert same_width.numpy() == pytest.approx(expected, rel=1e-5)


def test_attention_transfer_is_tinyberts() -> None:
    """Jiao et al. 2020, equation 7: the mean over heads of the MSE of their matrices."""
    found = attention_transfer(tensor(SCORES), tensor(TEACHER_SCORES), MASK)
    expected = [
        np.mean([((SCORES[i, h, :n, :n] - TEACHER_SCORES[i, h, :n, :n]) ** 2).mean() for h in range(2)])
        for i, n in enumerate(LENGTHS)
    ]
    assert found.numpy() == pytest.approx(expected, rel=1e-5)


def test_attention_transfer_refuses_other_numbers_of_heads() -> None:
    with pytest.raises(ModelError, match=r"the student has 1, the teacher 2; use relation distillation"):
        attention_transfer(tensor(SCORES[:, :1]), tensor(TEACHER_SCORES), MASK)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_relation_kl_is_minilms(heads: int) -> None:
    """Wang et al. 2021: the mean over relation heads and tokens of the KL between softmax(X Xᵀ / √d)."""
    found = relation_kl(tensor(HIDDEN), tensor(TEACHER_HIDDEN), MASK, heads)
    expected = []
    for i, n in enumerate(LENGTHS):
        rows = []
        for student, teacher in zip(
            np.split(HIDDEN[i, :n], heads, axis=1), np.split(TEACHER_HIDDEN[i, :n], heads, axis=1), strict=True
        ):
            ours, theirs = (softmax(x @ x.T / np.sqrt(x.shape[1]), axis=1) for x in (student, teacher))
            rows += list(rel_entr(theirs, ours).sum(axis=1))
        expected.append(np.mean(rows))
    assert found.numpy() == pytest.approx(expected, rel=1e-4)


def test_relation_heads_must_divide_the_width() -> None:
    with pytest.raises(ModelError, match="3 relation heads do not divide a width of 8"):
        relation_kl(tensor(HIDDEN), tensor(TEACHER_HIDDEN), MASK, 3)


INSIDE = {
    "hidden": (lambda s, t, mask: hidden_mse(s, t, mask, None), HIDDEN, TEACHER_HIDDEN[..., :8]),
    "attention": (attention_transfer, SCORES, TEACHER_SCORES),
    "relation": (lambda s, t, mask: relation_kl(s, t, mask, 2), HIDDEN, TEACHER_HIDDEN),
}


@pytest.mark.parametrize("name", INSIDE)
def test_padding_neither_counts_nor_gets_a_gradient(name: str) -> None:
    loss, student, teacher = INSIDE[name]
    ours = tensor(student).requires_grad_()
    found = loss(ours, tensor(teacher), MASK)
    found.sum().backward()
    changed = student.copy()
    for i, length in enumerate(LENGTHS):
        padding = ours.grad[i, length:] if name != "attention" else ours.grad[i, :, length:]
        assert not padding.any()
        if name == "attention":
            changed[i, :, length:], changed[i, :, :, length:] = 1e4, 1e4
        else:
            changed[i, length:] = 1e4
    assert torch.equal(loss(tensor(changed), tensor(teacher), MASK), found)


@pytest.mark.parametrize("name", INSIDE)
def test_a_batch_is_its_micro_batches(name: str) -> None:
    loss, student, teacher = INSIDE[name]
    whole = loss(tensor(student), tensor(teacher), MASK)
    parts = [loss(tensor(student[part]), tensor(teacher[part]), MASK[part]) for part in ([0], [1, 2])]
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (lambda x, y: logit_mse(x, y), TEACHER),
        (lambda x, y: temperature_kl(x, y, 3.0), TEACHER),
        (lambda x, y: binary_kl(x, y, 3.0), TEACHER),
        (lambda x, y: hidden_mse(x, y, MASK, None), HIDDEN),
        (lambda x, y: attention_transfer(x, y, MASK), SCORES),
        (lambda x, y: relation_kl(x, y, MASK, 2), HIDDEN),
    ],
    ids=["mse", "kl", "binary", "hidden", "attention", "relation"],
)
def test_a_perfect_student_has_no_loss_and_no_gradient(loss: Callable, target: np.ndarray) -> None:
    student = tensor(target).requires_grad_()
    values = loss(student, tensor(target))
    values.sum().backward()
    assert values.detach().numpy() == pytest.approx(0, abs=1e-6)
    assert student.grad.numpy() == pytest.approx(0, abs=1e-6)
