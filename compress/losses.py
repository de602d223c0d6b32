"""Distillation losses: pure functions of tensors."""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

UNLABELED = -100
"""Label id of a text without a label; cross-entropy skips it."""


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return each row's mean squared difference of logits, (B,); Ba & Caruana 2014, equation 1.

    `student` and `teacher` are (B, C) logits.
    """
    return F.mse_loss(student.float(), teacher.float(), reduction="none").mean(dim=-1)


def temperature_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return each row's T² · KL(softmax(teacher / T) ‖ softmax(student / T)), (B,); Hinton et al. 2015, section 2.

    `student` and `teacher` are (B, C) logits. The factor T² keeps the gradient's size independent of T.
    """
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=-1) * temperature**2


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    kind: str,
    temperature: float,
    hard_label_weight: float,
) -> Tensor:
    """Return the mean over rows, a scalar, of (1 − w) · soft + w · cross-entropy, w being `hard_label_weight`.

    `student` and `teacher` are (B, C) logits, `labels` (B,) int64. A row without a label has its soft loss alone, so
    that a batch's loss is the same however it is cut into micro-batches.
    """
    soft = logit_mse(student, teacher) if kind == "mse" else temperature_kl(student, teacher, temperature)
    if hard_label_weight == 0:
        return soft.mean()
    hard = F.cross_entropy(student.float(), labels, ignore_index=UNLABELED, reduction="none")
    weight = hard_label_weight * (labels != UNLABELED).float()
    return torch.lerp(soft, hard, weight).mean()
