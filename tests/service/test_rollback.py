"""A new version that is worse goes, and stays away."""

import asyncio
import json
import re
import time
from contextlib import asynccontextmanager

import httpx
import pytest

from service.rollout import Judge, Plan, Seen
from tests.service.helpers import post
from tests.service.rollouts import (
    KEY,
    ROLLOUT,
    ask,
    ask_directly,
    break_session,
    direct,
    failing,
    model,
    request,
    rolled_back,
    samples,
    state,
    told,
)
from tests.service.test_keys import FILE, bearer
from tests.service.test_lifecycle import administered
from tests.service.test_server import free_port, process, wait_until_ready


@pytest.mark.parametrize("way", ["fast path", "tei"])
def test_errors_roll_back_and_it_stays_so(tmp_path, models, monkeypatch, caplog, way):
    async def run():
        async with administered(tmp_path, models) as client:
            await state(client, share=0.5, max_error_rate=0.1, min_requests=20)
            break_session(monkeypatch, model(client, "2"), failing)
            wire, statuses = direct(client), []

            async def more():
                if way == "fast path":
                    wire.protocol.data_received(request())
                    statuses.append((await wire.answer())[0])
                else:
                    statuses.append((await client.post("/predict", json={"inputs": "good"})).status_code)

            now = await rolled_back(client, more)
            after = {await ask(client) for _ in range(20)}
            metrics = await samples(client)
            await asyncio.sleep(1.2)  # it is judged each second
            still = await told(client)
            again = await state(client, share=0.5)
            return statuses, now, after, metrics, still, again

    statuses, now, after, metrics, still, again = asyncio.run(run())
    failed = 500 if way == "fast path" else 424  # in TEI's words
    assert set(statuses) == {200, failed}
    assert re.fullmatch(r"\d+ of its last \d+ requests, shadows included, failed, expected at most 10 %", now["reason"])
    assert now["observed"]["faults"] == now["observed"]["requests"] == statuses.count(failed) >= 20
    assert after == {"1"}
    assert metrics['limbeck_rolled_back{model="tiny",version="2"}'] == 1
    assert metrics['limbeck_rollout_share{model="tiny",version="2"}'] == 0
    assert still == now
    assert (again["state"], again["reason"], again["observed"]["faults"]) == ("running", "", 0)
    (line,) = [record.getMessage() for record in caplog.records if "rolled back" in record.getMessage()]
    assert line == f"tiny: version 2 is rolled back: {now['reason']}"


def test_what_clients_do_wrong_is_no_fault_of_the_candidates(tmp_path, models):
    async def run():
        async with administered(tmp_path, models) as client:
            await state(client, share=1, max_error_rate=0, min_requests=1)
            for body in ({"inputs": ""}, {"inputs": []}, {"inputs": {}}, {"inputs": "good", "more": 1}):
                assert (await client.post("/v1/classify", json=body)).status_code == 422
                wire = direct(client)
                wire.protocol.data_received(
                    post("/v1/classify", json.dumps(body).encode(), ("Content-Type", "application/json"), KEY)
                )
                assert (await wire.answer())[0] == 422
            assert await ask(client) == "2"
            await asyncio.sleep(1.2)  # it is judged each second
            return await told(client)

    now = asyncio.run(run())
    assert (now["state"], now["observed"]["requests"], now["observed"]["faults"]) == ("running", 1, 0)


@pytest.mark.parametrize("slow", [True, False])
def test_a_slow_candidate_is_rolled_back_and_a_quick_one_not(tmp_path, models, monkeypatch, slow):
    async def run():
        async with administered(tmp_path, models) as client:
            await state(client, share=0.5, max_p99_ms=30 if slow else 60_000, min_requests=10)
            found = model(client, "2")
            real = found.session.run

            def run(arrays):
                time.sleep(0.04)
                return real(arrays)

            break_session(monkeypatch, found, run)
            wire = direct(client)

            async def more():
                assert await ask_directly(wire, request())

            if slow:
                return await rolled_back(client, more)
            for _ in range(40):
                await more()
            await asyncio.sleep(1.2)  # it is judged each second
            return await told(client)

    now = asyncio.run(run())
    observed = now["observed"]
    assert now["state"] == ("rolled back" if slow else "running")
    assert observed["slow"] == (observed["requests"] if slow else 0)
    assert observed["requests"] >= 10
    if slow:
        assert "took more than 30 ms, expected at most 1 %" in now["reason"]


def test_a_dead_candidate_costs_neither_clients_nor_readiness(tmp_path, models, caplog):
    async def run():
        async with administered(tmp_path, models) as client:
            await state(client, share=0.5, min_requests=10)
            model(client, "2").batcher._owner.die("killed by a test")
            wire, answered = direct(client), set()

            async def more():
                answered.add(await ask_directly(wire, request()))
                answered.add(await ask(client))

            now = await rolled_back(client, more)
            return now, answered, (await client.get("/health/ready")).status_code

    now, answered, ready = asyncio.run(run())
    assert answered == {"1"}
    assert now["observed"]["faults"] >= 10
    assert ready == 200


@asynccontextmanager
async def two_workers(tmp_path, models):
    (tmp_path / "keys.toml").write_text(FILE)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {"model_folder": models, "workers": 2, "sessions": 2, "keys_file": tmp_path / "keys.toml"}
    with process(port, admin="true", **settings) as running:
        await asyncio.to_thread(wait_until_ready, running, url)
        yield url, running
        running.terminate()
        assert await asyncio.to_thread(running.wait, 30) == 0


def test_two_workers_agree_and_are_judged_together(tmp_path, models):
    def everywhere(url: str) -> set[str]:
        """The versions on several connections: they go to the workers in turn."""
        return {
            httpx.post(f"{url}/v1/classify", json={"inputs": "good"}, headers=bearer("full")).json()["version"]
            for _ in range(6)
        }

    def run(url: str):
        boss = httpx.Client(headers=bearer("operator"), base_url=url, timeout=30)
        found = [everywhere(url)]
        for share in (0, 1):
            assert boss.put(ROLLOUT, json={"candidate": "2", "share": share}).status_code == 200
            found.append(everywhere(url))
        # slower than anything can be: only both workers together have seen enough
        boss.put(ROLLOUT, json={"candidate": "2", "share": 1, "max_p99_ms": 1e-6, "min_requests": 20})
        everywhere(url), everywhere(url), everywhere(url)
        first = boss.get(ROLLOUT).json()["observed"]["requests"]
        everywhere(url)
        deadline_s = time.monotonic() + 30
        while boss.get(ROLLOUT).json()["state"] != "rolled back" and time.monotonic() < deadline_s:
            time.sleep(0.05)
        while everywhere(url) != {"1"} and time.monotonic() < deadline_s:
            time.sleep(0.05)
        back = [boss.get(ROLLOUT).json() for _ in range(4)]
        metrics = httpx.get(f"{url}/metrics").text
        found.append(everywhere(url))
        boss.post(f"{ROLLOUT}/promote")
        found.append(everywhere(url))
        boss.close()
        return found, first, back, metrics

    async def both():
        async with two_workers(tmp_path, models) as (url, _):
            return await asyncio.to_thread(run, url)

    found, first, back, metrics = asyncio.run(both())
    assert found == [{"2"}, {"1"}, {"2"}, {"1"}, {"2"}]
    assert first == 18
    assert {one["state"] for one in back} == {"rolled back"}
    assert len({one["reason"] for one in back}) == 1
    assert 'limbeck_rolled_back{model="tiny",version="2"} 1.0' in metrics


def judged(plan: Plan, *steps: tuple[float, Seen]) -> list[bool]:
    """Whether the share of faults rolls back, at each of some seconds with all there was until then."""
    judge, nothing = Judge(plan, 0.0), Seen(0, 0)
    return [judge.verdict(seen, nothing, nothing, now_s) is not None for now_s, seen in steps]


def test_too_few_requests_say_nothing():
    plan = Plan(candidate="2", max_error_rate=0.1, min_requests=50)
    assert judged(plan, (1, Seen(49, 49)), (2, Seen(50, 49))) == [False, True]
    assert judged(plan, (1, Seen(50, 5)), (2, Seen(51, 6))) == [False, True], "the limit itself is kept"
    assert judged(plan.model_copy(update={"max_error_rate": None}), (1, Seen(100, 100))) == [False]


def test_a_long_good_time_does_not_hide_a_bad_end():
    """A million good requests, then every second one fails: over all of them that were 0.1 %."""
    plan = Plan(candidate="2", max_error_rate=0.1, min_requests=100)
    good = [(float(second), Seen(1000 * second, 0)) for second in range(1, 1001)]
    bad = [(1000.0 + second, Seen(1_000_000 + 1000 * second, 500 * second)) for second in range(1, 61)]
    found = judged(plan, *good, *bad)
    assert not any(found[:1000])
    assert True in found[1000:]
    assert found.index(True) < 1000 + 20
