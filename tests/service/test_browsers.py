"""What browsers are told: headers on every answer, and which pages may ask."""

import asyncio
import re

import httpx
import pytest
from pydantic import ValidationError

from service.security_headers import SecurityHeadersMiddleware
from service.settings import Settings, describe_settings_error
from tests.service.helpers import Wire, label_request, post, running, settings_for

PAGE = "https://example.org"
OTHER = "https://example.com"
JSON = ("Content-Type", "application/json")


def asked(bundle, *requests: bytes, **changes) -> list[tuple[int, dict[str, str], bytes]]:
    """Send requests, each over a connection of its own."""

    async def run():
        async with running(settings_for(bundle, **changes)) as client:
            answers = []
            for request in requests:
                wire = Wire(client.app)
                wire.protocol.data_received(request)
                answers.append(await wire.answer())
            return answers

    return asyncio.run(run())


ANSWERS = {
    "fast path": (label_request("a"), 200, False),
    "framework": (post("/v1/classify", b'{"inputs": "a", "truncate": "tail"}', JSON), 200, False),
    "bad input": (post("/v1/classify", b"{}", JSON), 422, True),
    "unknown path": (b"GET /none HTTP/1.1\r\nHost: t\r\n\r\n", 404, True),
    "wrong method": (b"GET /v1/classify HTTP/1.1\r\nHost: t\r\n\r\n", 405, True),
    "models": (b"GET /v1/models HTTP/1.1\r\nHost: t\r\n\r\n", 200, False),
    "metrics": (b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n", 200, False),
    "page": (b"GET /docs HTTP/1.1\r\nHost: t\r\n\r\n", 200, True),
    "no HTTP": (b"HELLO\r\n\r\n", 400, True),
    "large head": (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431, True),
}


def test_every_answer_says_that_it_is_what_it_says_and_is_not_kept(tiny_bundle) -> None:
    """OWASP's REST cheat sheet; frames are a matter of pages, and of errors, which browsers show like one."""
    answers = asked(tiny_bundle, *(request for request, _, _ in ANSWERS.values()))
    for name, (status, headers, _) in zip(ANSWERS, answers, strict=True):
        assert status == ANSWERS[name][1], name
        assert headers["x-content-type-options"] == "nosniff", name
        assert headers["cache-control"] == "no-store", name
        policy = headers.get("content-security-policy", "")
        assert ("frame-ancestors 'none'" in policy) is ANSWERS[name][2], name  # pages have more of their own
        assert "server" not in headers, name


def test_no_header_comes_twice(tiny_bundle) -> None:
    async def run():
        async with running(settings_for(tiny_bundle, cors_origins=(PAGE,))) as client:
            heads = []
            for request, _, _ in ANSWERS.values():
                wire = Wire(client.app)
                wire.protocol.data_received(request.replace(b"Host: t", f"Host: t\r\nOrigin: {PAGE}".encode()))
                await asyncio.sleep(0)
                while b"\r\n\r\n" not in wire.sent:
                    await asyncio.sleep(0.01)
                heads.append(wire.sent.partition(b"\r\n\r\n")[0])
            return heads

    for head in asyncio.run(run()):
        names = re.findall(rb"\r\n([^:]+):", head.lower())
        assert len(names) == len(set(names)) > 3, head


def test_an_answer_keeps_the_headers_that_it_has() -> None:
    async def app(_scope, _receive, send) -> None:
        own = [(b"Content-Type", b"text/html"), (b"Content-Security-Policy", b"default-src 'none'")]
        await send({"type": "http.response.start", "status": 200, "headers": own})
        await send({"type": "http.response.body", "body": b""})

    async def run():
        transport = httpx.ASGITransport(SecurityHeadersMiddleware(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            return (await client.get("/")).headers

    headers = asyncio.run(run())
    assert headers.get_list("content-security-policy") == ["default-src 'none'"]
    assert headers["x-content-type-options"] == "nosniff"


def from_page(request: bytes, origin: str) -> bytes:
    return request.replace(b"Host: t", f"Host: t\r\nOrigin: {origin}".encode())


def preflight(path: str, origin: str, method: str = "POST") -> bytes:
    return (
        f"OPTIONS {path} HTTP/1.1\r\nHost: t\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: {method}\r\n"
        "Access-Control-Request-Headers: authorization,content-type\r\n\r\n"
    ).encode()


def test_without_the_setting_no_page_may_ask(tiny_bundle) -> None:
    answers = asked(tiny_bundle, preflight("/v1/classify", PAGE), from_page(label_request("a"), PAGE))
    assert [status for status, _, _ in answers] == [405, 200]
    for _, headers, _ in answers:
        assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/models/tiny/classify", "/predict", "/v2/models/tiny/infer"])
def test_a_preflight_of_a_named_origin_is_answered(tiny_bundle, path) -> None:
    """By the Fetch standard: origin, method and headers must be among those that the answer names."""
    ((status, headers, _),) = asked(tiny_bundle, preflight(path, PAGE), cors_origins=(OTHER, PAGE))
    assert status == 200
    assert headers["access-control-allow-origin"] == PAGE
    assert "POST" in headers["access-control-allow-methods"].split(", ")
    assert set(headers["access-control-allow-headers"].lower().split(",")) >= {"authorization", "content-type"}
    assert "access-control-allow-credentials" not in headers
    assert "Origin" in headers["vary"]


def test_answers_to_a_named_origin_can_be_read_by_its_pages(tiny_bundle, tmp_path) -> None:
    """Of both ways, errors too; a preflight has no key and needs none."""
    keys = tmp_path / "keys.toml"
    keys.write_text('[[keys]]\nid = "a"\nsha256 = "' + "0" * 64 + '"\n')
    requests = [
        label_request("a"),
        post("/v1/classify", b'{"inputs": "a", "truncate": "tail"}', JSON),
        post("/v1/classify", b"{}", JSON),
        b"GET /none HTTP/1.1\r\nHost: t\r\n\r\n",
    ]
    answers = asked(tiny_bundle, *(from_page(request, PAGE) for request in requests), cors_origins=(PAGE,))
    assert [status for status, _, _ in answers] == [200, 200, 422, 404]
    answers += asked(
        tiny_bundle,
        from_page(label_request("a"), PAGE),
        preflight("/v1/classify", PAGE),
        cors_origins=(PAGE,),
        keys_file=keys,
    )
    assert [status for status, _, _ in answers[4:]] == [401, 200]
    for _, headers, _ in answers:
        assert headers["access-control-allow-origin"] == PAGE
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("origin", [OTHER, "null", f"{PAGE}.evil.test", "http://example.org", f"{PAGE}:8443"])
def test_other_origins_are_not_named(tiny_bundle, origin) -> None:
    answers = asked(
        tiny_bundle, preflight("/v1/classify", origin), from_page(label_request("a"), origin), cors_origins=(PAGE,)
    )
    assert [status for status, _, _ in answers] == [400, 200]
    for _, headers, _ in answers:
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("path", ["/metrics", "/v1/admin/models", "/v2/repository/models/tiny/unload"])
def test_what_is_for_operators_stays_closed_to_pages(tiny_bundle, path) -> None:
    get = f"GET {path} HTTP/1.1\r\nHost: t\r\n\r\n".encode()
    answers = asked(tiny_bundle, preflight(path, PAGE), from_page(get, PAGE), cors_origins=(PAGE,))
    for _, headers, _ in answers:
        assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["*", "example.org", "https://example.org/", "https://", "ftp://example.org"])
def test_what_is_no_origin_is_refused(origin) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(bundles=("b",), cors_origins=f"https://a.test,{origin}")
    assert "cors_origins (LIMBECK_CORS_ORIGINS): " in describe_settings_error(caught.value)
    assert f"'{origin}' is no origin" in describe_settings_error(caught.value)


def test_origins_are_a_list() -> None:
    expected = ("https://a.test", "http://b.test:8080")
    assert Settings(bundles=("b",), cors_origins="https://A.test, http://b.test:8080").cors_origins == expected
    assert Settings(bundles=("b",), cors_origins='["https://a.test", "http://b.test:8080"]').cors_origins == expected


def test_the_two_ports_must_differ() -> None:
    with pytest.raises(ValidationError, match="operations_port is 8000, the same as port"):
        Settings(bundles=("b",), operations_port=8000)
