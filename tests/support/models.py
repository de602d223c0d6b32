"""Tiny, seeded transformers models, and recipes that take seconds."""

import json
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from bundle.manifest import Task
from compress.export import export_model
from compress.fuse import fuse_attention, keep_first_tokens
from compress.graph import Graph
from compress.tasks import SPECS
from tests.support.bundles import WORDS, tiny_tokenizer
from tests.support.rows import tiny_rows, write_tiny_data

__all__ = ["FAMILIES", "VOCABULARY", "save_tiny_model", "tiny_classifier", "tiny_config", "tiny_encoder", "tiny_rows"]

VOCABULARY = 4 + len(WORDS)
FAMILIES = ("bert", "roberta", "electra", "distilbert", "mpnet")


def tiny_config(family: str = "bert", layers: int = 2, labels: int = 2) -> transformers.PretrainedConfig:
    """A model of 64 wide, wide enough for INT8, with every dropout on."""
    shape = {"vocab_size": VOCABULARY, "num_labels": labels, "pad_token_id": 0}
    if family == "distilbert":
        return transformers.DistilBertConfig(
            **shape, dim=64, n_layers=layers, n_heads=4, hidden_dim=128, max_position_embeddings=40
        )
    return transformers.AutoConfig.for_model(
        family,
        **shape,
        hidden_size=64,
        embedding_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=40,
    )


def tiny_classifier(
    family: str = "bert", layers: int = 2, labels: int = 2, seed: int = 0, task: Task = Task.SINGLE_LABEL
) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = SPECS[task].model_class.from_config(tiny_config(family, layers, labels))
    with torch.no_grad():  # the usual 0.02 makes every attention uniform and every output the same
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def tiny_encoder(layers: int = 2) -> onnx.ModelProto:
    """Return a tiny classifier as the export stage makes it: attention fused, the last layer cut to first tokens."""
    graph = Graph(export_model(tiny_classifier(layers=layers), "text-classification", opset=18))
    fuse_attention(graph, heads=4)
    keep_first_tokens(graph)
    return graph.finish()


def save_tiny_model(
    folder: Path,
    layers: int = 4,
    labels: list[str] | None = None,
    *,
    seed: int = 0,
    task: Task = Task.SINGLE_LABEL,
    tokenizer: Any = None,
    vocabulary: int | None = None,
) -> Path:
    """Save a tiny BERT with its tokenizer, as a user's local model; `vocabulary` is the tokenizer's size."""
    model = tiny_classifier(layers=layers, labels=len(labels or ["LABEL_0", "LABEL_1"]), seed=seed, task=task)
    if vocabulary is not None:
        torch.manual_seed(seed)
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.15)
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: i for i, label in enumerate(labels)}
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer or tiny_tokenizer(),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=36,
    ).save_pretrained(folder)
    return folder


def tiny_recipe(folder: Path, task: str = Task.SINGLE_LABEL) -> dict[str, Any]:
    """A recipe of seconds whose data and teacher are in `folder`."""
    training = {"epochs": 5, "batch_size": 16, "learning_rate": 2e-3, "precision": "fp32"}
    return {
        "name": "tiny",
        "task": str(task),
        "data": {"folder": "data", "max_length": 32},
        "teacher": {"model": "teacher", "fine_tune": training},
        "student": {"layers": 1},
        "distill": dict(training),
        "quantize": {"candidates": ["per-token"]},  # of several, the clock of a busy machine would choose
        "evaluate": {"latency_rounds": 3, "latency_texts": 8, "bootstrap_samples": 100, "invariance_texts": 80},
        "gate": {"max_quality_drop": 1.0, "max_label_flips": 0.1},
    }


def write_tiny_recipe(folder: Path, task: str = Task.SINGLE_LABEL, **changes: Any) -> Path:
    """Write data, teacher and recipe to `folder`; `changes` are merged into the parts of the recipe."""
    write_tiny_data(folder / "data", task)
    save_tiny_model(folder / "teacher", layers=2)
    recipe = tiny_recipe(folder, task)
    for key, value in changes.items():
        merged = isinstance(value, dict) and isinstance(recipe.get(key), dict)
        recipe[key] = recipe[key] | value if merged else value
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path
