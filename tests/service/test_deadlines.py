"""What is not run any more: cancelled, or past its deadline; and what waits on purpose."""

import asyncio
import time

import pytest

from service.errors import (
    DeadlineError,
)
from service.metrics import Metrics
from tests.service.fakes import entered, make, scenario, value
from tests.service.helpers import until


def test_a_cancelled_request_is_dropped_before_it_runs():
    async def test(model):
        model.gate.clear()
        target, batcher = make(model)
        first = asyncio.create_task(batcher.classify(["a"]))
        await entered(model)
        gone = asyncio.create_task(batcher.classify(["bb", "bb"]))
        stays = asyncio.create_task(batcher.classify(["ccc"]))
        await until(lambda: target.waiting_entries == 3)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert gone.cancelled()
        assert target.waiting_entries == 1
        model.gate.set()
        await asyncio.gather(first, stays)
        assert model.batches == [[1], [3]]
        await batcher.close(5)

    scenario(test)


def test_a_request_cancelled_in_tokenization_gives_its_places_back():
    async def test(model):
        model.tokenize_gate.clear()
        target, batcher = make(model)
        gone = asyncio.create_task(batcher.classify(["a", "b"]))
        await until(lambda: target.reserved_entries == 2)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert gone.cancelled()
        assert target.reserved_entries == 0
        model.tokenize_gate.set()
        await batcher.close(5)

    scenario(test)


def test_a_deadline_that_is_over_is_refused_at_once():
    async def test(model):
        metrics = Metrics()
        _, batcher = make(model, metrics=metrics)
        with pytest.raises(DeadlineError):
            batcher.submit(["a", "b"], deadline_s=time.monotonic())
        assert value(metrics, "limbeck_expired_entries_total") == 2
        assert (model.tokenized, model.batches) == ([], [])
        await batcher.close(5)

    scenario(test)


@pytest.mark.parametrize("place", ["tokenization", "queue", "prepared batch"])
def test_what_waits_past_its_deadline_is_answered_and_never_run(place):
    async def test(model):
        metrics = Metrics()
        model.gate.clear()
        target, batcher = make(model, metrics=metrics, max_batch_size=1 if place == "prepared batch" else 4)
        first = asyncio.create_task(batcher.classify(["a"]))
        await entered(model)
        if place == "tokenization":
            model.tokenize_gate.clear()
        late = asyncio.create_task(batcher.classify(["bb"], deadline_s=time.monotonic() + 0.05))
        if place == "prepared batch":
            await asyncio.sleep(0.06)
            model.gate.set()
        with pytest.raises(DeadlineError):  # of the first two while the session is still busy
            await late
        assert (target.waiting_entries, target.reserved_entries) == (0, 0)
        model.tokenize_gate.set()
        model.gate.set()
        await first
        assert len(await batcher.classify(["ccc"])) == 1
        assert model.batches == [[1], [3]]
        assert value(metrics, "limbeck_expired_entries_total") == 1
        await batcher.close(5)

    scenario(test)


def test_a_deadline_far_enough_away_changes_nothing():
    async def test(model):
        _, batcher = make(model)
        assert len(await batcher.classify(["a", "bb"], deadline_s=time.monotonic() + 60)) == 2
        await batcher.close(5)

    scenario(test)


def test_a_cancelled_entry_of_a_prepared_batch_never_runs():
    async def test(model):
        metrics = Metrics()
        model.gate.clear()
        target, batcher = make(model, metrics=metrics, max_batch_size=2)
        first = asyncio.create_task(batcher.classify(["a"]))
        await entered(model)
        gone, stays = (batcher.submit([text]) for text in ("bb", "ccc"))
        await until(lambda: not target.reserved_entries)
        assert target.waiting_entries == 0  # they are a full batch
        gone.cancel()
        model.gate.set()
        await first
        assert len(await stays) == 1
        assert model.batches == [[1], [3]]
        assert value(metrics, "limbeck_cancelled_entries_total") == 1
        await batcher.close(5)

    scenario(test)


def test_a_batch_waits_for_more_when_told_to():
    async def test(model):
        _, batcher = make(model, max_delay_s=0.05, max_batch_size=3)
        began_s = time.monotonic()
        await batcher.classify(["a"])
        assert time.monotonic() - began_s >= 0.05
        await asyncio.gather(*(batcher.classify([text]) for text in ("aa", "bb", "cc")))
        assert model.batches == [[1], [2, 2, 2]]
        await batcher.close(5)

    scenario(test)
