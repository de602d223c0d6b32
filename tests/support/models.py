"""Tiny, seeded transformers models and data that a two-word rule can label."""

import json
import random
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedTokenizerFast

from tests.support.bundles import WORDS, tiny_tokenizer

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


def tiny_classifier(family: str = "bert", layers: int = 2, labels: int = 2, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_config(tiny_config(family, layers, labels))
    with torch.no_grad():  # the usual 0.02 makes every attention uniform and every output the same
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def save_tiny_model(folder: Path, layers: int = 4, labels: list[str] | None = None) -> Path:
    """Save a tiny BERT with its tokenizer, as a user's local model."""
    model = tiny_classifier(layers=layers, labels=len(labels or ["LABEL_0", "LABEL_1"]))
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: i for i, label in enumerate(labels)}
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer(),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=36,
    )
    tokenizer.save_pretrained(folder)
    return folder


def tiny_rows(count: int, seed: int) -> list[dict[str, str]]:
    """Sentences that are positive when they hold more of good and great than of bad and awful."""
    source = random.Random(seed)
    rows = []
    while len(rows) < count:
        words = source.choices(WORDS, k=source.randint(3, 14))
        balance = sum((word in ("good", "great")) - (word in ("bad", "awful")) for word in words)
        if balance:
            rows.append({"text": " ".join(words), "label": "positive" if balance > 0 else "negative"})
    return rows


def write_tiny_data(folder: Path, rows: int = 240) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate([("train", rows), ("validation", 60), ("test", 80), ("unlabeled", 60)]):
        lines = tiny_rows(count, seed)
        if split == "unlabeled":
            lines = [{"text": row["text"]} for row in lines]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_tiny_recipe(folder: Path, **changes: object) -> Path:
    """Write data, teacher and recipe to `folder`; a run of it takes seconds."""
    write_tiny_data(folder / "data")
    save_tiny_model(folder / "teacher")
    recipe = {
        "name": "tiny",
        "data": {"folder": "data", "max_length": 32},
        "teacher": {
            "model": "teacher",
            "fine_tune": {"epochs": 3, "learning_rate": 1e-3, "precision": "fp32", "checkpoint_seconds": 0},
        },
        "student": {"layers": 2},
        "distill": {"epochs": 3, "learning_rate": 1e-3, "precision": "fp32", "checkpoint_seconds": 0},
        "evaluate": {"latency_rounds": 3, "latency_texts": 8, "bootstrap_samples": 100},
        "gate": {"max_accuracy_drop": 1.0, "min_agreement": 0.9},
    } | changes
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path
