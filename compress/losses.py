"""Distillation losses: pure functions of tensors."""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

UNLABELED = -100
"""Label id of a text without a label; cross-entropy skips it."""


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of logits, scalar; Ba & Caruana 2014, equation 1.

    `student` and `teacher` are (B, C) logits.
    """
    return F.mse_loss(student.float(), teacher.float())


def temperature_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(softmax(teacher / T) ‖ softmax(student / T)), mean over rows; Hinton et al. 2015, section 2.

    `student` and `teacher` are (B, C) logits. The factor T² keeps the gradient's size independent of T.
    """
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def hard_cross_entropy(student: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of (B, C) logits with (B,) int64 labels, mean over the labeled rows; 0 if none is."""
    if bool((labels == UNLABELED).all()):
        return student.sum() * 0.0
    return F.cross_entropy(student.float(), labels, ignore_index=UNLABELED)


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    kind: str,
    temperature: float,
    hard_label_weight: float,
) -> Tensor:
    """Mix soft and hard targets: (1 − w) · soft + w · cross-entropy, w being `hard_label_weight`."""
    soft = logit_mse(student, teacher) if kind == "mse" else temperature_kl(student, teacher, temperature)
    if hard_label_weight == 0:
        return soft
    hard: Tensor = hard_cross_entropy(student, labels)
    return torch.lerp(soft, hard, hard_label_weight)
