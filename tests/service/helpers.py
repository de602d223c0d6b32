"""What several of the service's tests need: changed bundles, a running app, an outside reference for scores."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.special import softmax
from uvicorn.server import ServerState

from bundle import LAYOUT, Bundle, Task, write_bundle
from service.app import create_app
from service.protocol import Protocol
from service.settings import Settings
from tests.support.bundles import WORDS, tiny_model

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]


def changed(bundle: Bundle, folder: Path, *, files: dict[str, Path | bytes] | None = None, **changes: object) -> Bundle:
    """Write a copy of `bundle` to `folder` with other manifest fields and other files."""
    contents: dict[str, Path | bytes] = {name: bundle.path(name) for name in bundle.manifest.files}
    manifest = bundle.manifest.model_validate(bundle.manifest.model_dump() | changes)
    return write_bundle(folder, manifest, contents | (files or {}))


def pair_bundle(bundle: Bundle, folder: Path) -> Bundle:
    """A bundle whose one golden input is a pair."""
    scores = ",".join(map(str, reference_scores("a good movie", "the plot")))
    line = f'{{"text": "a good movie", "text_pair": "the plot", "scores": {{"fp32": [{scores}]}}}}\n'
    return changed(bundle, folder, files={LAYOUT.golden: line.encode()}, name="pairs", text_pair=True)


def reference_scores(*texts: str) -> list[float]:
    """Scores of the tiny model, from its weights with numpy and scipy alone, in label order."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in tiny_model(0).graph.initializer}
    ids = [2]
    for text in texts:
        ids += [VOCABULARY.index(word) if word in VOCABULARY else 1 for word in text.lower().split()] + [3]
    mean = weights["embeddings"][ids].astype(np.float64).mean(axis=0)
    return [float(score) for score in softmax(mean @ weights["classifier"].astype(np.float64))]


def tag_weights(seed: int) -> dict[str, NDArray[np.float32]]:
    """Weights of the model that tags each word by itself: of its words (18, 8) and of its tags (8, 3)."""
    rng = np.random.default_rng(seed)
    return {
        "embeddings": rng.normal(size=(len(VOCABULARY), 8)).astype(np.float32),
        "classifier": rng.normal(size=(8, 3)).astype(np.float32),
    }


def tag_bundle(bundle: Bundle, folder: Path, *, seed: int, temperature: float = 1.0, **changes: object) -> Bundle:
    """A copy of the tiny bundle with a model that tags each word by itself: O, PER or LOC."""
    weights = tag_weights(seed)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in ("input_ids", "attention_mask")
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["embeddings", "input_ids"], ["words"]),
            helper.make_node("MatMul", ["words", "classifier"], ["logits"]),
        ],
        "tags",
        inputs,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "T", 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    logits = weights["embeddings"][[2, 4, 10, 3]] @ weights["classifier"]  # [CLS] good movie [SEP]
    scores = softmax(logits / temperature, axis=1)
    golden = json.dumps({"text": "good movie", "scores": {"fp32": scores.ravel().tolist()}}).encode() + b"\n"
    files: dict[str, Path | bytes] = {LAYOUT.model("fp32"): model.SerializeToString(), LAYOUT.golden: golden}
    tags = {"task": Task.TOKEN_CLASSIFICATION, "labels": ("O", "PER", "LOC"), "temperature": temperature}
    return changed(bundle, folder, files=files, **(tags | changes))


def settings_for(*bundles: Bundle, **changes: object) -> Settings:
    return Settings(bundles=tuple(bundle.folder for bundle in bundles), **({"sessions": 1} | changes))


async def until(condition, timeout_s: float = 20) -> None:
    """Wait for what is bound to come true; fail rather than hang when it does not."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        yield client


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """The app with its models loaded."""
    app = create_app(settings)
    async with lifespan(app) as client:
        await until(lambda: app.state.registry.ready)
        client.app = app
        yield client


def post_scope(path: str, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    """Return what an ASGI server says of a POST."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
    }


class Wire(asyncio.Transport):
    """The server's end of a connection that exists in memory only; what it writes is in `sent`."""

    def __init__(self, app: Any, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__()
        config = uvicorn.Config(app, http=Protocol, ws="none", lifespan="off", log_config=None, access_log=False)
        self.state = ServerState()
        self.sent = b""
        self.closed = self.reading_paused = False
        self.protocol = Protocol(config, self.state, {}, loop)
        self.protocol.connection_made(self)

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def write_eof(self) -> None:
        self.closed = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """What comes from now on is read past."""

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading_paused = True

    def resume_reading(self) -> None:
        self.reading_paused = False

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Wait for a whole answer and take it."""
        await until(lambda: b"\r\n\r\n" in self.sent)
        head = self.sent.partition(b"\r\n\r\n")[0]
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers["content-length"])
        await until(lambda: len(self.sent) >= len(head) + 4 + length)
        body, self.sent = self.sent[len(head) + 4 :][:length], self.sent[len(head) + 4 + length :]
        return int(status.split()[1]), headers, body


def post(path: str, body: bytes, *headers: tuple[str, str], declared: bool = True) -> bytes:
    """Return an HTTP/1.1 request, its body in one chunk where its length is not `declared`."""
    length = ("Content-Length", str(len(body))) if declared else ("Transfer-Encoding", "chunked")
    lines = [f"POST {path} HTTP/1.1", "Host: t", *(f"{name}: {value}" for name, value in (length, *headers)), "", ""]
    chunks = body if declared else (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    return "\r\n".join(lines).encode() + chunks


def label_request(text: str) -> bytes:
    return post("/v1/classify", json.dumps({"inputs": text}).encode(), ("Content-Type", "application/json"))
