"""tritonclient, unmodified."""

import asyncio
import json

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from benchmarks.serving.service_process import serving
from bundle import Task
from service.keys import make_key
from tests.dialects.conftest import LABELS, TEXTS, Served
from tests.support.bundles import make_bundle

MODEL = "single-label"


@pytest.fixture
def server(served: Served):
    with triton.InferenceServerClient(served.url.removeprefix("http://")) as client:
        yield client


@pytest.fixture(scope="module")
def expected(served: Served) -> np.ndarray:
    rows = served.pipeline(Task.SINGLE_LABEL, top_k=None)(TEXTS)
    return np.array(
        [[{one["label"]: one["score"] for one in row}[label] for label in LABELS[Task.SINGLE_LABEL]] for row in rows]
    )


def tensor(texts: list[str], name: str = "text", *, binary: bool = True) -> triton.InferInput:
    given = triton.InferInput(name, [len(texts)], "BYTES")
    given.set_data_from_numpy(np.array(texts, dtype=object), binary_data=binary)
    return given


def test_health_and_metadata(server) -> None:
    assert server.is_server_live()
    assert server.is_server_ready()
    assert server.is_model_ready(MODEL)
    assert server.is_model_ready(MODEL, "1")
    assert server.get_server_metadata()["name"] == "limbeck"
    metadata = server.get_model_metadata(MODEL)
    assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert metadata["outputs"][0] == {"name": "scores", "datatype": "FP32", "shape": [-1, 3]}
    assert server.get_model_metadata(MODEL, "1") == metadata
    assert server.get_model_config(MODEL)["input"][0]["data_type"] == "TYPE_STRING"
    states = {one["name"]: one["state"] for one in server.get_model_repository_index()}
    assert states == dict.fromkeys((task.value for task in Task), "READY")


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_infer(server, expected, binary_in, binary_out) -> None:
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("scores", "label")]
    result = server.infer(MODEL, [tensor(TEXTS, binary=binary_in)], outputs=outputs, request_id="42")
    assert result.get_response()["id"] == "42"
    assert result.as_numpy("scores").dtype == np.float32
    np.testing.assert_allclose(result.as_numpy("scores"), expected, atol=1e-4)
    labels = [one.decode() if isinstance(one, bytes) else one for one in result.as_numpy("label")]
    assert labels == [LABELS[Task.SINGLE_LABEL][index] for index in expected.argmax(axis=1)]


def test_outputs_need_not_be_named(server, expected) -> None:
    result = server.infer(MODEL, [tensor(TEXTS)], model_version="1", priority=2, timeout=30_000_000)
    np.testing.assert_allclose(result.as_numpy("scores"), expected, atol=1e-4)


@pytest.mark.parametrize("binary", [True, False])
def test_the_best_classes(server, expected, binary) -> None:
    wanted = [triton.InferRequestedOutput("scores", class_count=2, binary_data=binary)]
    rows = server.infer(MODEL, [tensor(TEXTS)], outputs=wanted).as_numpy("scores")
    assert rows.shape == (len(TEXTS), 2)
    for row, of_expected in zip(rows, expected, strict=True):
        for text, index in zip(row, np.argsort(-of_expected), strict=False):
            value, number, label = (text.decode() if isinstance(text, bytes) else text).split(":")
            assert (int(number), label) == (index, LABELS[Task.SINGLE_LABEL][index])
            assert float(value) == pytest.approx(of_expected[index], abs=1e-4)


def test_without_waiting(server, served, expected) -> None:
    pending = server.async_infer(MODEL, [tensor(TEXTS)])
    np.testing.assert_allclose(pending.get_result().as_numpy("scores"), expected, atol=1e-4)

    async def run():
        async with triton_aio.InferenceServerClient(served.url.removeprefix("http://")) as client:
            return await client.infer(MODEL, [tensor(TEXTS)])

    np.testing.assert_allclose(asyncio.run(run()).as_numpy("scores"), expected, atol=1e-4)


@pytest.mark.parametrize("method", ["gzip", "deflate"])
def test_a_compressed_request(server, expected, method) -> None:
    result = server.infer(MODEL, [tensor(TEXTS)], request_compression_algorithm=method)
    np.testing.assert_allclose(result.as_numpy("scores"), expected, atol=1e-4)


def test_pairs_and_entities(server, served) -> None:
    result = server.infer("pair", [tensor(TEXTS[:2]), tensor(TEXTS[1:3], "text_pair")])
    rows = served.pipeline(Task.PAIR, top_k=None)(
        [{"text": TEXTS[0], "text_pair": TEXTS[1]}, {"text": TEXTS[1], "text_pair": TEXTS[2]}], truncation=True
    )
    found = [{one["label"]: one["score"] for one in row} for row in rows]
    expected = [[row[label] for label in LABELS[Task.PAIR]] for row in found]
    np.testing.assert_allclose(result.as_numpy("scores"), expected, atol=1e-4)
    entities = server.infer("token-classification", [tensor(TEXTS)]).as_numpy("entities")
    expected = served.pipeline(Task.TOKEN_CLASSIFICATION, aggregation_strategy="simple")(TEXTS)
    assert [[(one["start"], one["end"]) for one in json.loads(found)] for found in entities] == [
        [(one["start"], one["end"]) for one in row] for row in expected
    ]


def test_statistics_count_what_was_asked(server) -> None:
    def inputs() -> int:
        (found,) = server.get_inference_statistics(MODEL)["model_stats"]
        return found["inference_count"]

    before = inputs()
    server.infer(MODEL, [tensor(TEXTS)])
    assert inputs() == before + len(TEXTS)
    assert len(server.get_inference_statistics()["model_stats"]) == len(Task)


@pytest.mark.parametrize(
    ("model", "given", "status", "words"),
    [
        ("nobody", tensor(["a"]), "404", "no model 'nobody'"),
        (MODEL, triton.InferInput("text", [1], "FP32").set_data_from_numpy(np.ones(1, np.float32)), "400", "BYTES"),
        (MODEL, tensor(["a"], "sentence"), "400", "found sentence, expected text"),
        (MODEL, tensor(["a", " "]), "400", "text[1]: found an empty text"),
        ("pair", tensor(["a"]), "400", "expected text and text_pair"),
    ],
)
def test_a_wrong_request(server, model, given, status, words) -> None:
    with pytest.raises(InferenceServerException, match=words.replace("[", r"\[").replace("]", r"\]")) as raised:
        server.infer(model, [given])
    assert raised.value.status() == status


def test_a_wrong_shape(server) -> None:
    given = tensor(["a", "b"], binary=False)
    given.set_shape([3])
    with pytest.raises(InferenceServerException, match="found shape"):
        server.infer(MODEL, [given])
    assert server.infer(MODEL, [tensor(["a"])]).as_numpy("scores").shape == (1, 3)


def test_load_and_unload(tmp_path) -> None:
    """By an administrator's key, which the client sends as any header."""
    make_bundle(tmp_path / "models" / "one", name="one")
    make_bundle(tmp_path / "models" / "two", name="two")
    secret, entry = make_key("operator")
    (tmp_path / "keys.toml").write_text(entry + "admin = true\n")
    headers = {"Authorization": f"Bearer {secret}"}
    settings = {"model_folder": tmp_path / "models", "keys_file": tmp_path / "keys.toml", "admin": True, "workers": 2}
    with (
        serving(**settings, sessions=2, log_level="error") as (_, port),
        triton.InferenceServerClient(f"127.0.0.1:{port}") as server,
    ):
        with pytest.raises(InferenceServerException, match="API key"):
            server.unload_model("one")
        server.unload_model("one", headers=headers)
        for _ in range(4):  # the workers answer in turn
            with pytest.raises(InferenceServerException, match="no model 'one'"):
                server.get_model_metadata("one", headers=headers)
        states = {one["name"]: one["state"] for one in server.get_model_repository_index(headers=headers)}
        assert states == {"one": "UNAVAILABLE", "two": "READY"}
        server.load_model("one", headers=headers)
        assert server.is_model_ready("one", headers=headers)
        assert server.infer("one", [tensor(["good"])], headers=headers).as_numpy("scores").shape == (1, 2)
        with pytest.raises(InferenceServerException, match="no bundle 'none'"):
            server.load_model("none", headers=headers)
