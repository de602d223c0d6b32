"""One text has the same scores through every dialect, to the last bit."""

import httpx
import numpy as np
import pytest

from bundle import Task
from tests.dialects.conftest import LABELS, TEXTS

JSON_LENGTH = "Inference-Header-Content-Length"


def through_every_dialect(client: httpx.Client, model: str, text: str, labels: list[str]) -> dict[str, list[float]]:
    """Scores in the order of the labels, by dialect."""

    def post(path: str, body: dict, **headers: str):
        response = client.post(path, json=body, headers=headers)
        assert response.status_code == 200, response.text
        return response.json()

    def ordered(found: list[dict]) -> list[float]:
        return [{one["label"]: one["score"] for one in found}[label] for label in labels]

    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}
    raw = client.post(
        f"/v2/models/{model}/infer", json={"inputs": [tensor], "parameters": {"binary_data_output": True}}
    )
    head = int(raw.headers[JSON_LENGTH])
    v2 = post(f"/v2/models/{model}/infer", {"inputs": [tensor]})
    params = {"threshold": 0.0}
    detected = post("/api/v1/text/contents", {"contents": [text], "detector_params": params}, **{"detector-id": model})
    return {
        "native": ordered(post(f"/v1/models/{model}/classify", {"inputs": [text]})["results"][0]["labels"]),
        "native, in a window": ordered(
            post(f"/v1/models/{model}/classify", {"inputs": [text], "truncate": "window"})["results"][0]["labels"]
        ),
        "tei": ordered(post(f"/models/{model}", {"inputs": text})),
        "hugging face": ordered(post(f"/models/{model}", {"inputs": text, "parameters": {}})[0]),
        "v2": v2["outputs"][0]["data"],
        "v2, binary": np.frombuffer(raw.content[head:], "<f4", len(labels)).astype(float).tolist(),
        "vllm": post("/classify", {"model": model, "input": text})["data"][0]["probs"],
        "kserve v1": list(post(f"/v1/models/{model}:predict", {"instances": [text]})["predictions"][0].values()),
        "detectors": ordered([{"label": one["detection"], "score": one["score"]} for one in detected[0]]),
    }


@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.MULTI_LABEL])
def test_labels(client: httpx.Client, task: Task) -> None:
    for text in TEXTS:
        found = through_every_dialect(client, task.value, text, LABELS[task])
        assert all(scores == found["native"] for scores in found.values()), found


def test_what_is_predicted(client: httpx.Client) -> None:
    """Thresholds hold wherever a dialect says which labels a text has."""
    tensor = {"name": "text", "shape": [len(TEXTS)], "datatype": "BYTES", "data": TEXTS}
    results = client.post("/v1/models/multi-label/classify", json={"inputs": TEXTS}).json()["results"]
    native = [one["predicted"] for one in results]
    outputs = client.post("/v2/models/multi-label/infer", json={"inputs": [tensor]}).json()["outputs"]
    detected = client.post("/api/v1/text/contents", json={"contents": TEXTS}, headers={"detector-id": "multi-label"})
    assert [one.split(",") if one else [] for one in outputs[1]["data"]] == native
    assert [[one["detection"] for one in found] for found in detected.json()] == native
