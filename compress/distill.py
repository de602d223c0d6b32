"""Stage: teach the student what the teacher says."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from compress import targets, teacher
from compress.batches import Batch, TrainingSet
from compress.errors import ModelError
from compress.losses import distillation_loss
from compress.models import load_classifier
from compress.qat import fake_quantized
from compress.recipe import Distill
from compress.stage import CHECKPOINTS, Run
from compress.student import inside_loss, make_student
from compress.train import Beside, Loss, train

TOKENIZER, MODEL = "tokenizer.json", "model"
_QAT_RATE = 0.1


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write `model/`, the student of the best epoch, and its `tokenizer.json`."""
    recipe, splits, spec = run.recipe, run.splits, run.spec
    source = run.folder("teacher")
    model = load_classifier(str(source / teacher.MODEL), splits.labels, recipe.seed, spec, keep_head=True)
    student, tokenizer = make_student(run, model, source / teacher.TOKENIZER, folder / TOKENIZER)
    inside = inside_loss(run, student, model)
    beside = None if inside is None else Beside(inside, model)
    examples = targets.transfer_set(run, run.folder("targets"))
    logits = np.load(run.folder("targets") / targets.LOGITS, mmap_mode="r")
    data = TrainingSet(spec.encode(tokenizer, examples, splits.labels), logits)
    validate = teacher.validation_score(spec, tokenizer, splits.validation, splits.labels)
    options: dict[str, Any] = {
        "pad_id": tokenizer.pad_id,
        "console": run.console,
        "metric": spec.metric,
        "team": run.team,
        "events_folder": run.events_folder,
    }
    loss, config = distillation(recipe.distill, multi_label=spec.multi_label), recipe.distill
    summary = train(
        student,
        data,
        loss,
        validate,
        config,
        seed=recipe.seed + 1,  # not the order of batches that the teacher saw
        folder=folder / CHECKPOINTS / "float",
        title="distilling",
        beside=beside,
        **options,
    )
    if config.quantization_aware_epochs:
        changed = {
            "epochs": config.quantization_aware_epochs,
            "learning_rate": config.learning_rate * _QAT_RATE,
        }
        bits, tables = recipe.quantize.weight_bits, recipe.quantize.embeddings
        with fake_quantized(student, weight_bits=bits, embeddings=tables):
            aware = train(
                student,
                data,
                loss,
                validate,
                config.model_copy(update=changed),
                seed=recipe.seed + 2,
                folder=folder / CHECKPOINTS / "quantized",
                title="quantization-aware",
                **options,
            )
        summary |= {"quantization_aware": aware}
    teacher.save_model(student, folder / MODEL)
    return {"parameters": teacher.count_parameters(student), "texts": len(examples), **summary}


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
