"""A `limbeck serve` of our own, and the few bytes of HTTP that clients of ours need."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
START_S = 300  # TensorRT and CUDA graphs take their time
STOP_S = 30


@contextlib.contextmanager
def serving(
    *bundles: Path, printed: Path | None = None, **settings: object
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start the service on a free port and give its process and port once it is ready; it is gone at the end.

    `settings` go to it as LIMBECK_…, beside those of this process; what it prints goes to the file `printed`. Exits
    when it does not become ready.
    """
    port = free_port()
    command = [sys.executable, str(ROOT / "limbeck.py"), "serve", *map(str, bundles), "--port", str(port)]
    variables = {f"LIMBECK_{name.upper()}": str(value) for name, value in settings.items()}
    with running(command, f"http://127.0.0.1:{port}/health/ready", variables, printed) as process:
        yield process, port


@contextlib.contextmanager
def running(
    command: list[str], url: str, variables: Mapping[str, str], printed: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server and give its process once `url` answers 200; it is gone at the end.

    `variables` are added to the environment. Exits when it does not become ready.
    """
    with contextlib.nullcontext() if printed is None else printed.open("wb") as output:
        server = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)} | variables, stdout=output)
    try:
        deadline = time.monotonic() + START_S
        while not _ready(url):
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{url} did not become ready; the log says why")
            time.sleep(0.1)
        yield server
    finally:
        server.terminate()
        try:
            server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def free_port(count: int = 1) -> int:
    """Return the first of `count` ports in a row that nobody listens on."""
    while True:
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            first = 0
            for offset in range(count):
                probe = probes.enter_context(socket.socket())
                probe.bind(("127.0.0.1", first + offset if first else 0))
                first = first or int(probe.getsockname()[1])
            return first


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.status == 200
    except OSError:
        return False


def classify_request(body: bytes) -> bytes:
    """Return a whole request to `/v1/classify` over a connection that stays open."""
    head = (
        b"POST /v1/classify HTTP/1.1\r\nHost: benchmark\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    return head % len(body) + body


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return an answer's status and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    return int(head.split(b" ", 2)[1]), await reader.readexactly(length)
