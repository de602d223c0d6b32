"""A text's scores are the same bit for bit whatever shares its batch, whatever the load."""

import asyncio
import random

import pytest

from service.engine.queue import Priority
from service.metrics import Metrics
from service.model import load_model
from tests.service.helpers import reference_scores, settings_for
from tests.support.bundles import TEXTS, WORDS

ROUNDS = 40


def test_scores_do_not_depend_on_batch_mates_or_load(tiny_bundle):
    rng = random.Random(0)
    requests = 0
    strangers = [" ".join(rng.choices(WORDS, k=rng.randint(1, 14))) for _ in range(200)]

    async def run():
        settings = settings_for(tiny_bundle, sessions=2, max_padding_tokens=100)
        metrics = Metrics()
        model = load_model(tiny_bundle.folder, settings)
        model.start(settings, metrics)

        def scores(results):
            return [result.output[0].tolist() for result in results]

        async def stranger():
            inputs = rng.sample(strangers, rng.randint(1, 5))
            nonlocal requests
            requests += 1
            await model.batcher.classify(inputs, priority=rng.choice(tuple(Priority)))

        try:
            alone = [scores(await model.batcher.classify([text]))[0] for text in TEXTS]
            runs = [scores(await model.batcher.classify(TEXTS))]
            calm = batches(metrics)
            for _ in range(ROUNDS):
                neighbors = [stranger() for _ in range(rng.randint(0, 12))]
                shuffled = rng.sample(TEXTS, len(TEXTS))
                found, *_ = await asyncio.gather(model.batcher.classify(shuffled), *neighbors)
                of_text = dict(zip(shuffled, scores(found), strict=True))
                runs.append([of_text[text] for text in TEXTS])
            return alone, runs, batches(metrics) - calm
        finally:
            await model.close(5)

    alone, runs, calls = asyncio.run(run())
    assert alone == [pytest.approx(reference_scores(text), abs=1e-6) for text in TEXTS]
    assert len(runs) == 1 + ROUNDS
    assert all(run == alone for run in runs)
    assert requests > 100
    assert calls < requests / 2  # so several requests were in one batch


def batches(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("limbeck_batch_size_count", {"model": "tiny", "version": "1"})
