"""A known mix of traffic against a real service of two worker processes: its counters are what the client saw."""

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import httpx

from tests.service.helpers import changed
from tests.service.test_server import free_port, process
from tests.service.traffic import (
    LONG,
    TOO_LONG,
    Ask,
    Sample,
    Tally,
    detectors,
    hugging_face,
    kserve_v1,
    native,
    operation,
    samples_of,
    tei,
    v2,
    vllm,
)
from tests.support.bundles import make_bundle

SECRETS = {name: f"lk_{name}-0123456789" for name in ("full", "other", "slow", "nobody")}
IDS = {"full": "everything", "other": "only-other", "slow": "two-a-minute"}  # `nobody` is in no file
BOUNDS = {"other": 'models = ["other"]', "slow": "requests_per_minute = 2"}

# What is not as long as the model reads waits for company: so the queue can be filled, and a client can leave in time.
DELAY_MS = 3000
DEADLINE_MS = 1500
SETTINGS = {
    "workers": 2,
    "sessions": 2,
    "default_model": "tiny",
    "max_batch_size": 16,
    "max_batch_tokens": 31,  # a text of 16 tokens is a full batch
    "max_batch_delay_ms": DELAY_MS,
    "queue_capacity": 32,  # half of it for each worker
    "max_inputs": 8,
    "max_body_bytes": 4096,
}
SHORT = ("good", "bad") * 4

ORDINARY = [
    native((LONG,)),
    native((TOO_LONG, LONG), "tiny"),
    native((LONG,) * 4, "tiny", "1"),
    native((TOO_LONG,), "other", options={"top_k": 1}),
    native((LONG,), "other", key="other"),
    native((LONG, TOO_LONG), options={"function_to_apply": "sigmoid"}),  # through the framework
    native((LONG,), headers=(("content-encoding", "identity"),)),  # likewise
    tei((LONG, TOO_LONG)),
    hugging_face((LONG,), key="other"),
    v2((LONG, LONG)),
    v2((TOO_LONG,), "tiny", "1"),
    vllm((LONG,) * 3),
    kserve_v1((LONG,)),
    detectors((TOO_LONG, LONG)),
]


def early(ask: Ask, **more: object) -> Ask:
    """A request that is turned away before it has chosen a model."""
    return replace(ask, **({"model": "", "version": ""} | more))


REFUSED = [
    (401, early(native((LONG,)), key=None)),
    (401, early(native((LONG,)), key="nobody")),
    (401, early(tei((LONG,)), key="nobody")),
    (401, early(v2((LONG,)), key=None)),
    (403, early(native((LONG,), "tiny"), key="other")),
    (403, early(vllm((LONG,)), key="other")),
    (404, early(native((LONG,), "none"))),
    (404, early(native((LONG,), "tiny", "7"))),
    (404, early(kserve_v1((LONG,), "none"))),
    (404, early(replace(native((LONG,)), path="/v1/invented", route="unmatched", dialect=""))),
    (413, early(native((LONG * 70,)))),
    (413, early(tei((LONG * 70,)))),
    (415, early(native((LONG,)), headers=(("content-type", "text/plain"),))),
    (422, early(native((LONG,)), body=b'{"inputs": ')),
    (422, early(vllm((LONG,)), body=b"[]")),
    (422, early(tei((LONG,)), body=b"\xff")),
    (400, v2((LONG,), options={"inputs": []})),
    (422, native((" ",))),
    (422, native((LONG,) * 9)),  # more than max_inputs
]
OPERATIONS = [
    (200, operation("/health/live")),
    (200, operation("/health/ready")),
    (405, operation("/health/live", "HEAD")),
    (405, operation("/metrics", "POST")),
    (200, operation("/health", dialect="tei")),
    (200, operation("/v2/health/ready", dialect="v2")),
    (401, operation("/favicon.ico", route="unmatched", dialect="")),
    (401, operation("/v1/models", dialect="native")),
]


async def everything_ordinary(client: httpx.AsyncClient, tally: Tally) -> None:
    """Good requests and bad ones, in no order; at no time more than a worker's queue holds."""
    asks = [(200, ask) for ask in ORDINARY * 4] + (REFUSED + OPERATIONS) * 2
    random.Random(5).shuffle(asks)
    waiting = iter(asks)

    async def one_after_the_other() -> None:
        for status, ask in waiting:
            answer = await tally.send(client, ask)
            assert answer.status_code == status, f"{ask.path}: {answer.text}"

    await asyncio.gather(*(one_after_the_other() for _ in range(4)))


async def more_than_the_quota(client: httpx.AsyncClient, tally: Tally) -> None:
    for ask in (native((LONG,), key="slow"), tei((LONG,), key="slow")) * 4:
        await tally.send(client, ask)


async def more_than_the_queue(url: str, tally: Tally) -> None:
    """Each on a connection of its own, so that both workers get some."""
    asks = [native(SHORT, "other")] * 4 + [v2(SHORT, "other"), hugging_face(SHORT), v2(SHORT, "other")] * 2

    async def alone(ask: Ask) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await tally.send(client, ask)

    await asyncio.gather(*map(alone, asks))


async def too_late(client: httpx.AsyncClient, tally: Tally) -> None:
    asks = [
        native(("good", "bad"), "tiny", "1", options={"timeout_ms": DEADLINE_MS}),
        native(("good",), "tiny", "1", headers=(("x-request-timeout-ms", str(DEADLINE_MS)),)),
        v2(("good",), "tiny", "1", options={"parameters": {"timeout": 1000 * DEADLINE_MS}}),
    ]
    for answer in await asyncio.gather(*(tally.send(client, ask) for ask in asks)):
        assert answer.status_code == 504, answer.text


async def gone(client: httpx.AsyncClient, tally: Tally, port: int) -> None:
    """Clients that leave while their request waits for a batch; and one that leaves in the middle of its body."""
    asks = [native(("good", "bad")), tei(("good",)), vllm(("bad",))]
    entries = "limbeck_inputs_total", frozenset({"model": "tiny", "version": "2"}.items())
    before = samples_of((await tally.send(client, operation("/metrics"))).text)[entries]
    connections = []
    for ask in asks:
        connections.append((await asyncio.open_connection("127.0.0.1", port))[1])
        connections[-1].write(head(ask) + ask.content())
    wanted = before + sum(len(ask.texts) for ask in asks)
    while samples_of((await tally.send(client, operation("/metrics"))).text)[entries] < wanted:
        await asyncio.sleep(0.02)
    unfinished = [early(ask, texts=()) for ask in (native((LONG,)), tei((LONG,)), kserve_v1((LONG,)))]
    unfinished.append(replace(v2((LONG,)), texts=()))  # it chooses its model first
    for ask in unfinished:
        connections.append((await asyncio.open_connection("127.0.0.1", port))[1])
        connections[-1].write(head(ask) + ask.content()[:9])
        await connections[-1].drain()
    for connection in connections:
        connection.close()
    for ask in (*asks, *unfinished):
        tally.count(ask, 499)


def head(ask: Ask) -> bytes:
    lines = [
        f"POST {ask.path} HTTP/1.1",
        "Host: t",
        "Content-Type: application/json",
        f"Content-Length: {len(ask.content())}",
        f"Authorization: Bearer {SECRETS[ask.key]}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def ready(client: httpx.AsyncClient, tally: Tally) -> None:
    """Wait for the service; what it answers meanwhile counts, too."""
    async with asyncio.timeout(150):
        while True:
            try:
                if (await tally.send(client, operation("/health/ready"))).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)


async def settled(client: httpx.AsyncClient, tally: Tally) -> tuple[dict[Sample, float], Counter[Sample]]:
    """What a scrape says, and what it has to say: a request is counted a moment after its answer is out."""
    for _ in range(400):
        expected = Counter(tally.samples)  # without this scrape, which the next one sees
        found = samples_of((await tally.send(client, operation("/metrics"))).text)
        if total(found, "limbeck_requests_total") >= total(expected, "limbeck_requests_total"):
            return found, expected
        await asyncio.sleep(0.05)
    raise AssertionError("requests are missing")


def total(samples: Mapping[Sample, float], name: str) -> float:
    return sum(value for (of, _), value in samples.items() if of == name)


def differences(found: Mapping[Sample, float], expected: Counter[Sample]) -> dict[Sample, tuple[float, float]]:
    """Of each sample that is not what it has to be what it is; all counters, and the rest that is expected."""
    names = {name for name, _ in found if name.endswith("_total")} | {name for name, _ in expected}
    samples = {sample for sample in found if sample[0] in names} | set(expected)
    return {one: (found.get(one, 0), expected[one]) for one in samples if found.get(one, 0) != expected[one]}


def test_counters_are_what_the_client_saw(tmp_path):
    first = make_bundle(tmp_path / "tiny-1", seed=0)
    second = changed(make_bundle(tmp_path / "seed-1", seed=1), tmp_path / "tiny-2", version="2")
    other = make_bundle(tmp_path / "other", name="other", seed=2)
    keys = tmp_path / "keys.toml"
    keys.write_text("".join(map(entry, IDS)))
    port, tally = free_port(), Tally(SECRETS, IDS)
    url = f"http://127.0.0.1:{port}"

    async def traffic():
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await ready(client, tally)
            await everything_ordinary(client, tally)
            await more_than_the_quota(client, tally)
            await asyncio.gather(more_than_the_queue(url, tally), too_late(client, tally), gone(client, tally, port))
            return await settled(client, tally)

    bundles = ",".join(str(bundle.folder) for bundle in (first, second, other))
    with process(port, bundles=bundles, keys_file=keys, **SETTINGS):
        found, expected = asyncio.run(traffic())

    assert differences(found, expected) == {}
    kinds = {(200, ""), (401, "unauthorized"), (403, "forbidden"), (404, ""), (413, "body_too_large"), (422, "")}
    kinds |= {(429, "queue_full"), (429, "rate_limited"), (503, "queue_full"), (499, ""), (504, ""), (405, "")}
    assert kinds <= tally.statuses.keys(), "the mix is less than it should be"
    assert {label for name, labels in found if name == "limbeck_predictions_total" for label in labels} >= {
        ("label", "negative"), ("label", "positive"), ("model", "other"), ("version", "1"), ("version", "2")
    }  # fmt: skip
    batches = total(found, "limbeck_batch_size_count")
    assert 0 < batches == total(found, "limbeck_inference_seconds_count") == total(found, "limbeck_batch_tokens_count")
    for name, labels in found:
        if name.endswith("_bucket") and ("le", "+Inf") in labels:
            count = name.removesuffix("_bucket") + "_count", labels - {("le", "+Inf")}
            assert found[name, labels] == found[count]


def entry(key: str) -> str:
    digest = hashlib.sha256(SECRETS[key].encode()).hexdigest()
    return f'[[keys]]\nid = "{IDS[key]}"\nsha256 = "{digest}"\n{BOUNDS.get(key, "")}\n'
