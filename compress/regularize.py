"""Regularizers of fine-tuning: adversarial embeddings (FGM) and consistency under dropout (R-Drop)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import TrainingError
from compress.losses import binary_kl, temperature_kl


class FGM:
    """The fast gradient method on a model's word embeddings; Miyato et al. 2017, equation 5.

    The word embeddings are moved by ε · g / ‖g‖₂. Here g is the loss's gradient of their whole table (V, H), so the
    texts of a batch share one ε. Take the gradients of the clean batch, add those of the perturbed one, step once:

        loss_of(batch).backward()
        with FGM(model, epsilon).perturbed():
            loss_of(batch).backward()
        optimizer.step()

    With micro-batches, each of the two passes goes over all of them, so that the outcome does not depend on their size.
    Raises TrainingError when the embeddings are frozen.
    """

    def __init__(self, model: nn.Module, epsilon: float) -> None:
        source: Any = model
        self._weight: nn.Parameter = source.get_input_embeddings().weight
        self._epsilon = epsilon
        if not self._weight.requires_grad:
            raise TrainingError(
                "adversarial training needs the gradient of the word embeddings, which are frozen; leave out the "
                "adversarial training, or what froze them (LoRA)"
            )

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Move the embeddings along their `.grad`; on leaving they are what they were, bit for bit.

        Nothing moves when the gradient is zero or not finite (a step that loss scaling will skip). Raises TrainingError
        when there is no gradient yet.
        """
        gradient = self._weight.grad
        if gradient is None:
            raise TrainingError("the word embeddings have no gradient; call backward() before perturbing them")
        before = self._weight.detach().clone()
        norm = float(torch.linalg.vector_norm(gradient))
        try:
            if 0 < norm < float("inf"):
                with torch.no_grad():
                    self._weight.add_(gradient, alpha=self._epsilon / norm)
            yield
        finally:
            with torch.no_grad():
                self._weight.copy_(before)


def r_drop(first: Tensor, second: Tensor, *, multi_label: bool) -> Tensor:
    """Return each row's ½ · (KL(P₁ ‖ P₂) + KL(P₂ ‖ P₁)), (R,); Liang et al. 2021, equation 2.

    `first` and `second` are the (R, C) logits of two passes with other dropout masks; gradients flow into both. P is
    the softmax, or with `multi_label` every label's Bernoulli distribution, of which the mean over labels is taken.
    The loss of equation 4 is loss(first) + loss(second) + α · r_drop(first, second).
    """
    divergence = binary_kl if multi_label else temperature_kl
    return (divergence(first, second, 1.0) + divergence(second, first, 1.0)) / 2
