"""What a fine-tuned classifier says of itself: its task, its labels, how long its texts may be."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from bundle.manifest import Task
from compress import tags
from compress.errors import ModelError
from compress.models import PACKAGE_PREFIX, label_names
from compress.tasks import TaskSpec

_HEADS = {"ForSequenceClassification": "text", "ForTokenClassification": "token"}
# of GLUE and its kin: the tasks on two texts, as older versions of transformers' examples wrote them to the config
_PAIR_TASKS = {"anli", "mnli", "mnli-mm", "mrpc", "paws", "qnli", "qqp", "rte", "scitail", "snli", "wnli", "xnli"}
_NLI_LABELS = {"entailment", "not_entailment", "contradiction", "neutral"}

MIN_LENGTH, USUAL_LENGTH = 8, 512
_LARGEST_FILE = 2**31
"""Bytes of an ONNX file that holds its own weights."""


def read_config(reference: str, location: str) -> Any:
    """Return the configuration of a model at `location`, which the user called `reference`; raises ModelError."""
    try:
        return AutoConfig.from_pretrained(location, trust_remote_code=False)
    except Exception as error:  # transformers and the hub raise many kinds
        raise ModelError(
            f"{reference}: its config.json cannot be read: {_first_line(error)}; expected a local folder saved with "
            f"save_pretrained, a hub id (needs a network) or {PACKAGE_PREFIX}NAME"
        ) from error


def task_of(config: Any, reference: str, wanted: Task | None, data_has_pairs: Callable[[], bool]) -> Task:
    """Return the task a model was fine-tuned for, or `wanted` where its head can do that.

    `data_has_pairs` is asked only where the configuration leaves it open whether the model reads pairs. Raises
    ModelError for models that are no classifiers.
    """
    head = _head(config, reference)
    if wanted is not None and (wanted is Task.TOKEN_CLASSIFICATION) != (head == "token"):
        fit = [task.value for task in Task if (task is Task.TOKEN_CLASSIFICATION) == (head == "token")]
        raise ModelError(
            f"{reference}: found {', '.join(config.architectures)}, which cannot do {wanted.value}; expected --task "
            f"{' or '.join(fit)}"
        )
    if head == "token":
        return Task.TOKEN_CLASSIFICATION
    several = wanted is Task.MULTI_LABEL or config.problem_type == "multi_label_classification"
    if config.problem_type == "regression" or (config.num_labels == 1 and not several):
        raise ModelError(
            f"{reference}: found a regression model ({config.num_labels} output, problem_type {config.problem_type}); "
            "expected a classifier; if its one output says yes or no through a sigmoid, give --task multi-label"
        )
    if wanted is not None:
        return wanted
    if several:
        return Task.MULTI_LABEL
    return Task.PAIR if _reads_pairs(config) or data_has_pairs() else Task.SINGLE_LABEL


def labels_of(config: Any, reference: str, names: Sequence[str] | None, spec: TaskSpec) -> list[str]:
    """Return the labels in the order of the model's outputs, or `names` in their place; raises ModelError."""
    own = [str(config.id2label.get(index, "")) for index in range(config.num_labels)]
    labels = list(own if names is None else names)
    advice = "name them in this order with --labels a,b,…"
    if len(labels) != len(own):
        raise ModelError(f"--labels has {len(labels)} names, but {reference} has {len(own)} labels: {', '.join(own)}")
    if "" in labels:
        raise ModelError(f"{reference}: label {labels.index('')} of {labels} has no name; {advice}")
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ModelError(f"{reference}: its labels {labels} hold {twice[0]!r} twice; {advice}")
    if spec.task is Task.TOKEN_CLASSIFICATION:
        try:
            tags.check_tags(labels)
        except ValueError as error:
            raise ModelError(f"{reference}: its labels {labels} are not tags of entities: {error}; {advice}") from error
    return labels


def load_original(reference: str, location: str, spec: TaskSpec, labels: Sequence[str]) -> nn.Module:
    """Load a fine-tuned classifier in float32, its head as it is, with these names for its labels.

    Raises ModelError, also when a weight is not in the model's files and would be made up.
    """
    try:
        model, found = spec.model_class.from_pretrained(
            location, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # transformers, safetensors and torch raise many kinds
        raise ModelError(f"{reference}: cannot be loaded for {spec.task.value}: {_first_line(error)}") from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelError(
            f"{reference}: its files lack {len(missing)} weights, such as {missing[0]}: it was not fine-tuned as a "
            f"{type(model).__name__}; expected a model saved after fine-tuning"
        )
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if size >= _LARGEST_FILE:
        raise ModelError(f"{reference}: {size / 1e9:.1f} GB of weights; one ONNX file can hold less than 2.1 GB")
    model.config.update(label_names(list(labels)) | {"problem_type": spec.problem_type})
    return model.eval()  # type: ignore[no-any-return]


def set_padding(model: nn.Module, tokenizer: Any, reference: str) -> None:
    """Make the model pad as its tokenizer does, where it does not say how; raises ModelError when neither does."""
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{reference}: its tokenizer has no padding token, without which texts cannot be batched")
    config: Any = model.config
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id


def length_of(model: nn.Module, tokenizer: Any, reference: str, wanted: int | None) -> int:
    """Return how many tokens of a text are read: `wanted`, or what the model and its tokenizer take up to 512."""
    positions = _positions(model)
    if wanted is None:
        stated = int(tokenizer.model_max_length)  # 10^30 where nobody set it
        return min(
            length for length in (positions, stated, USUAL_LENGTH) if length is not None and length >= MIN_LENGTH
        )
    if wanted < MIN_LENGTH or (positions is not None and wanted > positions):
        most = "" if positions is None else f" to {positions}, which is all that {reference} takes"
        raise ModelError(f"--max-length is {wanted}; expected {MIN_LENGTH}{most or ' or more'}")
    return wanted


def _head(config: Any, reference: str) -> str:
    found = config.architectures or []
    for architecture in found:
        for ending, head in _HEADS.items():
            if architecture.endswith(ending):
                return head
    raise ModelError(
        f"{reference}: found {', '.join(found) or 'no architecture'} in its config.json, which has no classification "
        "head; expected …ForSequenceClassification or …ForTokenClassification; fine-tune it first, for example as "
        "teacher.model of a recipe for `limbeck compress`"
    )


def _reads_pairs(config: Any) -> bool:
    labels = {str(label).lower().replace("-", "_") for label in config.id2label.values()}
    is_nli = "entailment" in labels and labels <= _NLI_LABELS
    return is_nli or str(getattr(config, "finetuning_task", "")).lower() in _PAIR_TASKS


def _positions(model: nn.Module) -> int | None:
    """Return for how many tokens a model has positions; None where it has no bound."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin number positions from their padding token's id + 1
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    config: Any = model.config
    return getattr(config, "max_position_embeddings", None)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
