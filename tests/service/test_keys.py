"""API keys: what their file may say, and what they let in, on every way into the service."""

import asyncio
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import StartupError
from service.keys import Keyring, make_key
from service.lifecycle import _Failure
from tests.service.helpers import Wire, changed, post, running, settings_for

SECRETS = {name: f"lk_{name}-0123456789" for name in ("full", "tiny", "slow", "operator")}
FILE = f"""
[[keys]]
id = "full"
sha256 = "{hashlib.sha256(SECRETS["full"].encode()).hexdigest()}"

[[keys]]
id = "only-tiny"
sha256 = "{hashlib.sha256(SECRETS["tiny"].encode()).hexdigest()}"
models = ["tiny"]

[[keys]]
id = "slow"
sha256 = "{hashlib.sha256(SECRETS["slow"].encode()).hexdigest()}"
requests_per_minute = 2

[[keys]]
id = "operator"
sha256 = "{hashlib.sha256(SECRETS["operator"].encode()).hexdigest()}"
admin = true
"""

ASKS = {
    "/v1/classify": {"inputs": "good"},
    "/v1/models/tiny/classify": {"inputs": "good"},
    "/predict": {"inputs": "good"},
    "/": {"inputs": "good", "parameters": {}},
    "/v2/models/tiny/infer": {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}]},
    "/classify": {"model": "tiny", "input": "good"},
    "/v1/models/tiny:predict": {"instances": ["good"]},
    "/api/v1/text/contents": {"contents": ["good"]},
}


@pytest.fixture
def keys_file(tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def settings(tiny_bundle, tmp_path, keys_file):
    other = changed(tiny_bundle, tmp_path / "other", name="other")
    return settings_for(tiny_bundle, other, default_model="tiny", keys_file=keys_file, admin=True)


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS[name]}"}


def test_every_dialect_wants_a_key_and_says_so_in_its_own_words(settings):
    async def run():
        found = {}
        async with running(settings) as client:
            for path, body in ASKS.items():
                none = await client.post(path, json=body)
                wrong = await client.post(path, json=body, headers={"Authorization": "Bearer lk_guess"})
                basic = await client.post(path, json=body, headers={"Authorization": f"Basic {SECRETS['full']}"})
                good = await client.post(path, json=body, headers=bearer("full"))
                found[path] = none, wrong, basic, good
        return found

    for path, (none, wrong, basic, good) in asyncio.run(run()).items():
        assert [none.status_code, wrong.status_code, basic.status_code, good.status_code] == [401, 401, 401, 200], path
        assert none.headers["www-authenticate"] == "Bearer"
        assert "API key" in json.dumps(none.json()), path
        assert SECRETS["full"] not in basic.text


def test_the_shapes_of_401_are_the_dialects(settings):
    async def run():
        async with running(settings) as client:
            return {path: (await client.post(path, json=body)).json() for path, body in ASKS.items()}

    bodies = asyncio.run(run())
    assert bodies["/v1/classify"]["error"]["code"] == "unauthorized"
    assert bodies["/predict"]["error_type"] == "unauthorized"
    assert isinstance(bodies["/v2/models/tiny/infer"]["error"], str)
    assert bodies["/classify"]["error"] | {"message": ""} == {
        "message": "",
        "type": "AuthenticationError",
        "param": None,
        "code": 401,
    }
    assert isinstance(bodies["/v1/models/tiny:predict"]["error"], str)
    assert bodies["/api/v1/text/contents"]["code"] == 401


def test_a_key_asks_and_sees_only_its_models(settings, tmp_path):
    async def run():
        async with running(settings) as client:
            client.headers.update(bearer("tiny"))
            refused = [
                await client.post("/v1/models/other/classify", json={"inputs": "good"}),
                await client.get("/v1/models/other"),
                await client.post("/v1/models/other/versions/9/classify", json={"inputs": "good"}),
                await client.post("/classify", json={"model": "other", "input": "good"}),
                await client.post("/v2/models/other/infer", json=ASKS["/v2/models/tiny/infer"]),
                await client.get("/v2/models/other/config"),
                await client.post("/models/other", json={"inputs": "good"}),
                await client.post("/v1/models/other:predict", json={"instances": ["good"]}),
                await client.post(
                    "/api/v1/text/contents", json={"contents": ["good"]}, headers={"detector-id": "other"}
                ),
            ]
            listed = (await client.get("/v1/models")).json()["data"]
            index = (await client.post("/v2/repository/index")).json()
            unknown = await client.get("/v1/models/none")
            client.app.state.lifecycle._failed[tmp_path] = _Failure("other-secret", (), "/models/other-secret: broken")
            index += (await client.post("/v2/repository/index")).json()
            return [one.status_code for one in refused], listed, index, unknown.text

    refused, listed, index, unknown = asyncio.run(run())
    assert refused == [403] * len(refused)
    assert [one["id"] for one in listed] == ["tiny"]
    assert [one["name"] for one in index] == ["tiny", "tiny"]
    assert "other" not in unknown


def test_probes_and_documents_need_no_key(settings):
    async def run():
        async with running(settings) as client:
            paths = ["/health/live", "/health/ready", "/health", "/ping", "/v2/health/live", "/v2/health/ready"]
            paths += ["/metrics", "/openapi.json", "/docs"]
            return {path: (await client.get(path)).status_code for path in paths} | {
                path: (await client.get(path)).status_code for path in ("/v1/models", "/info", "/v2", "/healthy")
            }

    found = asyncio.run(run())
    assert {path for path, status in found.items() if status == 401} == {"/v1/models", "/info", "/v2", "/healthy"}
    assert {found.pop(path) for path in ("/v1/models", "/info", "/v2", "/healthy")} == {401}
    assert set(found.values()) == {200}


def test_only_administrators_reach_what_is_theirs(settings):
    async def run():
        async with running(settings) as client:
            return [
                (await client.get("/v1/admin/models", headers=bearer(name))).status_code
                for name in ("full", "tiny", "operator")
            ] + [(await client.post("/v2/repository/models/tiny/unload", headers=bearer("full"))).status_code]

    assert asyncio.run(run()) == [403, 403, 200, 403]


@pytest.mark.parametrize("path", ["/v1/admin/models/tiny/unload", "/v2/repository/models/tiny/unload"])
@pytest.mark.parametrize("twist", ["%0A", "%0a", "\u2028", "/", "%20"])
def test_no_odd_path_leads_around_the_administrator(settings, path, twist):
    async def run():
        async with running(settings) as client:
            answer = await client.post(path + twist, headers=bearer("full"))
            inside = await client.post(path.replace("tiny", f"tiny{twist}"), headers=bearer("full"))
            return answer.status_code, inside.status_code, client.app.state.registry.names()

    first, second, names = asyncio.run(run())
    assert {first, second} <= {403, 404}
    assert names == ["other", "tiny"]


def test_without_admin_there_is_nothing_to_reach(tiny_bundle, keys_file):
    async def run():
        async with running(settings_for(tiny_bundle, keys_file=keys_file)) as client:
            return [
                (await client.post(path, headers=bearer("operator"))).status_code
                for path in ("/v2/repository/models/tiny/unload", "/v1/admin/models/tiny/unload")
            ]

    assert asyncio.run(run()) == [404, 404]


@pytest.mark.parametrize("directly", [True, False])
def test_a_quota_is_kept_whatever_way_a_request_takes(settings, directly):
    """Over the fast path, and through the framework."""

    async def run():
        async with running(settings) as client:
            answers = []
            for _ in range(4):
                if directly:
                    wire = Wire(client.app, asyncio.get_running_loop())
                    body = json.dumps({"inputs": "good"}).encode()
                    headers = (("Content-Type", "application/json"), *bearer("slow").items())
                    wire.protocol.data_received(post("/v1/classify", body, *headers))
                    status, found, raw = await wire.answer()
                else:
                    response = await client.post("/v1/classify", json={"inputs": "good"}, headers=bearer("slow"))
                    status, found, raw = response.status_code, response.headers, response.content
                answers.append((status, dict(found), json.loads(raw)))
            metrics = (await client.get("/metrics")).text
            return answers, metrics

    answers, metrics = asyncio.run(run())
    assert [status for status, _, _ in answers] == [200, 200, 429, 429]
    assert [headers["ratelimit-remaining"] for _, headers, _ in answers] == ["1", "0", "0", "0"]
    assert {headers["ratelimit-limit"] for _, headers, _ in answers} == {"2"}
    assert 1 <= int(answers[2][1]["retry-after"]) <= 30
    assert answers[2][2]["error"]["code"] == "rate_limited"
    assert 'limbeck_key_requests_total{key="slow",status="200"} 2.0' in metrics
    assert 'limbeck_key_requests_total{key="slow",status="429"} 2.0' in metrics
    assert 'limbeck_key_tokens_total{key="slow"} 6.0' in metrics  # [CLS] good [SEP], twice
    assert 'limbeck_rejected_total{reason="rate_limited"} 2.0' in metrics


def test_no_secret_reaches_log_metrics_or_answers(settings, caplog):
    caplog.set_level("DEBUG")

    async def run():
        async with running(settings) as client:
            told = []
            for name in SECRETS:
                for path, body in ASKS.items():
                    told.append((await client.post(path, json=body, headers=bearer(name))).text)
            told.append((await client.post("/v1/classify", headers={"Authorization": "Bearer lk_guessed"})).text)
            return "".join(told) + (await client.get("/metrics")).text

    told = asyncio.run(run()) + caplog.text
    assert "full" in told  # its id
    for secret in (*SECRETS.values(), "lk_guessed"):
        assert secret not in told
        assert hashlib.sha256(secret.encode()).hexdigest() not in told


def test_the_file_is_read_again_and_a_wrong_one_changes_nothing(keys_file):
    ring = Keyring(keys_file, 1)
    slow = ring.find(SECRETS["slow"].encode())
    slow.quota.take_request()
    secret, entry = make_key("new.key-1")
    keys_file.write_text(FILE.replace('[[keys]]\nid = "full"', '[[keys]]\nid = "renamed"') + entry)
    assert ring.reload()
    assert not ring.reload()
    assert ring.find(secret.encode()).id == "new.key-1"
    assert ring.find(SECRETS["full"].encode()).id == "renamed"
    assert ring.find(SECRETS["slow"].encode()) is slow, "what is left to it is kept"
    keys_file.write_text("[[keys]]\nid = 7")
    with pytest.raises(StartupError, match=r"keys\.0\."):
        ring.reload()
    assert ring.find(secret.encode()).id == "new.key-1"
    keys_file.write_text(entry)
    ring.reload()
    assert ring.find(SECRETS["full"].encode()) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "keys"),
        ("keys = []", "keys"),
        ("[[keys]]\nid = 'a b'\nsha256 = '" + "0" * 64 + "'", "keys.0.id"),
        ("[[keys]]\nid = 'a'\nsha256 = 'short'", "keys.0.sha256"),
        ("[[keys]]\nid = 'a'\nsha256 = '" + "0" * 64 + "'\nrequests_per_minute = 0", "requests_per_minute"),
        ("[[keys]]\nid = 'a'\nsha256 = '" + "0" * 64 + "'\nrequests = 1", "keys.0.requests"),
        (("[[keys]]\nid = 'a'\nsha256 = '" + "0" * 64 + "'\n") * 2, "same id"),
        ("[[keys", "not TOML"),
        ("\udcff", "not TOML"),
    ],
)
def test_a_wrong_file_ends_the_start_with_the_field(tmp_path, content, message):
    path = tmp_path / "keys.toml"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(StartupError, match=message) as caught:
        Keyring(path, 1)
    assert str(path) in str(caught.value)
    assert "short" not in str(caught.value), "what stands in the file is nobody's business"
    with pytest.raises(StartupError, match="cannot be read"):
        Keyring(tmp_path / "none.toml", 1)


@given(st.text(max_size=80))
def test_only_names_that_can_be_ids_get_a_key(name):
    fits = 1 <= len(name) <= 64 and all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    if fits:
        secret, entry = make_key(name)
        assert hashlib.sha256(secret.encode()).hexdigest() in entry
    else:
        with pytest.raises(ValueError, match="id"):
            make_key(name)


def test_keys_can_be_made_on_the_command_line(tmp_path):
    from typer.testing import CliRunner

    from limbeck import app

    result = CliRunner().invoke(app, ["key", "search-team"])
    assert result.exit_code == 0
    secret = result.stderr.split()[-1]
    path = tmp_path / "keys.toml"
    path.write_text(result.stdout)
    assert Keyring(path, 1).find(secret.encode()).id == "search-team"
    assert CliRunner().invoke(app, ["key", "a b"]).exit_code == 2
    assert secret not in path.read_text()
