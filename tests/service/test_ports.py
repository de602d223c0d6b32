"""A port of the operators' own: the real process, one worker or two, asked on both ports."""

import contextlib
import hashlib
import json
import re
import signal
import socket

import httpx
import pytest

from tests.service.helpers import label_request
from tests.service.test_server import free_port, process, wait_until_ready

KEYS = """
[[keys]]
id = "operator"
sha256 = "HASH"
admin = true
"""


def raw(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Send a request's bytes; return the first line and the body of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        received = b""
        while not (found := re.search(rb"content-length: (\d+)\r\n(?:.*\r\n)*?\r\n", received)) or (
            len(received) < found.end() + int(found[1])
        ):
            received += connection.recv(65536)
    return received.splitlines()[0], received[found.end() :]


@pytest.mark.parametrize("workers", [1, 2])
def test_each_port_has_its_own_paths(tiny_bundle, tmp_path, workers):
    secret = "lk_" + "s" * 40
    keys = tmp_path / "keys.toml"
    keys.write_text(KEYS.replace("HASH", hashlib.sha256(secret.encode()).hexdigest()))
    public, operations = free_port(), free_port()
    settings = {"bundles": tiny_bundle.folder, "keys_file": keys, "admin": "true", "workers": workers}
    key = {"authorization": f"Bearer {secret}"}
    with process(public, operations_port=operations, **settings) as running:
        urls = [f"http://127.0.0.1:{port}" for port in (public, operations)]
        for url in urls:
            wait_until_ready(running, url)

        def statuses(method: str, path: str, **options) -> list[int]:
            return [httpx.request(method, url + path, headers=key, **options).status_code for url in urls]

        classify = {"json": {"inputs": ["a good movie"]}}
        for _ in range(workers):  # every worker answers on both ports
            assert statuses("GET", "/health/live") == [200, 200]
            assert statuses("GET", "/metrics") == [404, 200]
            assert statuses("GET", "/v1/admin/models") == [404, 200]
            assert statuses("POST", "/v1/classify", **classify) == [200, 404]
            assert statuses("POST", "/v1/models/tiny/classify?x", **classify) == [200, 404]
            assert statuses("GET", "/metrics%0A")[0] == 404
            assert statuses("POST", "/v1/admin/models/tiny/load%0A")[0] == 404
            httpx.get(f"{urls[0]}/health/live")  # workers get connections in turns: now the other one of two
        assert statuses("POST", "/v1/admin/models/tiny/load") == [404, 200]
        assert statuses("POST", "/v2/repository/models/tiny/load", json={}) == [404, 200]
        assert statuses("GET", "/v1/models") == [200, 404]
        assert statuses("GET", "/docs") == [200, 404]
        assert statuses("GET", "/openapi.json") == [200, 404]
        assert httpx.get(f"{urls[1]}/v1/admin/models").status_code == 401
        ordinary = label_request("a good movie").replace(
            b"Host: t", f"Host: t\r\nAuthorization: Bearer {secret}".encode()
        )
        assert raw(public, ordinary)[0] == b"HTTP/1.1 200 OK"
        status, body = raw(operations, ordinary)
        assert (status, json.loads(body)["error"]["code"]) == (b"HTTP/1.1 404 Not Found", "not_found")
        metrics = httpx.get(f"{urls[1]}/metrics").text
        ok = 'limbeck_requests_total{dialect="native",model="tiny",route="/v1/classify",status="200",version="1"}'
        assert f"{ok} {workers + 1}.0" in metrics
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 0


def test_each_worker_has_its_share_of_the_connections(tiny_bundle):
    port = free_port()
    with process(port, bundles=tiny_bundle.folder, workers=2, max_connections=2) as running:
        wait_until_ready(running, f"http://127.0.0.1:{port}")
        with contextlib.ExitStack() as stack:
            kept: list[socket.socket] = []
            while len(kept) < 2:  # those that asked for readiness may not all be gone yet
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
                connection.sendall(label_request("a"))
                if connection.recv(65536).startswith(b"HTTP/1.1 200 "):
                    kept.append(connection)
            for _ in range(4):
                assert raw(port, label_request("a"))[0] == b"HTTP/1.1 503 Service Unavailable"
            for connection in kept:
                connection.sendall(label_request("a"))
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_an_operations_port_in_use_ends_the_process_with_1(tiny_bundle):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with process(free_port(), operations_port=port, bundles=tiny_bundle.folder) as running:
            _, log = running.communicate(timeout=60)
            assert running.returncode == 1
    assert f"port {port}: Address already in use" in log
    assert "LIMBECK_OPERATIONS_PORT" in log
