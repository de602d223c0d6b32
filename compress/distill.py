"""Stage two: teach the student the teacher's logits."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from compress import teacher
from compress.errors import ModelError
from compress.losses import distillation_loss
from compress.models import check_same_vocabulary, load_classifier, resolve_model, take_layers
from compress.recipe import Distill
from compress.stage import CHECKPOINTS, Run
from compress.train import Batch, Loss, TrainingSet, train
from service.engine.tokenization import Tokenizer

MODEL = "model"


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write `model/`: the student of the best epoch."""
    recipe, splits = run.recipe, run.splits
    source = run.folder("teacher")
    tokenizer = Tokenizer(source / teacher.TOKENIZER, recipe.data.max_length)
    from_teacher = recipe.student.init == "teacher"
    reference = str(source / teacher.MODEL) if from_teacher else resolve_model(recipe.student.init, run.recipe_folder)
    encoder = load_classifier(reference, splits.labels, recipe.seed, keep_head=from_teacher)
    student = take_layers(encoder, recipe.student.layers, splits.labels, recipe.seed)
    del encoder
    if not from_teacher:
        check_same_vocabulary(reference, tokenizer)
    teacher.check_max_length(student, recipe.data.max_length, reference)
    data = teacher.labeled_set(tokenizer, [*splits.train, *splits.unlabeled], splits.labels)
    logits = np.load(source / teacher.LOGITS)
    summary = train(
        student,
        TrainingSet(data.encodings, data.labels, logits),
        _loss(recipe.distill),
        teacher.accuracy_on(teacher.labeled_set(tokenizer, splits.validation, splits.labels), tokenizer.pad_id),
        recipe.distill,
        pad_id=tokenizer.pad_id,
        seed=recipe.seed + 1,  # not the order of batches that the teacher saw
        folder=folder / CHECKPOINTS,
        console=run.console,
        title="distilling",
    )
    teacher.save_model(student, folder / MODEL)
    return {"parameters": teacher.count_parameters(student), **summary}


def _loss(config: Distill) -> Loss:
    def loss(logits: Tensor, batch: Batch) -> Tensor:
        if batch.teacher_logits is None:
            raise ModelError("distillation needs the teacher's logits")
        return distillation_loss(
            logits,
            batch.teacher_logits,
            batch.labels,
            kind=config.loss,
            temperature=config.temperature,
            hard_label_weight=config.hard_label_weight,
        )

    return loss
