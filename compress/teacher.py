"""Stage: load or fine-tune a teacher; there may be several."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from torch import Tensor, nn

from compress import label
from compress.batches import Batch, TrainingSet, predict_all
from compress.errors import UnloadableError
from compress.examples import Example
from compress.lora import merge, with_lora
from compress.losses import hard_cross_entropy
from compress.models import (
    check_max_length,
    check_vocabulary_size,
    load_classifier,
    load_tokenizer,
    resolve_model,
    save_tokenizer,
)
from compress.recipe_training import Distill, OneTeacher
from compress.soft_loss import distillation
from compress.stage import CHECKPOINTS, Run
from compress.student import check_student
from compress.tasks import TaskSpec
from compress.train import Loss, train
from compress.widths import write_widths
from service.engine.tokenization import Tokenizer

TOKENIZER, MODEL = "tokenizer.json", "model"
FIRST = "teacher"
"""The stage of the teacher that the student is compared with."""
_OTHER_SEEDS = 3
"""Seeds of the other teachers begin so far after the run's; distillation takes those between."""


def other(number: int) -> str:
    """Return the name of the stage of `teacher.others[number]`; the first teacher's is `teacher`."""
    return f"teacher-{number + 2}"


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write `tokenizer.json` and `model/`."""
    return _make(run, run.recipe.teacher, run.recipe.seed, folder, FIRST)


def run_other(run: Run, folder: Path, number: int) -> dict[str, Any]:
    """Write `tokenizer.json` and `model/` of `teacher.others[number]`."""
    seed = run.recipe.seed + _OTHER_SEEDS + number
    return _make(run, run.recipe.teacher.others[number], seed, folder, other(number))


def _make(run: Run, config: OneTeacher, seed: int, folder: Path, stage: str) -> dict[str, Any]:
    recipe, splits, spec = run.recipe, run.splits, run.spec
    reference = resolve_model(config.model, run.recipe_folder)
    fine_tune = config.fine_tune
    save_tokenizer(load_tokenizer(reference), folder / TOKENIZER)
    tokenizer = Tokenizer(folder / TOKENIZER, recipe.data.max_length)
    model = load_classifier(reference, splits.labels, seed, spec, keep_head=fine_tune is None)
    check_max_length(model, recipe.data.max_length, reference)
    check_vocabulary_size(model, tokenizer, reference)
    if stage == FIRST:
        check_student(run, model, folder / TOKENIZER, folder / "student.json")
    summary: dict[str, Any] = {"model": config.model, "parameters": count_parameters(model)}
    if fine_tune is not None:
        if fine_tune.lora is not None:
            model = with_lora(model, fine_tune.lora.rank, fine_tune.lora.alpha, fine_tune.lora.dropout, seed)
        data, loss = _lessons(run, tokenizer)
        summary |= train(
            model,
            data,
            loss,
            validation_score(spec, tokenizer, splits.validation, splits.labels),
            fine_tune,
            pad_id=tokenizer.pad_id,
            seed=seed,
            folder=folder / CHECKPOINTS,
            console=run.console,
            # the stage is in it, since two models may have one name and each training needs a folder of events
            title="fine-tuning" if stage == FIRST else f"fine-tuning {stage} {config.model.rpartition('/')[2]}",
            metric=spec.metric,
            team=run.team,
            events_folder=run.events_folder,
        )
        if fine_tune.lora is not None:
            model = merge(model)
    save_model(model, folder / MODEL)
    return summary


def _lessons(run: Run, tokenizer: Tokenizer) -> tuple[TrainingSet, Loss]:
    """Return what a teacher is fine-tuned on: training rows, and the texts that a language model labeled.

    A row with a true label has the cross-entropy with it, a labeled text the KL from what was said of it.
    """
    splits, spec = run.splits, run.spec
    if run.recipe.teacher.llm is None:
        return TrainingSet(spec.encode(tokenizer, splits.train, splits.labels)), hard_loss(spec)
    logits = label.read_logits(run)
    known = label.answered(logits)
    examples = [*splits.train, *(run.unlabeled[index] for index in known)]
    soft = np.concatenate([np.zeros((len(splits.train), logits.shape[1]), dtype=np.float32), logits[known]])

    loss = distillation(Distill(loss="kl", hard_label_weight=1.0), multi_label=spec.multi_label)
    return TrainingSet(spec.encode(tokenizer, examples, splits.labels), soft), loss


def hard_loss(spec: TaskSpec) -> Loss:
    """Return cross-entropy with the true labels."""

    def loss(rows: Tensor, batch: Batch) -> Tensor:
        return hard_cross_entropy(rows, batch.targets, multi_label=spec.multi_label)

    return loss


def validation_score(
    spec: TaskSpec, tokenizer: Tokenizer, examples: Sequence[Example], labels: Sequence[str]
) -> Callable[[nn.Module], float]:
    """Return a function model -> the task's metric on these examples."""
    encoded = spec.encode(tokenizer, examples, labels)

    def validate(model: nn.Module) -> float:
        logits = predict_all(model, encoded, tokenizer.pad_id)
        counts = spec.count(examples, encoded, spec.decide(logits, None), labels)
        return float(spec.measure(counts))

    return validate


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())


def save_model(model: nn.Module, folder: Path) -> None:
    """Write config.json, model.safetensors and, of a model that was cut, its widths; raises ModelError."""
    unwrapped: Any = model
    try:
        unwrapped.save_pretrained(folder)
        write_widths(model, folder)
    except SafetensorError as error:  # how safetensors says that the disk is full
        raise UnloadableError(f"{folder}: the model cannot be written: {error}") from error
