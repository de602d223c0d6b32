"""A new version answers a part of the traffic: who gets it, and what operators may say."""

import asyncio
import json
import math
import re
from collections import Counter

import httpx
import pytest

from service.app import create_app
from service.board import Seat
from service.errors import StartupError
from service.rollout import Plan
from service.rollout_file import read_rollouts
from service.wishes import WishFolder
from tests.service.helpers import Wire, changed, label_request, lifespan, pair_bundle, settings_for, until
from tests.service.rollouts import ROLLOUT, ask, ask_directly, direct, model, request, samples, state, told
from tests.service.test_keys import bearer
from tests.service.test_lifecycle import administered
from tests.service.test_server import free_port, process, wait_until_ready
from tests.support.bundles import make_bundle


def within(count: int, of: int, share: float) -> bool:
    """Five standard deviations of a binomial distribution: one run in two million is outside."""
    return abs(count - of * share) <= 5 * math.sqrt(of * share * (1 - share))


def test_without_a_rollout_the_highest_version_answers_and_there_is_nothing_to_tell(tmp_path, models):
    async def run():
        async with administered(tmp_path, models) as client:
            answered = {await ask(client), await ask_directly(direct(client), request())}
            return answered, await client.get(ROLLOUT), await client.delete(ROLLOUT), await samples(client)

    answered, got, deleted, metrics = asyncio.run(run())
    assert answered == {"2"}
    assert (got.status_code, deleted.status_code) == (404, 404)
    assert got.json()["error"] == {"code": "unknown_rollout", "message": "no rollout of model 'tiny'"}
    assert not [name for name in metrics if name.startswith(("limbeck_rollout", "limbeck_shadow", "limbeck_rolled"))]


@pytest.mark.parametrize("way", ["fast path", "v2"])
def test_the_share_is_kept_and_who_answered_is_told_and_counted(tmp_path, models, way):
    requests, share = (800, 0.2) if way == "fast path" else (300, 0.4)
    body = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}]}

    async def run():
        async with administered(tmp_path, models) as client:
            scores = [
                await client.post(f"/v1/models/tiny/versions/{v}/classify", json={"inputs": "good"}) for v in "12"
            ]
            best = [one.json()["results"][0]["labels"][0]["score"] for one in scores]
            await state(client, share=share)
            wire, answered = direct(client), []
            for _ in range(requests):
                if way == "fast path":
                    head, given = request().split(b"\r\n\r\n")
                    wire.protocol.data_received(head + b"\r\n\r\n" + given[:5])  # chosen once, whenever the rest comes
                    wire.protocol.data_received(given[5:])
                    _, _, raw = await wire.answer()
                    answer = json.loads(raw)
                    score = answer["results"][0]["labels"][0]["score"]
                    answered.append((answer["version"], score == best[int(answer["version"]) - 1]))
                else:
                    answer = (await client.post("/v2/models/tiny/infer", json=body)).json()
                    score = max(answer["outputs"][0]["data"])
                    answered.append((answer["model_version"], score == best[int(answer["model_version"]) - 1]))
            return answered, await samples(client), await told(client)

    answered, metrics, now = asyncio.run(run())
    assert all(right for _, right in answered), "the version that is named is the one whose scores these are"
    counts = Counter(version for version, _ in answered)
    assert within(counts["2"], requests, share)
    route, dialect = ("/v1/classify", "native") if way == "fast path" else ("/v2/models/{model}/infer", "v2")
    for version in "12":
        labels = f'dialect="{dialect}",model="tiny",route="{route}",status="200",version="{version}"'
        assert metrics[f"limbeck_requests_total{{{labels}}}"] == counts[version]
    assert metrics['limbeck_rollout_requests_total{kind="canary",model="tiny",version="2"}'] == counts["2"]
    assert metrics['limbeck_rollout_share{model="tiny",version="2"}'] == share
    assert (now["observed"]["requests"], now["observed"]["faults"]) == (counts["2"], 0)


def test_a_request_is_given_a_model_once(tmp_path, models, monkeypatch):
    async def run():
        async with administered(tmp_path, models) as client:
            await state(client, share=0.5)
            registry, chosen = client.app.state.registry, []
            find = registry.find
            monkeypatch.setattr(registry, "find", lambda *of: chosen.append(find(*of)) or chosen[-1])
            versions = [await ask_directly(direct(client), request()) for _ in range(20)]
            return versions, [one.version for one in chosen]

    versions, chosen = asyncio.run(run())
    assert versions == chosen


def test_who_names_a_version_gets_it_and_takes_no_part(tmp_path, models):
    async def run():
        async with administered(tmp_path, models) as client:
            await state(client, share=1, shadow=1)
            wire, path = direct(client), "/v1/models/tiny/versions/{}/classify"
            named = [await ask_directly(wire, request(path.format(version))) for version in "1212"]
            named += [await ask(client, path=path.format(version)) for version in "1212"]
            rest = [await ask_directly(wire, request()), await ask(client)]
            described = (await client.get("/v2/models/tiny")).json()["versions"]
            listed = (await client.get("/v1/models/tiny")).json()
            return named, rest, described, listed["version"], (await told(client))["observed"]

    named, rest, described, listed, observed = asyncio.run(run())
    assert named == list("12121212")
    assert rest == ["2", "2"]
    assert described == ["1", "2"], "the one that answers the rest first"
    assert listed == "1"
    assert (observed["requests"], observed["shadows"]) == (2, 0)


def test_a_candidate_that_comes_later_is_held_back(tmp_path, models):
    (models / "two").rename(tmp_path / "away")

    async def run():
        async with administered(tmp_path, models) as client:
            first = await state(client, stable="1", share=0)
            (tmp_path / "away").rename(models / "two")
            loaded = await client.post("/v1/admin/models/tiny/load")
            held = {await ask(client) for _ in range(10)} | {await ask_directly(direct(client), request())}
            named = await ask(client, path="/v1/models/tiny/versions/2/classify")
            more = await state(client, share=1)
            return first, loaded.json(), held, named, more, await ask(client)

    first, loaded, held, named, more, then = asyncio.run(run())
    assert (first["problem"], first["answering"]) == ("version 2 is not in service", "1")
    assert loaded["versions"] == ["1", "2"]
    assert (held, named, then) == ({"1"}, "2", "2")
    assert (more["problem"], more["plan"]["stable"]) == ("", "1")


def test_a_promoted_candidate_answers_and_only_then_may_its_rollout_be_forgotten(tmp_path, models):
    async def run():
        async with administered(tmp_path, models) as client:
            await state(client)
            before = await ask(client)
            refused = await client.delete(ROLLOUT)
            promoted = await client.post(f"{ROLLOUT}/promote")
            after = [await ask(client), await ask_directly(direct(client), request())]
            share = (await samples(client))['limbeck_rollout_share{model="tiny",version="2"}']
            forgotten = await client.delete(ROLLOUT)
            again = await client.get(ROLLOUT)
            left = [
                name for name in await samples(client) if name.startswith(("limbeck_rollout_share", "limbeck_rolled"))
            ]
            back = await state(client, candidate="2", stable="1")
            return before, refused, promoted, after, share, forgotten, again, left, back, await ask(client)

    before, refused, promoted, after, share, forgotten, again, left, back, end = asyncio.run(run())
    assert before == "1"
    assert refused.status_code == 409
    assert "version 2 of tiny is the highest and would answer everything" in refused.json()["error"]["message"]
    assert (promoted.json()["state"], promoted.json()["answering"], share) == ("promoted", "2", 1)
    assert after == ["2", "2"]
    assert (forgotten.status_code, again.status_code, left) == (204, 404, [])
    assert (back["state"], end) == ("running", "1")


def test_a_candidate_for_another_kind_of_input_is_not_given_any(tmp_path, models):
    (models / "two").rename(tmp_path / "away")
    pairs = pair_bundle(make_bundle(tmp_path / "plain"), tmp_path / "pairs")
    changed(pairs, models / "two", name="tiny", version="2")

    async def run():
        async with administered(tmp_path, models) as client:
            now = await state(client, share=1, shadow=1)
            return now, {await ask(client) for _ in range(5)}

    now, answered = asyncio.run(run())
    assert now["problem"] == "version 2 is for another task or kind of input than version 1"
    assert answered == {"1"}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 422, "candidate: required, but missing"),
        ({"candidate": "2", "share": 2}, 422, "share: input should be less than or equal to 1, found 2"),
        ({"candidate": "2", "shadow": -0.1}, 422, "shadow: input should be greater than or equal to 0, found -0.1"),
        ({"candidate": "2", "max_p99_ms": 0}, 422, "max_p99_ms: input should be greater than 0, found 0"),
        ({"candidate": 2}, 422, "candidate: input should be a valid string, found 2"),
        ({"candidate": "2", "weight": 1}, 422, "weight: unknown key; GET /docs lists the known ones"),
        ({"candidate": "2", "stable": "2"}, 422, 'stable: expected another version than the candidate, found "2"'),
        ({"candidate": "2", "stable": "3"}, 409, "stable: found 3, expected a version in service: 2, 1"),
    ],
)
def test_what_is_wrong_with_a_plan_is_said_and_nothing_changes(tmp_path, models, body, status, message):
    async def run():
        async with administered(tmp_path, models) as client:
            answer = await client.put(ROLLOUT, json=body)
            return answer, await client.get(ROLLOUT)

    answer, got = asyncio.run(run())
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, message)
    assert got.status_code == 404


def test_there_must_be_a_model_and_another_version(tmp_path, models):
    (models / "one").rename(tmp_path / "away")

    async def run():
        async with administered(tmp_path, models) as client:
            alone = await client.put(ROLLOUT, json={"candidate": "2"})
            none = await client.put("/v1/admin/models/none/rollout", json={"candidate": "2"})
            await state(client, candidate="3")
            absent = await client.post(f"{ROLLOUT}/promote")
            return alone, none, absent

    alone, none, absent = asyncio.run(run())
    assert (alone.status_code, none.status_code, absent.status_code) == (409, 404, 409)
    assert alone.json()["error"]["field"] == "candidate"
    assert absent.json()["error"]["message"] == "candidate: version 3 of tiny is not in service, or does not answer"


def test_only_administrators_may(tmp_path, models):
    async def run():
        async with administered(tmp_path, models) as client:
            found = []
            for method, path in (
                ("GET", ROLLOUT),
                ("PUT", ROLLOUT),
                ("DELETE", ROLLOUT),
                ("POST", f"{ROLLOUT}/promote"),
            ):
                for key, expected in (("full", 403), ("operator", None)):
                    answer = await client.request(method, path, json={"candidate": "2"}, headers=bearer(key))
                    found.append((method, key, answer.status_code == 403 if expected else answer.status_code < 500))
            return found

    assert all(right for _, _, right in asyncio.run(run()))
    without = create_app(settings_for(model_folder=models))
    assert not [path for path in without.openapi()["paths"] if "rollout" in path]


def test_a_worker_that_starts_again_holds_the_candidate_back(tmp_path, models):
    (tmp_path / "word").mkdir()
    WishFolder(tmp_path / "word", 0).ask(lambda wishes: wishes.with_rollout("tiny", Plan(candidate="2")))

    async def run():
        app = create_app(settings_for(model_folder=models), seat=Seat(folder=tmp_path / "word"))
        async with lifespan(app) as client:
            await until(lambda: app.state.registry.ready)
            wire = Wire(app, asyncio.get_running_loop())
            return await ask(client), await ask_directly(wire, label_request("good"))

    assert asyncio.run(run()) == ("1", "1")


def test_no_request_fails_whatever_operators_do(tmp_path, models, caplog):
    """Stated, stated anew, promoted and forgotten, while the candidate comes and goes with shadows at work."""

    async def run():
        async with administered(tmp_path, models) as client:
            answered, stop = [], asyncio.Event()

            async def keep_asking(directly: bool):
                wire = direct(client)
                while not stop.is_set():
                    answered.append(await (ask_directly(wire, request()) if directly else ask(client)))
                    await asyncio.sleep(0)

            asking = [asyncio.create_task(keep_asking(directly)) for directly in (True, True, False)]
            for _ in range(3):
                await state(client, share=0.5, shadow=1)
                (models / "two").rename(tmp_path / "away")
                assert (await client.post("/v1/admin/models/tiny/load")).json()["versions"] == ["1"]
                (tmp_path / "away").rename(models / "two")
                assert (await client.post("/v1/admin/models/tiny/load")).json()["versions"] == ["1", "2"]
                await state(client, share=0.5, shadow=0.5)
                assert (await client.post(f"{ROLLOUT}/promote")).status_code == 200
                assert (await client.delete(ROLLOUT)).status_code == 204
            stop.set()
            await asyncio.gather(*asking)
            models_left = [model(client, version) for version in "12"]
            await until(lambda: not any(one.visitors for one in models_left))
            return answered

    counts = Counter(asyncio.run(run()))
    assert set(counts) == {"1", "2"}
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def test_a_file_states_rollouts_before_anything_is_loaded(tmp_path, models):
    (tmp_path / "rollouts.toml").write_text('[[rollouts]]\nmodel = "tiny"\ncandidate = "2"\nshare = 0\n')
    port = free_port()
    settings = {"model_folder": models, "workers": 2, "rollouts_file": tmp_path / "rollouts.toml"}
    with process(port, **settings) as running:
        wait_until_ready(running, f"http://127.0.0.1:{port}")
        answers = [
            httpx.post(f"http://127.0.0.1:{port}/v1/classify", json={"inputs": "good"}).json()["version"]
            for _ in range(4)
        ]
    assert answers == ["1"] * 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[[rollouts]]\nmodel = "a"', "rollouts[0].candidate: field required"),
        (
            '[[rollouts]]\nmodel = "a"\ncandidate = "2"\nshare = 1.5',
            "rollouts[0].share: input should be less than or equal to 1, found 1.5",
        ),
        (
            '[[rollouts]]\nmodel = "a"\ncandidate = "2"\n' * 2,
            "rollouts: expected one rollout for each model, found two for a",
        ),
        ("[[rollout]]", "rollout: extra inputs are not permitted, found [{}]"),
        ("[[", "not TOML: "),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_file_ends_the_start_and_says_where(tmp_path, content, message):
    path = tmp_path / "rollouts.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StartupError, match=re.escape(f"rollouts_file {path}: {message}")):
        read_rollouts(path)


def test_a_file_may_say_what_an_administrator_may(tmp_path):
    stated = {"candidate": "2", "stable": "1", "share": 0.5, "max_error_rate": 0.1, "min_requests": 7}
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in stated.items())
    (tmp_path / "rollouts.toml").write_text(f'[[rollouts]]\nmodel = "a"\n{lines}\n')
    assert read_rollouts(tmp_path / "rollouts.toml") == {"a": Plan(**stated)}
