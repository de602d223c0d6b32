"""TEI's names for our numbers."""

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from tests.service.helpers import running, settings_for

# the names that dashboards made for Text Embeddings Inference ask for
NAMES = {
    "te_request_count",
    "te_request_success",
    "te_request_failure",
    "te_request_duration_count",
    "te_request_tokenization_duration_sum",
    "te_request_queue_duration_bucket",
    "te_request_inference_duration_count",
    "te_queue_size",
    "te_batch_next_size_sum",
    "te_batch_next_tokens_sum",
}


def scrape(tiny_bundle, **settings: object) -> dict[str, float]:
    async def run():
        async with running(settings_for(tiny_bundle, **settings)) as client:
            await client.post("/predict", json={"inputs": [["good"], ["bad movie"]]})
            await client.post("/predict", json={"inputs": ""})
            return (await client.get("/metrics")).text

    families = text_string_to_metric_families(asyncio.run(run()))
    found: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def test_the_aliases_have_our_numbers(tiny_bundle):
    found = scrape(tiny_bundle, tei_metrics=True)
    assert found.keys() >= NAMES
    assert found["te_request_count"] == 2
    assert found["te_request_success"] == 1
    assert found["te_request_failure"] == 1
    assert found["te_batch_next_size_sum"] == 2
    assert found["te_request_inference_duration_count"] == found["limbeck_inference_seconds_count"] == 1
    assert found["te_request_duration_count"] == 2


def test_they_are_off_unless_asked_for(tiny_bundle):
    assert not [name for name in scrape(tiny_bundle) if name.startswith("te_")]
