"""Scores and entities are those of transformers' own pipelines on the same weights, through every dialect."""

import itertools

import httpx
import pytest

from bundle import Task
from tests.dialects.conftest import LABELS, LENGTH, LONG, TEXTS, Served

STRATEGIES = ["none", "simple", "first", "average", "max"]


def native(client: httpx.Client, task: Task, **body: object) -> list[dict]:
    verb = "tag" if task is Task.TOKEN_CLASSIFICATION else "classify"
    response = client.post(f"/v1/models/{task.value}/{verb}", json=body)
    assert response.status_code == 200, response.text
    return response.json()["results"]


def scores_of(labels: list[dict]) -> dict[str, float]:
    return {one["label"]: one["score"] for one in labels}


@pytest.mark.parametrize("function", [None, "softmax", "sigmoid", "none"])
@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.MULTI_LABEL])
def test_texts(served: Served, client: httpx.Client, task: Task, function: str | None) -> None:
    chosen = {} if function is None else {"function_to_apply": function}
    expected = served.pipeline(task, top_k=None)(TEXTS, **chosen)
    found = native(client, task, inputs=TEXTS, **chosen)
    for of_found, of_expected in zip(found, expected, strict=True):
        assert scores_of(of_found["labels"]) == pytest.approx(scores_of(of_expected), abs=1e-4)


def test_pairs(served: Served, client: httpx.Client) -> None:
    pairs = [{"text": first, "text_pair": second} for first, second in itertools.pairwise(TEXTS)]
    expected = served.pipeline(Task.PAIR, top_k=None)(pairs, truncation=True)
    found = native(client, Task.PAIR, inputs=pairs)
    for of_found, of_expected in zip(found, expected, strict=True):
        assert scores_of(of_found["labels"]) == pytest.approx(scores_of(of_expected), abs=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_entities(served: Served, client: httpx.Client, strategy: str) -> None:
    expected = served.pipeline(Task.TOKEN_CLASSIFICATION, aggregation_strategy=strategy)(TEXTS)
    found = native(client, Task.TOKEN_CLASSIFICATION, inputs=TEXTS, aggregation_strategy=strategy)
    assert any(expected)
    same_entities([one["entities"] for one in found], expected)


@pytest.mark.parametrize("stride", [0, 5, 15])
def test_entities_of_a_long_text(served: Served, client: httpx.Client, stride: int) -> None:
    expected = served.pipeline(Task.TOKEN_CLASSIFICATION, aggregation_strategy="simple", stride=stride)(LONG)
    (found,) = native(client, Task.TOKEN_CLASSIFICATION, inputs=[LONG], truncate="window", stride=stride)
    assert expected[-1]["end"] > len(LONG) / 2
    same_entities([found["entities"]], [expected])


def same_entities(found: list[list[dict]], expected: list[list[dict]]) -> None:
    for of_found, of_expected in zip(found, expected, strict=True):
        assert [(one["word"], one["start"], one["end"]) for one in of_found] == [
            (one["word"], one["start"], one["end"]) for one in of_expected
        ]
        for one, other in zip(of_found, of_expected, strict=True):
            assert one["entity"] == other.get("entity", other.get("entity_group"))
            assert one["score"] == pytest.approx(float(other["score"]), abs=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_head_or_the_tail_is_read(served: Served, client: httpx.Client, side: str) -> None:
    pipeline = served.pipeline(Task.SINGLE_LABEL, top_k=None)
    pipeline.tokenizer.truncation_side = side
    expected = scores_of(pipeline(LONG, truncation=True, top_k=None))
    truncate = {"right": "head", "left": "tail"}[side]
    (found,) = native(client, Task.SINGLE_LABEL, inputs=[LONG], truncate=truncate)
    assert scores_of(found["labels"]) == pytest.approx(expected, abs=1e-4)
    assert (found["truncated"], found["tokens"]) == (True, LENGTH)


@pytest.mark.parametrize(("aggregate", "stride"), [("mean", 8), ("max", 8), ("mean", 0), ("max", 14)])
def test_windows(served: Served, client: httpx.Client, aggregate: str, stride: int) -> None:
    pipeline = served.pipeline(Task.SINGLE_LABEL, top_k=None)
    windows = pipeline.tokenizer(
        LONG, truncation=True, return_overflowing_tokens=True, stride=stride, return_tensors="pt", padding=True
    )
    windows.pop("overflow_to_sample_mapping")
    scores = pipeline.model(**windows).logits.softmax(dim=1)
    combined = scores.mean(dim=0) if aggregate == "mean" else scores.max(dim=0).values
    expected = dict(zip(LABELS[Task.SINGLE_LABEL], combined.tolist(), strict=True))
    short, found = native(
        client, Task.SINGLE_LABEL, inputs=["great", LONG], truncate="window", stride=stride, aggregate=aggregate
    )
    assert scores_of(found["labels"]) == pytest.approx(expected, abs=1e-4)
    assert (found["windows"], found["stride"], found["truncated"]) == (len(scores), stride, False)
    assert short["windows"] == 1


def test_a_long_text_can_be_refused(served: Served, client: httpx.Client) -> None:
    length = len(served.pipeline(Task.SINGLE_LABEL).tokenizer(LONG)["input_ids"])
    body = {"inputs": ["great", LONG], "truncate": False}
    response = client.post("/v1/models/single-label/classify", json=body)
    assert response.status_code == 422
    assert response.json()["error"]["field"] == "inputs[1]"
    assert f"found {length} tokens, expected at most {LENGTH}" in response.json()["error"]["message"]
    body["inputs"] = ["great"]
    assert client.post("/v1/models/single-label/classify", json=body).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("single-label/classify", {"truncate": "window", "stride": 40}, "stride"),
        ("single-label/classify", {"truncate": "middle"}, "truncate"),
        ("single-label/classify", {"function_to_apply": "relu"}, "function_to_apply"),
        ("pair/classify", {"inputs": [{"text": "a", "text_pair": "b"}], "truncate": "window"}, "truncate"),
        ("single-label/tag", {}, "model"),
        ("token-classification/classify", {}, "model"),
        ("token-classification/tag", {"aggregation_strategy": "last"}, "aggregation_strategy"),
    ],
)
def test_a_wrong_wish_is_named(client: httpx.Client, path: str, body: dict, field: str) -> None:
    response = client.post(f"/v1/models/{path}", json={"inputs": ["great film"]} | body)
    assert response.status_code == 422
    assert response.json()["error"]["field"] == field


def test_multi_label_says_what_reaches_its_threshold(client: httpx.Client) -> None:
    for one in native(client, Task.MULTI_LABEL, inputs=TEXTS):
        assert one["predicted"] == [label["label"] for label in one["labels"] if label["score"] >= 0.5]
