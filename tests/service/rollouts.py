"""What the tests of rollouts share: a model of two versions, and how it is asked and administered."""

import asyncio
import json

from bundle import Task
from tests.service.helpers import Wire, changed, post
from tests.service.test_keys import bearer
from tests.support.bundles import make_bundle

ROLLOUT = "/v1/admin/models/tiny/rollout"
KEY = ("Authorization", bearer("full")["Authorization"])


def make_version(folder, version, seed):
    """A bundle of the model `tiny`."""
    made = make_bundle(folder.parent / f"scratch-{folder.name}" / "bundle", seed=seed)
    return changed(made, folder, version=version)


def model(client, version):
    return client.app.state.registry.find("tiny", version)


async def state(client, **plan) -> dict:
    answer = await client.put(ROLLOUT, json={"candidate": "2"} | plan)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def told(client) -> dict:
    return (await client.get(ROLLOUT)).json()


async def ask(client, text="good", path="/v1/classify") -> str:
    """Ask through the framework; return the version that answered."""
    answer = await client.post(path, json={"inputs": text})
    assert answer.status_code == 200, answer.text
    return answer.json()["version"]


async def ask_directly(wire: Wire, request: bytes) -> str:
    """Ask on the fast path; return the version that answered."""
    wire.protocol.data_received(request)
    status, _, body = await wire.answer()
    assert status == 200, body
    return json.loads(body)["version"]


def direct(client) -> Wire:
    return Wire(client.app, asyncio.get_running_loop())


def request(path="/v1/classify", text="good") -> bytes:
    return post(path, json.dumps({"inputs": text}).encode(), ("Content-Type", "application/json"), KEY)


async def samples(client) -> dict[str, float]:
    lines = (await client.get("/metrics")).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


async def rolled_back(client, ask_more) -> dict:
    """Ask until the candidate is rolled back."""
    async with asyncio.timeout(60):
        while (await told(client))["state"] != "rolled back":
            await ask_more()
    return await told(client)


def break_session(monkeypatch, found, broken):
    monkeypatch.setattr(found.session, "run", broken)


def failing(_arrays):
    raise RuntimeError("broken on purpose")


def decided(task, result):
    """What a result of the native API decides."""
    if task is Task.TOKEN_CLASSIFICATION:
        return {(one["entity"], one["start"], one["end"]) for one in result["entities"]}
    return set(result["predicted"]) if task is Task.MULTI_LABEL else result["labels"][0]["label"]
