"""Stage: load or fine-tune the teacher."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from compress.batches import Batch, TrainingSet, predict_all
from compress.errors import ModelError
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
from compress.stage import CHECKPOINTS, Run
from compress.student import check_student
from compress.tasks import TaskSpec
from compress.train import Loss, train
from compress.widths import write_widths
from service.engine.tokenization import Tokenizer

TOKENIZER, MODEL = "tokenizer.json", "model"


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write `tokenizer.json` and `model/`."""
    recipe, splits, spec = run.recipe, run.splits, run.spec
    reference = resolve_model(recipe.teacher.model, run.recipe_folder)
    fine_tune = recipe.teacher.fine_tune
    save_tokenizer(load_tokenizer(reference), folder / TOKENIZER)
    tokenizer = Tokenizer(folder / TOKENIZER, recipe.data.max_length)
    model = load_classifier(reference, splits.labels, recipe.seed, spec, keep_head=fine_tune is None)
    check_max_length(model, recipe.data.max_length, reference)
    check_vocabulary_size(model, tokenizer, reference)
    check_student(run, model, folder / TOKENIZER, folder / "student.json")
    summary: dict[str, Any] = {"model": recipe.teacher.model, "parameters": count_parameters(model)}
    if fine_tune is not None:
        if fine_tune.lora is not None:
            model = with_lora(model, fine_tune.lora.rank, fine_tune.lora.alpha, fine_tune.lora.dropout, recipe.seed)
        summary |= train(
            model,
            TrainingSet(spec.encode(tokenizer, splits.train, splits.labels)),
            hard_loss(spec),
            validation_score(spec, tokenizer, splits.validation, splits.labels),
            fine_tune,
            pad_id=tokenizer.pad_id,
            seed=recipe.seed,
            folder=folder / CHECKPOINTS,
            console=run.console,
            title="fine-tuning",
            metric=spec.metric,
        )
        if fine_tune.lora is not None:
            model = merge(model)
    save_model(model, folder / MODEL)
    return summary


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
        raise ModelError(f"{folder}: the model cannot be written: {error}") from error
