"""vLLM's `/classify`, KServe V1 and the detectors' API."""

import httpx
import pytest

from bundle import Task
from tests.dialects.conftest import LABELS, LENGTH, LONG, TEXTS, Served


@pytest.fixture(scope="module")
def expected(served: Served) -> list[list[float]]:
    rows = served.pipeline(Task.SINGLE_LABEL, top_k=None)(TEXTS)
    return [[{one["label"]: one["score"] for one in row}[label] for label in LABELS[Task.SINGLE_LABEL]] for row in rows]


def test_vllm(served: Served, client: httpx.Client, expected: list[list[float]]) -> None:
    answer = client.post("/classify", json={"model": "single-label", "input": TEXTS, "request_id": "7"}).json()
    assert (answer["id"], answer["object"], answer["model"]) == ("classify-7", "list", "single-label")
    for number, (one, row) in enumerate(zip(answer["data"], expected, strict=True)):
        assert (one["index"], one["num_classes"]) == (number, 3)
        assert one["probs"] == pytest.approx(row, abs=1e-4)
        assert one["label"] == LABELS[Task.SINGLE_LABEL][row.index(max(row))]
    tokenizer = served.pipeline(Task.SINGLE_LABEL).tokenizer
    tokens = sum(len(ids) for ids in tokenizer(TEXTS)["input_ids"])
    assert answer["usage"] == {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
    }
    (alone,) = client.post("/classify", json={"input": TEXTS[0], "priority": 1}).json()["data"]
    assert alone["probs"] == pytest.approx(expected[0], abs=1e-4)
    logits = client.post("/classify", json={"input": TEXTS[0], "use_activation": False}).json()["data"][0]["probs"]
    assert sum(logits) != pytest.approx(1)


def test_kserve_v1(client: httpx.Client, expected: list[list[float]]) -> None:
    answer = client.post("/v1/models/single-label:predict", json={"instances": TEXTS}).json()
    for found, row in zip(answer["predictions"], expected, strict=True):
        assert list(found) == ["0", "1", "2"]
        assert list(found.values()) == pytest.approx(row, abs=1e-4)


def test_detectors(client: httpx.Client, expected: list[list[float]]) -> None:
    body = {"contents": TEXTS, "detector_params": {"threshold": 0.3}}
    answer = client.post("/api/v1/text/contents", json=body, headers={"detector-id": "single-label"}).json()
    for found, text, row in zip(answer, TEXTS, expected, strict=True):
        above = sorted((score for score in row if score >= 0.3), reverse=True)
        assert [one["score"] for one in found] == pytest.approx(above, abs=1e-4)
        assert all((one["start"], one["end"], one["text"]) == (0, len(text), text) for one in found)
    best = client.post("/api/v1/text/contents", json={"contents": TEXTS}).json()
    assert [len(found) for found in best] == [1] * len(TEXTS)


def test_detectors_find_entities(served: Served, client: httpx.Client) -> None:
    expected = served.pipeline(Task.TOKEN_CLASSIFICATION, aggregation_strategy="simple")(TEXTS)
    header = {"detector-id": "token-classification"}
    answer = client.post("/api/v1/text/contents", json={"contents": TEXTS}, headers=header).json()
    for text, found, of_expected in zip(TEXTS, answer, expected, strict=True):
        assert [(one["start"], one["end"], one["detection"]) for one in found] == [
            (one["start"], one["end"], one["entity_group"]) for one in of_expected
        ]
        assert [one["text"] for one in found] == [text[one["start"] : one["end"]] for one in found]


@pytest.mark.parametrize(
    ("path", "body", "keys"),
    [
        ("/classify", {"input": [" "]}, {"error": {"message", "type", "param", "code"}}),
        ("/classify", {"model": "single-label"}, {"error": {"message", "type", "param", "code"}}),
        ("/v1/models/single-label:predict", {"instances": []}, {"error": None}),
        ("/api/v1/text/contents", {"contents": 5}, {"code": None, "message": None}),
    ],
)
def test_errors_have_the_dialects_form(client: httpx.Client, path: str, body: dict, keys: dict) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 422
    found = response.json()
    assert set(found) == set(keys)
    for key, inner in keys.items():
        assert inner is None or set(found[key]) == inner
    assert client.post("/classify", json={"model": "nobody", "input": "a"}).status_code == 404


def test_vllm_cuts_nowhere_but_at_the_models_length(client: httpx.Client) -> None:
    def ask(tokens: int | None) -> httpx.Response:
        return client.post("/classify", json={"input": LONG, "truncate_prompt_tokens": tokens})

    answers = [ask(tokens) for tokens in (None, -1, LENGTH, 512)]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["usage"]["prompt_tokens"] for answer in answers} == {LENGTH}
    refused = ask(LENGTH - 1)
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == "truncate_prompt_tokens"
    assert str(LENGTH) in refused.json()["error"]["message"]
