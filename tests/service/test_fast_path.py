"""The fast path and the framework's routes answer alike, whatever is sent."""

import asyncio
import contextlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.api.heads import Heads
from service.app import create_app
from service.settings import Settings
from tests.service.helpers import Wire, lifespan, pair_bundle, post, post_scope, running, settings_for, until
from tests.support.bundles import make_bundle

PATHS = [
    "/v1/classify",
    "/v1/models/tiny/classify",
    "/v1/models/pairs/classify",
    "/v1/models/none/classify",
    "/v1/models//classify",
    "/v1/models/tiny/versions/1/classify",
    "/v1/models/tiny/versions/9/classify",
    "/v1/models/tiny/versions//classify",
]
JSON = (b"content-type", b"application/json")
GOOD = b'{"inputs": ["a good movie"], "top_k": 1, "timeout_ms": 3600000, "priority": "bulk"}'


async def ask_directly(
    app, path: str, messages: list[dict], headers: list[tuple[bytes, bytes]]
) -> tuple[int, Any, Any]:
    """Send one request to the framework; return status, headers and what the body says."""
    scope = post_scope(path, headers)
    waiting = iter([*messages, {"type": "http.disconnect"}])
    sent = []

    async def receive():
        message = next(waiting)
        if message["type"] == "http.disconnect" and messages[-1]["type"] != "http.disconnect":
            await asyncio.Event().wait()  # the client stays
        return message

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    start, *bodies = sent
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], found, json.loads(b"".join(message["body"] for message in bodies))


async def ask(wire: Wire, request: bytes, cuts: list[int]) -> tuple[int, Any, Any]:
    """Send the bytes of one request over a connection, in pieces."""
    ends = sorted({min(cut, len(request)) for cut in cuts} | {len(request)})
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        wire.protocol.data_received(request[start:end])
    status, headers, body = await wire.answer()
    return status, headers, json.loads(body)


def in_messages(body: bytes, cuts: list[int]) -> list[dict]:
    ends = sorted({min(cut, len(body)) for cut in cuts} | {len(body)})
    parts = [body[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return [{"type": "http.request", "body": part, "more_body": True} for part in parts[:-1]] + [
        {"type": "http.request", "body": parts[-1], "more_body": False}
    ]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A running app and the runner of its event loop."""
    folder = tmp_path_factory.mktemp("bundles")
    tiny = make_bundle(folder / "tiny")
    chosen = settings_for(
        tiny, pair_bundle(tiny, folder / "pairs"), default_model="tiny", max_inputs=4, max_body_bytes=2000
    )
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        app = create_app(chosen)
        runner.run(stack.enter_async_context(lifespan(app)))
        runner.run(until(lambda: app.state.registry.ready))
        yield app, runner
        runner.run(stack.aclose())


# Ordinary requests, each with at most a few twists: what is wholly odd is refused early and shows little.
good = st.sampled_from(["good", "bad movie", "é🎬", "\x00", "a" * 30])
words = good | st.sampled_from(["", " \n", "\ud800"])
good_pairs = st.fixed_dictionaries({"text": good, "text_pair": good})
pairs = st.fixed_dictionaries({}, optional={"text": words, "text_pair": words, "more": words})
odd = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words, st.lists(words, max_size=2))
wholly_odd = st.recursive(odd, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))
good_inputs = st.one_of(good, st.lists(good, min_size=1, max_size=4), st.lists(good_pairs, min_size=1, max_size=4))
inputs = st.one_of(good_inputs, good_inputs, st.lists(words | pairs | good_pairs | odd, max_size=5), wholly_odd)
numbers = st.sampled_from([1, 2, 3, 10**30, None, 1.0, 0, -1, True, "1", 1.5])
timeouts = st.sampled_from([3_600_000, 100_000, None, 3_600_001, 0, -5, "100000", 100000.0, True])
priorities = st.sampled_from(["interactive", "bulk", None, "Bulk", "", 1])
twists = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"top_k": numbers}),
    st.fixed_dictionaries({"timeout_ms": timeouts}),
    st.fixed_dictionaries({"priority": priorities}),
    st.fixed_dictionaries({"top_k": numbers, "timeout_ms": timeouts, "priority": priorities}),
    st.dictionaries(st.sampled_from(["Inputs", "topk", "\ud800", ""]), odd, min_size=1, max_size=1),
)
objects = st.builds(lambda given, twist: {"inputs": given} | twist, inputs, twists)
documents = st.builds(
    lambda value, ascii_only, encoding: json.dumps(value, ensure_ascii=ascii_only).encode(encoding, "surrogatepass"),
    st.one_of(objects, objects, objects, objects, objects, twists, wholly_odd),
    st.booleans(),
    st.sampled_from(["utf-8"] * 5 + ["utf-8-sig", "utf-16"]),
)


def mutated(body: bytes, at: int, remove: int, add: bytes) -> bytes:
    at %= len(body) + 1
    return body[:at] + add + body[at + remove :]


bodies = st.one_of(
    documents,
    documents,
    documents,
    st.builds(mutated, documents | st.just(GOOD), st.integers(0, 4000), st.integers(0, 3), st.binary(max_size=3)),
    st.binary(max_size=20),
    st.sampled_from([GOOD, b"", b"[" * 1500, GOOD.ljust(2000), GOOD.ljust(2001), b'{"inputs":"a","inputs":"b"}']),
)
content_types = st.sampled_from(
    [b"application/json"] * 9 + [b"application/json; charset=utf-8", b"Application/JSON", b"text/plain", b""]
)
option = st.one_of(
    st.tuples(
        st.just(b"x-request-timeout-ms"),
        st.sampled_from([b"100000", b"3600000", b"3600001", b"0", b"", b" 100000", b"1e5", b"100000.0", b"-1"]),
    ),
    st.tuples(st.just(b"x-request-priority"), st.sampled_from([b"bulk", b"interactive", b"BULK", b"u=1"])),
    st.tuples(st.just(b"content-type"), content_types),
    st.just((b"priority", b"u=1, i")),
)
no_options: Any = st.just([])
options = st.one_of(no_options, no_options, st.lists(option, max_size=3))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(PATHS[:3] * 3 + PATHS),
    bodies,
    content_types,
    options,
    st.lists(st.integers(0, 2000), max_size=3),
    st.booleans(),
)
@example(PATHS[0], GOOD, b"application/json", [], [], True)
@example(PATHS[1], GOOD, b"application/json", [(b"x-request-priority", b"")] * 2, [5], False)
@example(PATHS[0], GOOD, b"text/plain", [], [], True)
@example(PATHS[0], GOOD, b"application/json", [(b"x-request-timeout-ms", b"0")], [], True)
@example(PATHS[0], GOOD, b"application/json", [(b"x-request-timeout-ms", b"3600001")], [], True)
@example(PATHS[0], GOOD.ljust(2001), b"application/json", [], [], True)
@example(PATHS[0], GOOD.ljust(2001), b"application/json", [], [10], False)
@example(PATHS[2], b'{"inputs": [{"text": "a", "text_pair": "b", "more": 1}]}', b"application/json", [], [], True)
@example(PATHS[0], b'{"inputs": "a", "top_k": 0}', b"application/json", [], [], True)
def test_both_ways_answer_alike(served, path, body, content_type, more_headers, cuts, declared):
    app, runner = served
    given_headers = [("Content-Type", content_type.decode()), *((n.decode(), v.decode()) for n, v in more_headers)]
    request = post(path, body, *given_headers, declared=declared)
    headers = [(b"content-type", content_type), *((name, value.strip()) for name, value in more_headers)]
    if declared:
        headers.append((b"content-length", str(len(body)).encode()))
    status, fast_headers, fast = runner.run(ask(connected(runner, app), request, cuts))
    routed_status, routed_headers, routed = runner.run(ask_directly(app, path, in_messages(body, []), headers))
    assert (status, fast) == (routed_status, routed)
    assert fast_headers.items() >= routed_headers.items()


def connected(runner, app) -> Wire:
    return Wire(app, runner.get_loop())


def forbidden(*_):
    raise AssertionError("this request was passed on to the framework")


@pytest.mark.parametrize("cuts", [[], [10], [70, 200], list(range(0, 400, 7))])
@pytest.mark.parametrize("path", [PATHS[0], PATHS[1], PATHS[5], PATHS[0] + "?x=1"])
@pytest.mark.parametrize(
    "more", [[], [("X-Request-Timeout-Ms", "3600000"), ("x-request-priority", "bulk"), ("priority", "u=1")]]
)
def test_ordinary_requests_do_not_reach_the_framework(served, path, more, cuts):
    app, runner = served
    routed = runner.run(ask_directly(app, path.partition("?")[0], in_messages(GOOD, []), [JSON]))
    wire = connected(runner, app)
    request = post(path, GOOD, ("Content-Type", "application/json"), *more)
    if not 0 < len(cuts) < 3:  # a head in pieces is left to uvicorn, as everything after it until the answer
        cuts = [cut + request.index(b"\r\n\r\n") + 4 for cut in cuts]
        wire.protocol.app = forbidden
    for _ in range(2):  # the second time the head is known
        status, _, answer = runner.run(ask(wire, request, cuts))
        assert (status, answer) == (200, routed[2])
    assert len(answer["results"][0]["labels"]) == 1


@pytest.mark.parametrize(
    "headers",
    [
        [("Content-Encoding", "gzip")],
        [("Expect", "100-continue")],
        [("Content-Type", "application/json")],  # a second one
        [("X-Request-Timeout-Ms", "5"), ("X-Request-Timeout-Ms", "9")],
        [("Transfer-Encoding", "chunked")],
        [("Content-Length", "3")],
    ],
)
def test_what_is_not_ordinary_is_left_to_the_framework(served, headers):
    app, _ = served
    ordinary = post(PATHS[0], GOOD, ("Content-Type", "application/json")).partition(b"{")[0]
    assert app.state.fast_path.read_head(ordinary) is not None
    odd = post(PATHS[0], GOOD, ("Content-Type", "application/json"), *headers).partition(b"{")[0]
    assert app.state.fast_path.read_head(odd) is None
    assert app.state.fast_path.read_head(ordinary.replace(b"1.1", b"1.0")) is None
    assert app.state.fast_path.read_head(ordinary.replace(b"POST", b"PUT")) is None
    assert app.state.fast_path.read_head(ordinary.replace(b"classify", b"cl%61ssify")) is None


def test_remembered_heads_are_bounded():
    heads = Heads(Settings(bundles=("none",), max_body_bytes=1000))
    for number in range(5000):
        head = post(PATHS[0], GOOD, ("Content-Type", "application/json"), ("traceparent", str(number))).partition(b"{")[
            0
        ]
        assert heads.read(head) == heads.read(head)
    assert len(heads._known) <= 4096


@pytest.mark.parametrize(
    ("body", "header", "field", "words"),
    [
        ({"timeout_ms": 0}, {}, "timeout_ms", "greater than or equal to 1, found 0"),
        ({"timeout_ms": 3_600_001}, {}, "timeout_ms", "less than or equal to 3600000, found 3600001"),
        ({"timeout_ms": "5"}, {}, "timeout_ms", 'valid integer, found "5"'),
        ({"priority": "high"}, {}, "priority", "'interactive' or 'bulk', found \"high\""),
        ({}, {"x-request-timeout-ms": "soon"}, "x-request-timeout-ms", "valid integer, unable to parse string as an"),
        ({}, {"x-request-timeout-ms": "0"}, "x-request-timeout-ms", "greater than or equal to 1"),
        ({}, {"x-request-priority": "u=1"}, "x-request-priority", "'interactive' or 'bulk', found \"u=1\""),
    ],
)
def test_a_wrong_option_is_named(tiny_bundle, body, header, field, words):
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            return await client.post("/v1/classify", json={"inputs": "a"} | body, headers=header)

    response = asyncio.run(run())
    assert response.status_code == 422
    assert response.json()["error"]["field"] == field
    assert words in response.json()["error"]["message"]


def test_both_ways_count_under_the_same_names(tiny_bundle):
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            wire = Wire(client.app)
            before = (await client.get("/metrics")).text
            for path in (PATHS[0], PATHS[1], PATHS[5]):
                await ask(wire, post(path, GOOD, ("Content-Type", "application/json")), [])
            fast = (await client.get("/metrics")).text
            charset = ("Content-Type", 'application/json; charset="utf-8"')  # allowed, and not ordinary
            for path in (PATHS[0], PATHS[1], PATHS[5]):
                await ask(wire, post(path, GOOD, charset), [])
            return before, fast, (await client.get("/metrics")).text

    before, fast, routed = map(counted, asyncio.run(run()))
    assert not before
    assert len(fast) == 3
    assert {name: 2 * count for name, count in fast.items()} == routed


def counted(metrics: str) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("limbeck_requests_total{")]
    return {name: float(count) for name, count in lines if "classify" in name}
