"""Whatever is sent, the dialect's own error comes back, and the next good request succeeds."""

import gzip
import json
import socket

import httpx
import pytest

from tests.dialects.conftest import Served

JSON = "application/json"

NATIVE, TAG, TEI, HF = "/v1/classify", "/v1/models/token-classification/tag", "/predict", "/models/single-label"
V2, VLLM, V1, DETECT = (
    "/v2/models/single-label/infer",
    "/classify",
    "/v1/models/single-label:predict",
    "/api/v1/text/contents",
)


def v2(values: object) -> dict:
    shape = [len(values)] if isinstance(values, list) else [1]
    return {"inputs": [{"name": "text", "shape": shape, "datatype": "BYTES", "data": values}]}


WRITERS = {
    NATIVE: lambda texts: {"inputs": texts},
    TAG: lambda texts: {"inputs": texts},
    TEI: lambda texts: {"inputs": [[one] for one in texts] if isinstance(texts, list) else texts},
    HF: lambda texts: {"inputs": texts, "parameters": {}},
    V2: v2,
    VLLM: lambda texts: {"input": texts},
    V1: lambda texts: {"instances": texts},
    DETECT: lambda texts: {"contents": texts},
}
ERRORS = {
    NATIVE: lambda body: body["error"]["code"],
    TAG: lambda body: body["error"]["code"],
    TEI: lambda body: body["error"] and body["error_type"],
    HF: lambda body: body["error"] and body["error_type"],
    V2: lambda body: body["error"],
    VLLM: lambda body: body["error"]["message"] and body["error"]["code"],
    V1: lambda body: body["error"],
    DETECT: lambda body: body["message"] and body["code"],
}
REFUSED = {path: 400 if path == V2 else 422 for path in WRITERS}

TEXTS = {
    "no text": [],
    "an empty text": [""],
    "a blank one": ["good", " \n"],
    "many": ["good"] * 10_000,
    "nested": [[["good"]]],
    "null": None,
    "nulls": [None],
    "a number": 5,
    "numbers": [1.5],
    "an object": {"good": 1},
    "half of a pair": ["good \ud83d"],
}
RAW = {
    "nothing": b"",
    "no JSON": b"good",
    "broken off": b'{"inputs": ["good"',
    "NaN": b'{"inputs": NaN, "input": NaN, "instances": NaN, "contents": NaN}',
    "not UTF-8": b'{"inputs": ["\xff\xfe"], "input": ["\xff"], "instances": ["\xff"], "contents": ["\xff"]}',
    "deep": b"[" * 100_000,
    "deep in a key": b'{"inputs": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "a list": b"[]",
    "null": b"null",
}


def check(client: httpx.Client, path: str, response: httpx.Response, status: int) -> None:
    assert response.status_code == status, response.text[:300]
    assert ERRORS[path](response.json())
    assert "Traceback" not in response.text
    good = client.post(path, json=WRITERS[path](["good"]))
    assert good.status_code == 200, good.text


@pytest.mark.parametrize("path", WRITERS)
@pytest.mark.parametrize("kind", TEXTS)
def test_bad_texts(client: httpx.Client, path: str, kind: str) -> None:
    content = json.dumps(WRITERS[path](TEXTS[kind])).encode()
    response = client.post(path, content=content, headers={"content-type": JSON})
    status = 400 if kind == "no text" and path in (TEI, HF) else REFUSED[path]
    check(client, path, response, status)


@pytest.mark.parametrize("path", WRITERS)
@pytest.mark.parametrize("kind", RAW)
def test_bad_bodies(client: httpx.Client, path: str, kind: str) -> None:
    check(client, path, client.post(path, content=RAW[kind], headers={"content-type": JSON}), REFUSED[path])


@pytest.mark.parametrize("path", WRITERS)
def test_ten_megabytes(client: httpx.Client, path: str) -> None:
    body = json.dumps(WRITERS[path](["good " * 2_000_000]))
    check(client, path, client.post(path, content=body, headers={"content-type": JSON}), 413)


@pytest.mark.parametrize("path", [path for path in WRITERS if path != V2])  # whose clients name no type
def test_another_content_type(client: httpx.Client, path: str) -> None:
    body = json.dumps(WRITERS[path](["good"]))
    check(client, path, client.post(path, content=body, headers={"content-type": "text/plain"}), 415)


@pytest.mark.parametrize("path", WRITERS)
def test_of_duplicate_keys_the_last_one_counts_or_none(client: httpx.Client, path: str) -> None:
    good = json.dumps(WRITERS[path](["good"]))
    key = next(iter(WRITERS[path](["good"])))
    twice = f'{{"{key}": 5, {good[1:]}'
    response = client.post(path, content=twice, headers={"content-type": JSON})
    if path == V2:  # read strictly, once
        check(client, path, response, 400)
    else:
        assert response.status_code == 200


@pytest.mark.parametrize("path", WRITERS)
def test_chunks_that_stop_half_way(served: Served, client: httpx.Client, path: str) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: t\r\nContent-Type: {JSON}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode() + b'b\r\n{"inputs": \r\n')
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(10)
        connection.recv(4096)  # an error or nothing: nobody is there to read it
    assert client.post(path, json=WRITERS[path](["good"])).status_code == 200


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({"Inference-Header-Content-Length": "900"}, b"{}", 400),
        ({"Inference-Header-Content-Length": "x"}, b"{}", 400),
        ({"Inference-Header-Content-Length": "9" * 5000}, b"{}", 400),
        ({"Inference-Header-Content-Length": b"\xb2"}, b"{}", 400),
        ({"Content-Encoding": "gzip"}, b"no gzip", 400),
        ({"Content-Encoding": "br"}, b"{}", 400),
    ],
)
def test_what_only_v2_has(client: httpx.Client, headers: dict, content: bytes, status: int) -> None:
    check(client, V2, client.post(V2, content=content, headers=headers), status)


@pytest.mark.parametrize(
    "packed",
    [b"\x01\x00\x00", b"\x05\x00\x00\x00good", b"\x01\x00\x00\x00\xff", b"\xff\xff\xff\xffgood"],
)
def test_raw_texts_that_are_none(client: httpx.Client, packed: bytes) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(packed)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    check(client, V2, client.post(V2, content=head + packed, headers=headers), 400)
    tensor["parameters"]["binary_data_size"] = 2**40
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    check(client, V2, client.post(V2, content=head + packed, headers=headers), 400)


@pytest.mark.parametrize("shape", [[9] * 300_000, [], [0, 1], [-1], [1, 1, 1], [10**30]])
def test_shapes_that_are_none(client: httpx.Client, shape: list[int]) -> None:
    tensor = {"name": "text", "shape": shape, "datatype": "BYTES", "data": ["good"]}
    check(client, V2, client.post(V2, json={"inputs": [tensor]}), 400)


def test_an_output_is_given_once(client: httpx.Client) -> None:
    check(client, V2, client.post(V2, json=v2(["good"]) | {"outputs": [{"name": "scores"}] * 2}), 400)


def test_who_leaves_before_the_body_is_there_is_no_fault(served: Served, client: httpx.Client) -> None:
    def counted() -> str:
        lines = client.get("/metrics").text.splitlines()
        return "".join(line for line in lines if 'status="500"' in line and "/v2/" in line)

    before = counted()
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(f"POST {V2} HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n\r\n0123456789".encode())
    check(client, V2, client.post(V2, json=v2([])), 400)
    assert counted() == before


def test_a_small_body_that_grows(client: httpx.Client) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 100_000
    check(client, V2, client.post(V2, content=bomb, headers={"Content-Encoding": "gzip"}), 413)
