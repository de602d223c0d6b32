"""Text Embeddings Inference: the requests of its documentation, and what its clients read of an answer."""

import httpx
import pytest

from bundle import Task
from tests.dialects.conftest import LABELS, LENGTH, LONG, TEXTS, Served

PATHS = ["/predict", "/", "/invocations"]


@pytest.fixture(scope="module")
def expected(served: Served) -> list[list[dict]]:
    return served.pipeline(Task.SINGLE_LABEL, top_k=None)(TEXTS)


def same(found: list[dict], expected: list[dict]) -> None:
    assert [list(one) for one in found] == [["label", "score"]] * len(found)
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-4)


@pytest.mark.parametrize("path", PATHS)
def test_one_text_and_a_batch(client: httpx.Client, expected: list[list[dict]], path: str) -> None:
    same(client.post(path, json={"inputs": TEXTS[0]}).json(), expected[0])
    same(client.post(path, json={"inputs": TEXTS[:1], "truncate": True, "unknown": 1}).json(), expected[0])
    batch = client.post(path, json={"inputs": [[text] for text in TEXTS], "raw_scores": False}).json()
    assert len(batch) == len(TEXTS)
    for found, of_expected in zip(batch, expected, strict=True):
        same(found, of_expected)


def test_raw_scores_are_logits(served: Served, client: httpx.Client) -> None:
    expected = served.pipeline(Task.SINGLE_LABEL, top_k=None, function_to_apply="none")(TEXTS[0], top_k=None)
    same(client.post("/predict", json={"inputs": TEXTS[0], "raw_scores": True}).json(), expected)


def test_the_models_own_function_is_used(served: Served, client: httpx.Client) -> None:
    """Where TEI takes softmax for every model of several labels."""
    expected = served.pipeline(Task.MULTI_LABEL)(TEXTS[0], top_k=None)
    found = client.post("/models/multi-label", json={"inputs": TEXTS[0]}).json()
    same(found, expected)
    assert sum(one["score"] for one in found) != pytest.approx(1)


def test_two_texts_in_a_list_are_a_pair(served: Served, client: httpx.Client) -> None:
    (expected,) = served.pipeline(Task.PAIR, top_k=None)([{"text": TEXTS[0], "text_pair": TEXTS[1]}], truncation=True)
    same(client.post("/models/pair", json={"inputs": TEXTS[:2]}).json(), expected)
    (found,) = client.post("/models/pair", json={"inputs": [TEXTS[:2]]}).json()
    same(found, expected)


def test_the_end_to_cut_off_can_be_chosen(served: Served, client: httpx.Client) -> None:
    pipeline = served.pipeline(Task.SINGLE_LABEL, top_k=None)
    for side in ("right", "left"):
        pipeline.tokenizer.truncation_side = side
        expected = pipeline(LONG, truncation=True, top_k=None)
        for name in (side, side.capitalize()):
            same(client.post("/predict", json={"inputs": LONG, "truncation_direction": name}).json(), expected)
    refused = client.post("/predict", json={"inputs": LONG, "truncate": False})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "Validation")
    assert f"expected at most {LENGTH}" in refused.json()["error"]


def test_headers_say_what_it_took(client: httpx.Client) -> None:
    headers = client.post("/predict", json={"inputs": [[text] for text in TEXTS]}).headers
    assert headers["x-compute-type"] == "cpu"
    assert int(headers["x-compute-characters"]) == sum(map(len, TEXTS))
    assert int(headers["x-compute-tokens"]) > len(TEXTS)
    times = {
        name: int(headers[f"x-{name}-time"]) for name in ("compute", "total", "tokenization", "queue", "inference")
    }
    assert times["total"] == times["compute"] >= times["inference"]


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"inputs": []}, 400, "Empty"),
        ({"inputs": ["a", "b", "c"]}, 422, "Validation"),
        ({"inputs": [["a", "b", "c"]]}, 422, "Validation"),
        ({"inputs": ["a", "b"]}, 422, "Validation"),  # a pair, for a model of single texts
        ({"inputs": [" "]}, 422, "Validation"),
        ({"inputs": 5}, 422, "Validation"),
        ({"inputs": [["a"]] * 200}, 422, "Validation"),
        ({}, 422, "Validation"),
    ],
)
def test_errors_have_teis_form(client: httpx.Client, body: dict, status: int, kind: str) -> None:
    response = client.post("/predict", json=body)
    assert (response.status_code, response.json()["error_type"]) == (status, kind)
    assert set(response.json()) == {"error", "error_type"}


def test_health_and_info(client: httpx.Client) -> None:
    for path in ("/health", "/ping"):
        response = client.get(path)
        assert (response.status_code, response.content) == (200, b"")
    info = client.get("/info").json()
    labels = LABELS[Task.SINGLE_LABEL]
    assert info["model_id"] == "single-label"
    assert info["model_type"]["classifier"]["id2label"] == {str(i): label for i, label in enumerate(labels)}
    assert info["model_type"]["classifier"]["label2id"] == {label: i for i, label in enumerate(labels)}
    assert info["max_input_length"] == LENGTH
