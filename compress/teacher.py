"""Stage one: load or fine-tune the teacher, and cache its logits."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from compress.data import Example
from compress.errors import ModelError
from compress.losses import UNLABELED
from compress.models import load_classifier, load_tokenizer, resolve_model, save_tokenizer, take_layers
from compress.progress import track
from compress.stage import CHECKPOINTS, Run
from compress.train import Batch, TrainingSet, best_device, predict, predict_all, train
from service.engine.tokenization import Encoding, Tokenizer

TOKENIZER, MODEL, LOGITS = "tokenizer.json", "model", "logits.npy"


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write `tokenizer.json`, `model/` and `logits.npy` (train rows, then unlabeled rows; (N, C) float32)."""
    recipe, splits = run.recipe, run.splits
    reference = resolve_model(recipe.teacher.model, run.recipe_folder)
    save_tokenizer(load_tokenizer(reference), folder / TOKENIZER)
    tokenizer = Tokenizer(folder / TOKENIZER, recipe.data.max_length)
    model = load_classifier(reference, splits.labels, recipe.seed, keep_head=recipe.teacher.fine_tune is None)
    check_max_length(model, recipe.data.max_length, reference)
    if recipe.student.init == "teacher":  # found out now, not after the teacher's training
        take_layers(model, recipe.student.layers, splits.labels, recipe.seed)
    summary: dict[str, Any] = {"model": recipe.teacher.model, "parameters": count_parameters(model)}
    training = labeled_set(tokenizer, splits.train, splits.labels)
    validation = labeled_set(tokenizer, splits.validation, splits.labels)
    if recipe.teacher.fine_tune is not None:
        summary |= train(
            model,
            training,
            _cross_entropy,
            accuracy_on(validation, tokenizer.pad_id),
            recipe.teacher.fine_tune,
            pad_id=tokenizer.pad_id,
            seed=recipe.seed,
            folder=folder / CHECKPOINTS,
            console=run.console,
            title="fine-tuning",
        )
    save_model(model, folder / MODEL)
    encodings = [*training.encodings, *tokenizer.encode([e.input for e in splits.unlabeled])]
    np.save(folder / LOGITS, _cached_logits(model, encodings, tokenizer.pad_id, run))
    return summary


def labeled_set(tokenizer: Tokenizer, examples: list[Example], labels: list[str]) -> TrainingSet:
    """Tokenise examples; an unlabeled one gets the label id UNLABELED."""
    ids = {label: index for index, label in enumerate(labels)}
    targets = [UNLABELED if e.label is None else ids[e.label] for e in examples]
    return TrainingSet(tokenizer.encode([e.input for e in examples]), np.array(targets, dtype=np.int64))


def accuracy_on(data: TrainingSet, pad_id: int) -> Any:
    """Return a function model -> accuracy on `data`."""

    def validate(model: nn.Module) -> float:
        predicted = predict_all(model, data.encodings, pad_id).argmax(axis=1)
        return float((predicted == data.labels).mean())

    return validate


def check_max_length(model: nn.Module, max_length: int, reference: str) -> None:
    """Raise ModelError when the model has no positions for `max_length` tokens."""
    config: Any = model.config
    # RoBERTa-like models number positions from pad_token_id + 1
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    limit = config.max_position_embeddings - offset
    if max_length > limit:
        raise ModelError(f"data.max_length is {max_length}, but {reference} takes at most {limit} tokens")


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())


def save_model(model: nn.Module, folder: Path) -> None:
    """Write config.json and model.safetensors."""
    unwrapped: Any = model
    unwrapped.save_pretrained(folder)


def _cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(logits, batch.labels)


def _cached_logits(
    model: nn.Module, encodings: list[Encoding], pad_id: int, run: Run
) -> np.ndarray[Any, np.dtype[np.float32]]:
    model.to(best_device())
    result = np.empty((len(encodings), len(run.splits.labels)), dtype=np.float32)
    with track(run.console, "teacher's logits", len(encodings)) as advance:
        for indices, logits in predict(model, encodings, pad_id):
            result[indices] = logits
            advance(len(indices), "")
    model.to(torch.device("cpu"))
    return result
