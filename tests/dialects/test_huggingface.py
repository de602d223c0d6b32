"""`huggingface_hub.InferenceClient`, unmodified, pointed at the service."""

import asyncio
import json
import subprocess
import venv
from pathlib import Path

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from bundle import Task
from tests.dialects.conftest import TEXTS, Served

PATHS = ["", "/predict", "/invocations", "/models/single-label"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"function_to_apply": "sigmoid"}, {"function_to_apply": "none"}])
def test_text_classification(served: Served, path: str, options: dict) -> None:
    client = InferenceClient(model=served.url + path)
    pipeline = served.pipeline(Task.SINGLE_LABEL, top_k=None)
    for text in TEXTS[:3]:
        found = client.text_classification(text, **options)
        expected = pipeline(text, **({"top_k": None} | options))
        same(found, expected)


def same(found, expected) -> None:
    assert [one.label for one in found] == [one["label"] for one in expected]
    assert [one.score for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-4)


def test_text_classification_without_waiting(served: Served) -> None:
    async def run():
        async with AsyncInferenceClient(model=f"{served.url}/models/multi-label") as client:
            return await asyncio.gather(*(client.text_classification(text) for text in TEXTS))

    for found, expected in zip(asyncio.run(run()), served.pipeline(Task.MULTI_LABEL, top_k=None)(TEXTS), strict=True):
        same(found, expected)


@pytest.mark.parametrize("strategy", [None, "none", "simple", "first", "average", "max"])
def test_token_classification(served: Served, strategy: str | None) -> None:
    client = InferenceClient(model=f"{served.url}/models/token-classification")
    pipeline = served.pipeline(Task.TOKEN_CLASSIFICATION, aggregation_strategy=strategy or "none")
    options = {} if strategy is None else {"aggregation_strategy": strategy}
    for text in TEXTS:
        expected = pipeline(text)
        if not expected:
            continue
        found = client.token_classification(text, **options)
        assert [(one.word, one.start, one.end) for one in found] == [
            (one["word"], one["start"], one["end"]) for one in expected
        ]
        assert [one.entity_group or one.entity for one in found] == [
            one.get("entity_group", one.get("entity")) for one in expected
        ]
        assert [one.score for one in found] == pytest.approx([float(one["score"]) for one in expected], abs=1e-4)


def test_no_tag_is_left_out_when_none_is_to_be(served: Served) -> None:
    client = InferenceClient(model=f"{served.url}/models/token-classification")
    found = client.token_classification(TEXTS[0], aggregation_strategy="none", ignore_labels=[])
    assert len(found) == len(served.pipeline(Task.TOKEN_CLASSIFICATION).tokenizer.tokenize(TEXTS[0]))


def test_offsets_are_those_of_the_text_as_it_was_sent(served: Served) -> None:
    client = InferenceClient(model=f"{served.url}/models/token-classification")
    for text in TEXTS:
        for one in client.token_classification(text, aggregation_strategy="none", ignore_labels=[]):
            assert 0 <= one.start < one.end <= len(text)
    found = client.token_classification("👍 Paris", aggregation_strategy="none", ignore_labels=[])
    assert "👍 Paris"[found[-1].start : found[-1].end] in "Paris"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda client: client.zero_shot_classification("a text", ["a", "b"]), "no zero-shot model"),
        (lambda client: client.text_classification(" "), "found an empty text"),
    ],
)
def test_what_cannot_be_answered_is_said(served: Served, call, words: str) -> None:
    with pytest.raises(HfHubHTTPError, match=words) as raised:
        call(InferenceClient(model=f"{served.url}/models/single-label"))
    assert raised.value.response.status_code == 422


NEWEST = """
import asyncio, json, sys
import huggingface_hub
from huggingface_hub import AsyncInferenceClient, InferenceClient

url, texts = sys.argv[1], json.loads(sys.argv[2])
labels, tags = f"{url}/models/single-label", f"{url}/models/token-classification"
found = [InferenceClient(model=labels).text_classification(text) for text in texts]
entities = [InferenceClient(model=tags).token_classification(text, aggregation_strategy="simple") for text in texts]

async def run():
    async with AsyncInferenceClient(model=labels) as client:
        return await asyncio.gather(*(client.text_classification(text) for text in texts))

later = asyncio.run(run())
print(json.dumps({
    "version": huggingface_hub.__version__,
    "labels": [[[one.label, one.score] for one in row] for row in found],
    "later": [[[one.label, one.score] for one in row] for row in later],
    "entities": [[[one.entity_group, one.word, one.start, one.end] for one in row] for row in entities],
}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_newest_client(served: Served, tmp_path: Path) -> None:
    """In an environment of its own, because transformers needs an older one here."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "huggingface_hub>=1"], check=True)
    texts = [text for text in TEXTS if served.pipeline(Task.TOKEN_CLASSIFICATION, aggregation_strategy="simple")(text)]
    printed = subprocess.run(
        [python, "-c", NEWEST, served.url, json.dumps(texts)], check=True, capture_output=True, text=True, cwd=tmp_path
    ).stdout
    found = json.loads(printed)
    assert int(found["version"].split(".")[0]) >= 1
    expected = served.pipeline(Task.SINGLE_LABEL, top_k=None)(texts)
    for rows in (found["labels"], found["later"]):
        assert [[label for label, _ in row] for row in rows] == [[one["label"] for one in row] for row in expected]
        for row, of_expected in zip(rows, expected, strict=True):
            assert [score for _, score in row] == pytest.approx([one["score"] for one in of_expected], abs=1e-4)
    entities = served.pipeline(Task.TOKEN_CLASSIFICATION, aggregation_strategy="simple")(texts)
    assert found["entities"] == [
        [[one["entity_group"], one["word"], one["start"], one["end"]] for one in row] for row in entities
    ]
