"""A real service that is asked twice what it can answer, and one that is told to end while it is busy."""

import asyncio
import contextlib
import json
import re
import signal
import time
from collections import Counter
from pathlib import Path

import httpx

from tests.service.helpers import Wire, label_request, running, settings_for
from tests.service.test_server import free_port, process, wait_until_ready
from tests.support.slow_service import BATCH_S

CAPACITY_PER_S = 2 / BATCH_S  # two requests a batch
DEADLINE_S = 5.0  # generous: what is accepted waits for 16 / CAPACITY_PER_S, a third of a second
SECONDS = 4
BODY_BYTES = 200_000  # were nothing refused, 200 requests would wait at the end: 40 MB
MOST_GROWTH_BYTES = 15_000_000
SLOW = {"module": "tests.support.slow_service", "workers": 1, "sessions": 1, "max_batch_size": 2, "log_level": "error"}


def memory_bytes(process_id: int, what: str) -> int:
    (kilobytes,) = re.findall(rf"^{what}:\s+(\d+) kB", Path(f"/proc/{process_id}/status").read_text(), re.MULTILINE)
    return 1024 * int(kilobytes)


def test_overload_is_refused_in_time_and_memory_stays(tiny_bundle):
    """Twice the capacity: what is accepted is answered within its deadline, what is refused is told when to come."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    body = json.dumps({"inputs": "good", "timeout_ms": int(1000 * DEADLINE_S)}).encode().ljust(BODY_BYTES)
    waits: list[tuple[int, float]] = []

    async def ask(client: httpx.AsyncClient) -> None:
        sent_s = time.monotonic()
        answer = await client.post("/v1/classify", content=body, headers={"Content-Type": "application/json"})
        waits.append((answer.status_code, time.monotonic() - sent_s))
        if answer.status_code != 200:
            assert answer.status_code == 429, answer.text
            assert 1 <= int(answer.headers["retry-after"]) <= 60

    async def overload(seconds: float) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client, asyncio.TaskGroup() as asks:
            begin_s = time.monotonic()
            for number in range(int(2 * CAPACITY_PER_S * seconds)):
                await asyncio.sleep(max(0.0, begin_s + number / (2 * CAPACITY_PER_S) - time.monotonic()))
                asks.create_task(ask(client))

    with process(port, bundles=tiny_bundle.folder, queue_capacity=16, max_inputs=16, **SLOW) as service:
        wait_until_ready(service, url)
        asyncio.run(overload(1))
        before = memory_bytes(service.pid, "VmRSS")
        asyncio.run(overload(SECONDS))
        growth = memory_bytes(service.pid, "VmHWM") - before
        assert httpx.get(f"{url}/health/ready").status_code == 200
        service.terminate()
        assert service.wait(60) == 0
    statuses = Counter(status for status, _ in waits)
    assert statuses.keys() == {200, 429}
    assert statuses[200] > CAPACITY_PER_S, "hardly anything was answered"
    assert max(wait_s for status, wait_s in waits if status == 200) < DEADLINE_S
    assert growth < MOST_GROWTH_BYTES


def test_a_signal_refuses_what_is_new_and_ends_what_takes_too_long(tiny_bundle):
    """One request hangs in the model: it gets 503 when the time is up, and the exit status is 0 all the same."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with process(port, bundles=tiny_bundle.folder, shutdown_timeout_s=2, **SLOW) as service:
        wait_until_ready(service, url)
        later: list[httpx.Response] = []

        async def scenario() -> tuple[httpx.Response, httpx.Response]:
            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                quick = asyncio.create_task(client.post("/v1/classify", json={"inputs": "good"}))
                answered = await quick
                hanging = asyncio.create_task(client.post("/v1/classify", json={"inputs": "awful"}))
                while 'limbeck_inputs_total{model="tiny",version="1"} 2.0' not in (await client.get("/metrics")).text:
                    await asyncio.sleep(0.01)
                service.send_signal(signal.SIGTERM)
                with contextlib.suppress(httpx.TransportError):  # until the port is closed
                    while True:
                        later.append(await client.post("/v1/classify", json={"inputs": "good"}))
                return answered, await hanging

        answered, hanging = asyncio.run(scenario())
        assert service.wait(60) == 0
    assert answered.status_code == 200
    for refused in (hanging, *later):
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert int(refused.headers["retry-after"]) >= 1


def test_readiness_is_false_at_once_and_new_requests_are_refused_on_both_ways(tiny_bundle):
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            before = Wire(client.app, asyncio.get_running_loop())
            request = label_request("good")
            before.protocol.data_received(request[:-3])
            assert (await client.get("/health/ready")).status_code == 200
            client.app.state.registry.begin_draining()  # what SIGTERM does first of all
            ready = await client.get("/health/ready")
            after = Wire(client.app, asyncio.get_running_loop())
            after.protocol.data_received(request)
            fast = await after.answer()
            framework = await client.post("/predict", json={"inputs": "good"})
            before.protocol.data_received(request[-3:])
            return ready, fast, framework, await before.answer()

    ready, fast, framework, accepted = asyncio.run(run())
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert (fast[0], json.loads(fast[2])["error"]["code"]) == (503, "draining")
    assert (framework.status_code, framework.json()["error_type"]) == (503, "Unhealthy")
    assert int(fast[1]["retry-after"]) >= 1
    assert int(framework.headers["retry-after"]) >= 1
    assert accepted[0] == 200
