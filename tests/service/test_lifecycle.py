"""Models come and go while requests are answered."""

import asyncio
import gc
import json
import os
import shutil
import signal
import weakref
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest

from bundle import LAYOUT, open_bundle
from service import lifecycle as lifecycle_module
from service.app import create_app
from service.board import Seat
from service.keys import make_key
from service.model import Model, load_model
from service.wishes import Report, Wishes, WishFolder
from tests.service.helpers import Wire, changed, label_request, lifespan, settings_for, until
from tests.service.test_keys import FILE, SECRETS, bearer
from tests.service.test_server import free_port, process, wait_until_ready
from tests.support.bundles import make_bundle


@asynccontextmanager
async def administered(tmp_path, folder, **more):
    """The service over a folder of models, with an administrator's client."""
    (tmp_path / "keys.toml").write_text(FILE)
    (tmp_path / "word").mkdir()
    settings = settings_for(
        model_folder=folder, keys_file=tmp_path / "keys.toml", admin=True, shutdown_timeout_s=5, **more
    )
    app = create_app(settings, seat=Seat(folder=tmp_path / "word"))
    async with lifespan(app) as client:
        client.headers.update(bearer("operator"))
        client.app = app
        await until(lambda: app.state.registry.ready)
        yield client


def states(index: list[dict]) -> dict[str, str]:
    return {one["name"]: one["state"] for one in index}


def test_load_and_unload_as_tritons_clients_ask(tmp_path):
    make_bundle(tmp_path / "models" / "one", name="one")

    async def run():
        async with administered(tmp_path, tmp_path / "models") as client:
            make_bundle(tmp_path / "models" / "folder-of-two", name="two")
            before = await client.post("/v1/models/two/classify", json={"inputs": "good"})
            loaded = await client.post("/v2/repository/models/two/load")
            after = await client.post("/v1/models/two/classify", json={"inputs": "good"})
            everything = states((await client.post("/v2/repository/index")).json())
            unloaded = await client.post("/v2/repository/models/one/unload")
            gone = await client.post("/v1/models/one/classify", json={"inputs": "good"})
            index = (await client.post("/v2/repository/index")).json()
            metrics = (await client.get("/metrics")).text
            again = await client.post("/v1/admin/models/one/load")
            back = await client.post("/v1/models/one/classify", json={"inputs": "good"})
            missing = await client.post("/v2/repository/models/none/load")
            return (
                [one.status_code for one in (before, loaded, after, unloaded, gone, again, back, missing)],
                everything,
                index,
                metrics,
                again.json(),
            )

    statuses, everything, index, metrics, again = asyncio.run(run())
    assert statuses == [404, 200, 200, 200, 404, 200, 200, 404]
    assert everything == {"one": "READY", "two": "READY"}
    assert states(index) == {"one": "UNAVAILABLE", "two": "READY"}
    assert next(entry["reason"] for entry in index if entry["name"] == "one") == "unloaded"
    assert 'limbeck_model_ready{model="two"' in metrics
    assert 'limbeck_model_ready{model="one"' not in metrics, "what was asked to go is no reason for an alarm"
    assert again == {"name": "one", "versions": ["1"], "state": "ready", "problem": ""}


def test_a_swap_under_load_loses_no_request_and_changes_the_scores_between_two(tmp_path):
    """Two bundles with other weights in the same folder; every answer is one's or the other's, first the old ones."""
    old = make_bundle(tmp_path / "models" / "tiny", seed=0)
    new = make_bundle(tmp_path / "tiny-2", seed=1)

    async def run():
        async with administered(tmp_path, tmp_path / "models") as client:
            key = ("Authorization", bearer("full")["Authorization"])
            answers, swapped, stop = [], asyncio.Event(), asyncio.Event()

            async def ask(directly: bool):
                wire = Wire(client.app, asyncio.get_running_loop())
                while not stop.is_set():
                    asked_afterwards = swapped.is_set()
                    if directly:
                        head, body = label_request("very good").split(b"\r\n\r\n")
                        wire.protocol.data_received(head + b"\r\n%b: %b\r\n\r\n" % tuple(map(str.encode, key)) + body)
                        status, _, raw = await wire.answer()
                        answers.append((asked_afterwards, status, json.loads(raw)))
                    else:
                        response = await client.post("/v1/classify", json={"inputs": "very good"})
                        answers.append((asked_afterwards, response.status_code, response.json()))
                    await asyncio.sleep(0)

            asking = [asyncio.create_task(ask(directly)) for directly in (True, True, False)]
            await until(lambda: len(answers) > 50)
            shutil.rmtree(old.folder)
            new.folder.rename(old.folder)
            assert (await client.post("/v1/admin/models/tiny/load")).status_code == 200
            swapped.set()
            await until(lambda: sum(asked_afterwards for asked_afterwards, _, _ in answers) > 50)
            stop.set()
            await asyncio.gather(*asking)
            return answers

    answers = asyncio.run(run())
    assert {status for _, status, _ in answers} == {200}
    scores = [answer["results"][0]["labels"][0]["score"] for _, _, answer in answers]
    kinds = sorted(set(scores), key=scores.index)
    assert len(kinds) == 2
    assert scores[:50] == [kinds[0]] * 50
    asked_afterwards = [score for (afterwards, _, _), score in zip(answers, scores, strict=True) if afterwards]
    assert set(asked_afterwards) == {kinds[1]}


@pytest.mark.parametrize("harm", ["hash", "golden", "missing"])
def test_a_bundle_that_fails_never_serves_and_the_old_one_goes_on(tmp_path, harm):
    bundle = make_bundle(tmp_path / "models" / "tiny")

    async def run():
        async with administered(tmp_path, tmp_path / "models") as client:
            first = (await client.post("/v1/classify", json={"inputs": "good"})).json()
            if harm == "hash":
                with bundle.path(LAYOUT.model("fp32")).open("ab") as file:
                    file.write(b"x")
            elif harm == "golden":
                line = b'{"text": "good", "scores": {"fp32": [0.9, 0.1]}}\n'
                broken = changed(bundle, tmp_path / "broken", files={LAYOUT.golden: line})
                shutil.rmtree(bundle.folder)
                broken.folder.rename(bundle.folder)
            else:
                bundle.path(LAYOUT.tokenizer).unlink()
            failed = await client.post("/v1/admin/models/tiny/load")
            by_triton = await client.post("/v2/repository/models/tiny/load")
            listed = (await client.get("/v1/admin/models")).json()["data"]
            still = await client.post("/v1/classify", json={"inputs": "good"})
            metrics = (await client.get("/metrics")).text
            ready = (await client.get("/health/ready")).status_code
            return first, failed, by_triton, listed, still, metrics, ready

    first, failed, by_triton, listed, still, metrics, ready = asyncio.run(run())
    assert failed.status_code == 409
    assert failed.json()["error"]["code"] == "load_failed"
    assert by_triton.status_code == 400
    assert by_triton.json() == {"error": failed.json()["error"]["message"]}
    assert [(one["state"], bool(one["problem"])) for one in listed] == [("ready", True)]
    assert still.json() == first
    assert 'limbeck_model_load_failures_total{model="tiny"} 2.0' in metrics
    assert ready == 200


def test_what_no_one_foresaw_is_a_failed_load_too(tmp_path, monkeypatch):
    """No memory, no room for metrics: told, counted, and the next bundle is not left out."""
    make_bundle(tmp_path / "models" / "a", name="a")
    make_bundle(tmp_path / "models" / "b", name="b")

    def load(path, settings):
        if path.name == "a":
            raise MemoryError("no more")
        return load_model(path, settings)

    async def run():
        async with administered(tmp_path, tmp_path / "models") as client:
            for name in ("a", "b"):
                os.utime(tmp_path / "models" / name / LAYOUT.manifest, (0, 0))
            monkeypatch.setattr(lifecycle_module, "load_model", load)
            failed = await client.post("/v1/admin/models/a/load")
            metrics = (await client.get("/metrics")).text
            still = await client.post("/v1/models/a/classify", json={"inputs": "good"})
            return failed, metrics, still.status_code, client.app.state.lifecycle.failures

    failed, metrics, still, failures = asyncio.run(run())
    assert failed.status_code == 409
    assert "MemoryError" in failed.json()["error"]["message"]
    assert 'limbeck_model_load_failures_total{model="a"} 1.0' in metrics
    assert still == 200
    assert set(failures) == {"a"}


def test_it_goes_on_when_files_cannot_be_read_for_a_while(tmp_path, monkeypatch):
    """No descriptors left: the watch must not end, or a key that was taken back would go on working."""
    make_bundle(tmp_path / "models" / "one", name="one")

    async def run():
        async with administered(tmp_path, tmp_path / "models") as client:
            read, failed = WishFolder.read, []

            def broken(self):
                if len(failed) < 2:
                    failed.append(1)
                    raise OSError(24, "Too many open files")
                return read(self)

            monkeypatch.setattr(WishFolder, "read", broken)
            await until(lambda: len(failed) == 2)
            return (await client.post("/v1/admin/models/one/unload")).status_code

    assert asyncio.run(run()) == 200


def test_the_last_model_can_go_and_comes_back(tmp_path):
    bundle = make_bundle(tmp_path / "models" / "one", name="one")

    async def run():
        async with administered(tmp_path, tmp_path / "models", watch_models_s=0.05) as client:
            bundle.folder.rename(tmp_path / "away")
            await until(lambda: client.app.state.registry.names() == [])
            ready = (await client.get("/health/ready")).status_code
            gone = await client.post("/v1/classify", json={"inputs": "good"})
            (tmp_path / "away").rename(bundle.folder)
            await until(lambda: client.app.state.registry.names() == ["one"])
            return ready, gone.status_code, (await client.post("/v1/classify", json={"inputs": "good"})).status_code

    assert asyncio.run(run()) == (503, 404, 200)


def test_what_goes_leaves_neither_gauges_nor_memory(tmp_path):
    make_bundle(tmp_path / "models" / "one", name="one")
    make_bundle(tmp_path / "models" / "two", name="two")

    async def run():
        async with administered(tmp_path, tmp_path / "models") as client:
            await client.post("/v1/models/one/classify", json={"inputs": "good"})
            session = weakref.ref(client.app.state.registry.find("one").session)
            gc.disable()  # memory must not wait for it
            try:
                await client.post("/v1/admin/models/one/unload")
                await until(lambda: session() is None)
            finally:
                gc.enable()
            return (await client.get("/metrics")).text

    left = [line for line in asyncio.run(run()).splitlines() if 'model="one"' in line and not line.startswith("#")]
    gauges = ("limbeck_model_ready", "limbeck_queue_entries", "limbeck_queue_oldest", "limbeck_queue_capacity")
    assert not [line for line in left if line.startswith(gauges)]
    assert [line for line in left if line.startswith("limbeck_requests_total")], "counters stay"


def test_a_watched_folder_is_followed(tmp_path):
    models = tmp_path / "models"
    make_bundle(models / "one", name="one")
    spare = make_bundle(tmp_path / "spare", name="two")

    async def run():
        async with administered(tmp_path, models, watch_models_s=0.05) as client:
            names = client.app.state.registry.names
            spare.folder.rename(models / "two")
            await until(lambda: names() == ["one", "two"])
            (models / "broken").mkdir()
            (models / "broken" / LAYOUT.manifest).write_text("{}")
            await until(lambda: "broken" in client.app.state.lifecycle.failures)
            shutil.rmtree(models / "broken")
            shutil.rmtree(models / "one")
            await until(lambda: names() == ["two"] and not client.app.state.lifecycle.failures)
            return (await client.get("/metrics")).text

    assert 'limbeck_model_load_failures_total{model="broken"} 1.0' in asyncio.run(run()), "tried once, not at each look"


def test_a_request_that_has_chosen_a_model_is_answered_by_it(tmp_path, monkeypatch):
    """A body that is still coming when its model goes out of service."""
    make_bundle(tmp_path / "models" / "one", name="one")
    make_bundle(tmp_path / "models" / "two", name="two")
    closed = []
    close = Model.close

    async def watched_close(self, timeout_s):
        closed.append(self.name)
        await close(self, timeout_s)

    monkeypatch.setattr(Model, "close", watched_close)

    async def run():
        async with administered(tmp_path, tmp_path / "models") as client:
            go_on = asyncio.Event()
            body = json.dumps(
                {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}]}
            ).encode()

            async def slowly():
                yield body[:10]
                await go_on.wait()
                yield body[10:]

            asking = asyncio.create_task(client.post("/v2/models/one/infer", content=slowly()))
            model = client.app.state.registry.find("one")
            # httpx' ASGI transport reads the body as the app does: the route has chosen its model by then
            await until(lambda: model.visitors == 1)
            await client.post("/v1/admin/models/one/unload")
            none = (await client.post("/v2/models/one/infer", content=body)).status_code
            before = list(closed)
            go_on.set()
            answer = await asking
            await until(lambda: closed == ["one"])
            return none, before, answer.status_code, model.visitors

    assert asyncio.run(run()) == (404, [], 200, 0)


@pytest.mark.parametrize("told", [True, False])
def test_keys_are_read_again_when_told_and_when_their_file_has_changed(tmp_path, monkeypatch, told):
    """By a signal however long it is until the next look; by that look without a signal."""
    make_bundle(tmp_path / "models" / "one", name="one")
    monkeypatch.setattr(lifecycle_module, "_OFTEN_S", 3600 if told else 0.05)
    new, entry = make_key("new")

    async def run():
        async with administered(tmp_path, tmp_path / "models") as client:

            async def status(key):
                headers = {"Authorization": f"Bearer {key}"}
                return (await client.post("/v1/classify", json={"inputs": "good"}, headers=headers)).status_code

            before = [await status(SECRETS["full"]), await status(new)]
            (tmp_path / "keys.toml").write_text(entry)
            if told:
                client.app.state.lifecycle.reload()  # what SIGHUP calls
            async with asyncio.timeout(20):
                while await status(new) != 200:
                    await asyncio.sleep(0.01)
            return [*before, await status(SECRETS["full"])]

    assert asyncio.run(run()) == [200, 401, 401]


@pytest.mark.parametrize("workers", [1, 2])
def test_all_workers_follow_an_administrator_and_a_signal(tmp_path, workers):
    models = tmp_path / "models"
    make_bundle(models / "one", name="one")
    make_bundle(models / "two", name="two")
    keys = tmp_path / "keys.toml"
    keys.write_text(FILE)
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def everywhere(path: str, headers: dict[str, str]) -> set[int]:
        """The statuses of several connections: they go to the workers in turn."""
        return {httpx.post(url + path, json={"inputs": "good"}, headers=headers).status_code for _ in range(6)}

    settings = {"model_folder": models, "workers": workers, "keys_file": keys, "admin": "true", "sessions": workers}
    with process(port, **settings) as running:
        wait_until_ready(running, url)
        operator = bearer("operator")
        assert httpx.post(f"{url}/v1/admin/models/two/unload", headers=operator).status_code == 200
        assert everywhere("/v1/models/two/classify", operator) == {404}
        assert httpx.post(f"{url}/v1/admin/models/two/load", headers=operator).status_code == 200
        assert everywhere("/v1/models/two/classify", operator) == {200}
        shutil.rmtree(models / "two")
        keys.write_text(FILE.replace('"operator"', '"boss"'))
        os.kill(running.pid, signal.SIGHUP)

        async def gone():
            await until(lambda: everywhere("/v1/models/two/classify", operator) == {404})

        asyncio.run(gone())
        assert httpx.get(f"{url}/v1/admin/models", headers=operator).json()["data"] == [
            {"name": "one", "versions": ["1"], "state": "ready", "problem": ""}
        ]
        assert 'key="boss"' in httpx.get(f"{url}/metrics").text
        assert everywhere("/v1/models/one/classify", operator) == {200}
        running.terminate()
        assert running.wait(30) == 0


def test_a_worker_that_starts_again_keeps_out_what_was_unloaded(tmp_path):
    models = tmp_path / "models"
    make_bundle(models / "one", name="one")
    make_bundle(models / "two", name="two")
    (tmp_path / "word").mkdir()
    WishFolder(tmp_path / "word", 0).ask(lambda wishes: wishes._replace(unloaded=frozenset({"two"})))

    async def run():
        app = create_app(settings_for(model_folder=models, default_model="two"), seat=Seat(folder=tmp_path / "word"))
        async with lifespan(app):
            await until(lambda: app.state.registry.ready)
            return app.state.registry.names()

    assert asyncio.run(run()) == ["one"]


def test_wishes_are_numbered_and_reports_are_whole(tmp_path):
    first, second = WishFolder(tmp_path, 0), WishFolder(tmp_path, 1)
    assert first.read() == Wishes(0, 0, frozenset())
    assert first.ask(lambda wishes: wishes._replace(unloaded=wishes.unloaded | {"a"})).number == 1
    assert second.ask(lambda wishes: wishes._replace(unloaded=wishes.unloaded | {"b"})).number == 2
    assert second.ask().number == 3
    assert first.ask(look=False).number == 4
    assert first.read() == Wishes(4, 3, frozenset({"a", "b"}))
    assert first.reported(1) == Report(-1, {})
    second.report(Report(3, {"c": "why"}))
    assert first.reported(1) == Report(3, {"c": "why"})


def test_scores_are_those_of_the_bundle_that_is_served(tmp_path):
    """After a swap the service's scores are the new bundle's golden ones."""
    make_bundle(tmp_path / "models" / "tiny", seed=0)
    new = make_bundle(tmp_path / "new", seed=5)

    async def run():
        async with administered(tmp_path, tmp_path / "models") as client:
            shutil.rmtree(tmp_path / "models" / "tiny")
            new.folder.rename(tmp_path / "models" / "tiny")
            await client.post("/v1/admin/models/tiny/load")
            golden = open_bundle(tmp_path / "models" / "tiny").golden()
            answer = await client.post("/v1/classify", json={"inputs": [one.text for one in golden]})
            return golden, answer.json()["results"]

    golden, results = asyncio.run(run())
    for one, result in zip(golden, results, strict=True):
        found = {entry["label"]: entry["score"] for entry in result["labels"]}
        np.testing.assert_allclose([found["negative"], found["positive"]], one.scores["fp32"], atol=1e-4)
