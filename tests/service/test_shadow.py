"""A new version is asked beside the one that answers, and compared; no client notices."""

import asyncio
import json
import re
import threading

import onnx
import pytest
from onnx import numpy_helper

from bundle import Activation, Task
from tests.service.helpers import changed, tag_bundle, until
from tests.service.rollouts import (
    ask_directly,
    break_session,
    decided,
    direct,
    failing,
    model,
    request,
    rolled_back,
    samples,
    state,
    told,
)
from tests.service.test_drift import _sigmoid_golden
from tests.service.test_lifecycle import administered
from tests.support.bundles import TEXTS, WORDS, make_bundle, tiny_model


def multi_label(bundle, folder, version):
    """The same weights under a sigmoid, with thresholds that few texts reach for both labels."""
    return changed(
        bundle,
        folder,
        files={"golden.jsonl": _sigmoid_golden(bundle)},
        version=version,
        task=Task.MULTI_LABEL,
        activation=Activation.SIGMOID,
        thresholds={"negative": 0.5, "positive": 0.5},
    )


@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.MULTI_LABEL, Task.TOKEN_CLASSIFICATION])
def test_shadows_are_compared_with_what_clients_were_answered(tmp_path, models, task):
    """The reference: what both versions answer to who names them."""
    if task is not Task.SINGLE_LABEL:
        for number, name in enumerate(("one", "two"), start=1):
            bundle = make_bundle(tmp_path / f"plain-{name}", seed=5 * number)
            (models / name).rename(tmp_path / f"old-{name}")
            if task is Task.MULTI_LABEL:
                multi_label(bundle, models / name, str(number))
            else:
                tag_bundle(bundle, models / name, seed=number, version=str(number))
    verb = "tag" if task is Task.TOKEN_CLASSIFICATION else "classify"
    texts = [*TEXTS, "good", "bad", "awful", "very great plot", "the dull film is not a good movie", "was"]

    async def run():
        async with administered(tmp_path, models) as client:
            path = f"/v1/models/tiny/versions/{{}}/{verb}"
            one, two = [
                (await client.post(path.format(version), json={"inputs": texts})).json()["results"] for version in "12"
            ]
            await state(client, shadow=1)
            answers = []
            for number, text in enumerate(texts, start=1):  # one at a time, so that none is shed
                answers.append((await client.post(f"/v1/{verb}", json={"inputs": text})).json())
                trial = client.app.state.registry._trials["tiny"]
                await until(lambda: trial.comparisons.value == number)  # noqa: B023 - awaited at once
            several = (await client.post(f"/v1/{verb}", json={"inputs": texts})).json()
            async with asyncio.timeout(20):
                while (await told(client))["observed"]["comparisons"] < 2 * len(texts):
                    await asyncio.sleep(0.01)
            return one, two, answers, several, await told(client), await samples(client)

    one, two, answers, several, now, metrics = asyncio.run(run())
    assert {answer["version"] for answer in [*answers, several]} == {"1"}
    assert [answer["results"][0] for answer in answers] == several["results"] == one
    differing = sum(decided(task, first) != decided(task, second) for first, second in zip(one, two, strict=True))
    assert 0 < differing < len(texts)
    observed = now["observed"]
    assert (observed["comparisons"], observed["disagreements"]) == (2 * len(texts), 2 * differing)
    assert (observed["shadows"], observed["shadow_faults"], observed["requests"]) == (len(texts) + 1, 0, 0)
    assert metrics['limbeck_shadow_comparisons_total{model="tiny",version="2"}'] == 2 * len(texts)
    assert metrics['limbeck_shadow_disagreements_total{model="tiny",version="2"}'] == 2 * differing
    assert not [name for name in metrics if name.startswith("limbeck_requests_total") and 'version="2"' in name][1:]


def test_disagreement_rolls_back(tmp_path, models):
    async def run():
        async with administered(tmp_path, models) as client:
            path = "/v1/models/tiny/versions/{}/classify"
            one, two = [
                (await client.post(path.format(v), json={"inputs": list(WORDS)})).json()["results"] for v in "12"
            ]
            differing = [
                word
                for word, first, second in zip(WORDS, one, two, strict=True)
                if decided(Task.SINGLE_LABEL, first) != decided(Task.SINGLE_LABEL, second)
            ]
            await state(client, shadow=1, max_disagreement=0.2, min_requests=10)
            wire, answered = direct(client), set()

            async def more():
                answered.add(await ask_directly(wire, request(text=differing[0])))

            now = await rolled_back(client, more)
            before = now["observed"]["shadows"]
            for _ in range(20):
                await more()
            return now, answered, before, (await told(client))["observed"]["shadows"]

    now, answered, before, after = asyncio.run(run())
    assert re.fullmatch(
        r"(\d+) of the last \1 texts compared were decided otherwise, expected at most 20 %", now["reason"]
    )
    assert answered == {"1"}
    assert after <= before + 40, "those that had begun"


@pytest.mark.parametrize("limit", [None, 0.5])
def test_a_shadow_that_fails_hurts_nobody_and_counts(tmp_path, models, monkeypatch, limit, caplog):
    async def run():
        async with administered(tmp_path, models) as client:
            (expected,) = [await client.post("/v1/models/tiny/versions/1/classify", json={"inputs": "good"})]
            await state(client, shadow=1, max_error_rate=limit, min_requests=5)
            break_session(monkeypatch, model(client, "2"), failing)
            wire, answers = direct(client), []

            async def more():
                wire.protocol.data_received(request())
                status, _, body = await wire.answer()
                answers.append((status, json.loads(body)) == (200, expected.json()))
                framework = await client.post("/v1/classify", json={"inputs": "good"})
                answers.append((framework.status_code, framework.json()) == (200, expected.json()))

            if limit is not None:
                return answers, await rolled_back(client, more)
            for _ in range(30):
                await more()
            async with asyncio.timeout(20):
                while not (await told(client))["observed"]["shadow_faults"]:
                    await asyncio.sleep(0.01)
            return answers, await told(client)

    answers, now = asyncio.run(run())
    assert all(answers)
    assert now["state"] == ("running" if limit is None else "rolled back")
    assert now["observed"]["shadow_faults"] == now["observed"]["shadows"] > 0


def test_shadows_are_shed_when_the_candidate_has_enough_to_do(tmp_path, models, monkeypatch):
    go_on = threading.Event()

    async def run():
        async with administered(tmp_path, models) as client:
            await state(client, shadow=1)
            found = model(client, "2")
            real = found.session.run

            def held(arrays):
                go_on.wait(20)
                return real(arrays)

            break_session(monkeypatch, found, held)
            wire = direct(client)
            answered = [await ask_directly(wire, request()) for _ in range(200)]
            waiting = found.batcher.waiting_entries
            shed = (await samples(client))['limbeck_shadows_shed_total{model="tiny",version="2"}']
            go_on.set()
            await until(lambda: not found.visitors)
            return answered, waiting, shed, (await told(client))["observed"]

    try:
        answered, waiting, shed, observed = asyncio.run(run())
    finally:
        go_on.set()
    assert answered == ["1"] * 200
    assert waiting <= 10
    assert shed >= 150
    assert observed["shadows"] + observed["shadows_shed"] == 200


def test_explanations_take_no_part(tmp_path, models):
    async def run():
        async with administered(tmp_path, models) as client:
            await state(client, shadow=1)
            for _ in range(3):
                explained = await client.post("/v1/explain", json={"inputs": "good movie"})
                assert explained.status_code == 200, explained.text
            await client.post("/v1/classify", json={"inputs": "good movie"})
            trial = client.app.state.registry._trials["tiny"]
            await until(lambda: trial.comparisons.value == 1)
            return (await told(client))["observed"]

    observed = asyncio.run(run())
    assert (observed["shadows"], observed["comparisons"], observed["requests"]) == (1, 1, 0)


def test_tiny_models_of_two_seeds_decide_differently_somewhere():
    """What the other tests rest on."""
    weights = [
        {tensor.name: numpy_helper.to_array(tensor) for tensor in tiny_model(seed).graph.initializer} for seed in (0, 5)
    ]
    labels = [(one["embeddings"] @ one["classifier"]).argmax(axis=1) for one in weights]
    assert 0 < (labels[0] != labels[1]).sum() < len(labels[0])
    assert onnx.checker.check_model(tiny_model(5)) is None
