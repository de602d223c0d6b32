"""Distillation losses: pure functions of tensors, with the equation each one is.

Losses on logits take rows (R, C) and give one value a row, (R,); losses on what lies inside a model take texts
(B, T, …) and give one value a text, (B,). So a batch's loss is the same however it is cut into micro-batches. Padding
never counts. Every loss is computed in float32.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from compress.errors import ModelError
from compress.rows import UNLABELED


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return each row's mean squared difference of logits, (R,); Ba & Caruana 2014, equation 1.

    `student` and `teacher` are (R, C) logits.
    """
    return F.mse_loss(student.float(), teacher.float(), reduction="none").mean(dim=-1)


def temperature_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return each row's T² · KL(softmax(teacher / T) ‖ softmax(student / T)), (R,); Hinton et al. 2015, section 2.

    `student` and `teacher` are (R, C) logits; where rows are tokens, this is the KL per token. The factor T² keeps the
    gradient's size independent of T.
    """
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=-1) * temperature**2


def binary_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return each row's T² · mean over labels of KL(Bernoulli(σ(teacher / T)) ‖ Bernoulli(σ(student / T))), (R,).

    `student` and `teacher` are (R, C) logits of independent labels. It is `temperature_kl` of each label against its
    absence: softmax of the logits (z, 0) is (σ(z), 1 − σ(z)). The mean over labels is that of `hard_cross_entropy`.
    """
    student, teacher = student.float() / temperature, teacher.float() / temperature
    present = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    absent = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return (present + absent).mean(dim=-1) * temperature**2


def hard_cross_entropy(logits: Tensor, targets: Tensor, *, multi_label: bool) -> Tensor:
    """Return each row's cross-entropy with its true label, (R,); 0 for rows without one.

    `logits` are (R, C). `targets` are int64: (R,) class ids, or with `multi_label` (R, C) zeros and ones, of which the
    mean over labels of the binary cross-entropy is taken. UNLABELED, in the whole row, marks a row without a label.
    """
    if not multi_label:
        return F.cross_entropy(logits.float(), targets, ignore_index=UNLABELED, reduction="none")
    truth = targets.clamp(min=0).float()
    rows = F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none").mean(dim=-1)
    return rows * _labeled(targets, multi_label=True)


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    *,
    kind: str,
    temperature: float,
    hard_label_weight: float,
    multi_label: bool = False,
) -> Tensor:
    """Return each row's (1 − w) · soft + w · hard, (R,), w being `hard_label_weight`; Hinton et al. 2015, section 2.

    soft is `logit_mse` for kind "mse", else the KL of the task; hard is `hard_cross_entropy`, whose `targets` these
    are. `student` and `teacher` are (R, C) logits. A row without a label has its soft loss alone.
    """
    if kind == "mse":
        soft = logit_mse(student, teacher)
    else:
        soft = (binary_kl if multi_label else temperature_kl)(student, teacher, temperature)
    if hard_label_weight == 0:
        return soft
    hard = hard_cross_entropy(student, targets, multi_label=multi_label)
    return torch.lerp(soft, hard, hard_label_weight * _labeled(targets, multi_label=multi_label))


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor, projection: Tensor | None) -> Tensor:
    """Return each text's MSE(student · W, teacher) over tokens and width, (B,); TinyBERT, equations 8 and 9.

    `student` is (B, T, Hs) and `teacher` (B, T, Ht): hidden states of one layer (equation 8) or embeddings
    (equation 9). `mask` (B, T) is 1 for tokens, 0 for padding. `projection` is W (Hs, Ht), or None where Hs = Ht and
    both are compared as they are. Jiao et al. 2020.
    """
    projected = student.float() if projection is None else student.float() @ projection.float()  # (B, T, Ht)
    return _mean_over_tokens((projected - teacher.float()).square().mean(dim=-1), mask)


def attention_transfer(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Return each text's MSE of attention scores over heads and pairs of tokens, (B,); TinyBERT, equation 7.

    `student` and `teacher` are (B, heads, T, T), of query by key: like the paper's, before the softmax and before
    padding is masked out. `mask` (B, T) is 1 for tokens, 0 for padding. Jiao et al. 2020. Raises ModelError when the
    numbers of heads differ, since heads are compared one to one.
    """
    if student.shape[1] != teacher.shape[1]:
        raise ModelError(
            f"attention transfer compares heads one to one: the student has {student.shape[1]}, the teacher "
            f"{teacher.shape[1]}; use relation distillation, which splits both into the same number"
        )
    pairs = (mask[:, :, None] * mask[:, None, :]).float()  # (B, T, T)
    error = (student.float() - teacher.float()).square().mean(dim=1)  # (B, T, T)
    return (error * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2))


def relation_kl(student: Tensor, teacher: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Return each text's KL(R of the teacher ‖ R of the student), the mean over heads and tokens, (B,); MiniLMv2.

    `student` is (B, T, Ds) and `teacher` (B, T, Dt): the queries, keys or values of one layer, all attention heads
    side by side. Both are split anew into `heads` relation heads of d wide, and R = softmax(X · Xᵀ / √d) over the
    tokens for which `mask` (B, T) is 1. Wang et al. 2021, section 3.1, which adds up this loss of queries, of keys and
    of values. Raises ModelError when `heads` does not divide a width.
    """
    log_student, log_teacher = _log_relations(student, mask, heads), _log_relations(teacher, mask, heads)
    kl = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=-1)  # (B, heads, T)
    return _mean_over_tokens(kl.mean(dim=1), mask)


def _log_relations(vectors: Tensor, mask: Tensor, heads: int) -> Tensor:
    texts, tokens, width = vectors.shape
    if width % heads:
        raise ModelError(f"{heads} relation heads do not divide a width of {width}; choose a number that does")
    split = vectors.float().view(texts, tokens, heads, width // heads).transpose(1, 2)  # (B, heads, T, d)
    scores = split @ split.transpose(-1, -2) / math.sqrt(width // heads)  # (B, heads, T, T)
    return scores.masked_fill(mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min).log_softmax(dim=-1)


def _mean_over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    weights = mask.to(values.dtype)  # (B, T)
    return (values * weights).sum(dim=1) / weights.sum(dim=1)


def _labeled(targets: Tensor, *, multi_label: bool) -> Tensor:
    """Return 1.0 for rows with a label, 0.0 for the others, (R,)."""
    labeled = targets != UNLABELED
    return (labeled.all(dim=-1) if multi_label else labeled).float()
