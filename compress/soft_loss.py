"""The loss on logits of those who learn from a teacher."""

from torch import Tensor

from compress.batches import Batch
from compress.errors import ModelError
from compress.losses import distillation_loss
from compress.recipe_training import Distill
from compress.train import Loss


def distillation(config: Distill, *, multi_label: bool) -> Loss:
    """Return the loss on logits that a recipe asks for."""

    def loss(rows: Tensor, batch: Batch) -> Tensor:
        if batch.teacher_logits is None:
            raise ModelError("distillation needs the teacher's logits")
        return distillation_loss(
            rows,
            batch.teacher_logits,
            batch.targets,
            kind=config.loss,
            temperature=config.temperature,
            hard_label_weight=config.hard_label_weight,
            multi_label=multi_label,
        )

    return loss
