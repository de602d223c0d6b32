"""The time that writing answers takes is measured, whichever way they take; and how long a text may be."""

import asyncio
import re

import pytest

from tests.service.helpers import Wire, label_request, pair_bundle, post, running, settings_for
from tests.service.test_server import samples

JSON = ("Content-Type", "application/json")
OF_TINY = '{model="tiny",version="1"}'


def test_writing_an_answer_is_timed_and_nothing_else_is(tiny_bundle):
    answered = [
        label_request("a good movie"),
        post("/v1/classify", b'{"inputs": "a", "truncate": "tail"}', JSON),
        post("/predict", b'{"inputs": "a"}', JSON),
    ]
    not_answered = [post("/v1/classify", b"{}", JSON), post("/v1/none", b"{}", JSON), b"GET /ping HTTP/1.1\r\n\r\n"]

    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            counts = []
            for request in answered + not_answered:
                wire = Wire(client.app)
                wire.protocol.data_received(request)
                await wire.answer()
                await asyncio.sleep(0.02)  # the framework's way is over a little after the last byte
                metrics = (await client.get("/metrics")).text
                counts.append(samples(metrics)[f"limbeck_serialization_seconds_count{OF_TINY}"])
            return counts, metrics

    counts, metrics = asyncio.run(run())
    assert counts == [1, 2, 3, 3, 3, 3]
    assert set(re.findall(r"limbeck_serialization_seconds_count(\{.*\}) ", metrics)) == {OF_TINY}
    found = samples(metrics)
    whole_s = sum(value for name, value in found.items() if name.startswith("limbeck_request_duration_seconds_sum"))
    assert 0 < found[f"limbeck_serialization_seconds_sum{OF_TINY}"] < whole_s


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/classify", {"inputs": ["a", "b" * 11]}, "inputs[1]"),
        ("/v1/classify", {"inputs": ["a", "b" * 11], "truncate": "tail"}, "inputs[1]"),
        ("/v1/models/pairs/classify", {"inputs": [{"text": "a", "text_pair": "b" * 11}]}, "inputs[0].text_pair"),
    ],
)
def test_a_text_beyond_the_bound_is_named(tiny_bundle, tmp_path, path, body, field):
    chosen = settings_for(
        tiny_bundle, pair_bundle(tiny_bundle, tmp_path / "p"), default_model="tiny", max_text_chars=10
    )

    async def run():
        async with running(chosen) as client:
            return await client.post(path, json=body)

    response = asyncio.run(run())
    assert response.status_code == 422
    assert response.json()["error"]["field"] == field
    assert "found a text of 11 characters, expected at most 10" in response.json()["error"]["message"]


def test_a_text_at_the_bound_is_read_and_characters_are_not_bytes(tiny_bundle):
    async def run():
        async with running(settings_for(tiny_bundle, max_text_chars=10)) as client:
            return await client.post("/v1/classify", json={"inputs": "é🎬" * 5})

    assert asyncio.run(run()).status_code == 200
