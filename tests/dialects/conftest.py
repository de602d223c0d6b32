"""A running service with a small model of each task, and the models that they were made of."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
import transformers
from rich.console import Console
from tokenizers import decoders

from benchmarks.serving.service_process import serving
from bundle import Task
from compress.pack import pack
from compress.tasks import SPECS
from tests.support.tokenizers import wordpiece

LABELS = {
    Task.SINGLE_LABEL: ["positive", "negative", "neutral"],
    Task.MULTI_LABEL: ["story", "praise", "blame"],
    Task.PAIR: ["worse", "better"],
    Task.TOKEN_CLASSIFICATION: ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
}
LENGTH = 32  # tokens
QUICK = ["evaluate.latency_rounds=3", "evaluate.latency_texts=4", "evaluate.bootstrap_samples=100"]

TEXTS = [
    "New York is not very good",
    "the dull movie was great in Paris , Anna-Maria 's film !",
    "👍 wonderful players 👩‍👩‍👧 playing in naïve Paris",
    "e\u0301te\u0301 in Paris, cafe\u0301 playing",  # accents that stand by themselves
    "纽约 is great 巴黎",
    "הסרט היה great film ב Paris",
    "unplayable, wonderful; 1996-08-30",
]
LONG = " ".join(TEXTS[:3] * 4)


@dataclass(frozen=True)
class Served:
    """Where the service is, and where the models are that it serves under their tasks' names."""

    url: str
    port: int
    models: dict[Task, Path]
    bundles: dict[Task, Path]

    def pipeline(self, task: Task, **options: object) -> transformers.Pipeline:
        """transformers' own pipeline on the same weights."""
        kind = "token-classification" if task is Task.TOKEN_CLASSIFICATION else "text-classification"
        return transformers.pipeline(kind, model=str(self.models[task]), device="cpu", **options)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("dialects")
    models = {task: save_model(folder / "models" / task.value, task) for task in Task}
    bundles: dict[Task, Path] = {}
    for task, path in models.items():
        pack(str(path), None, folder / task.value, Console(quiet=True), overrides=QUICK, force=True)
        bundles[task] = next((folder / task.value).rglob("manifest.json")).parent
    settings = {"variant": "fp32", "default_model": "single-label", "sessions": 1, "workers": 1, "log_level": "error"}
    with serving(*bundles.values(), **settings) as (_, port):
        yield Served(f"http://127.0.0.1:{port}", port, models, bundles)


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=30) as client:
        yield client


def save_model(folder: Path, task: Task) -> Path:
    """A classifier with random weights whose tokenizer cuts words into pieces."""
    tokenizer = wordpiece()
    tokenizer.decoder = decoders.WordPiece()
    torch.manual_seed(7)
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=40,
        id2label=dict(enumerate(LABELS[task])),
        label2id={label: number for number, label in enumerate(LABELS[task])},
        problem_type="multi_label_classification" if task is Task.MULTI_LABEL else None,
        finetuning_task="mrpc" if task is Task.PAIR else None,
    )
    model = SPECS[task].model_class.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
        if task is Task.TOKEN_CLASSIFICATION:
            model.classifier.bias[0] = -2  # trained tokenizers differ from run to run: O must not win everywhere
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=LENGTH,
    ).save_pretrained(folder)
    return folder
