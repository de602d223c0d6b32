"""Requests that are answered, refused or ended with the service."""

import asyncio
import threading

import pytest

import service.engine.batcher as batcher_module
from service.engine.queue import Priority
from service.errors import (
    DrainingError,
    InvalidInputError,
    QueueFullError,
)
from tests.service.fakes import entered, make, scenario
from tests.service.helpers import until


def test_results_come_back_in_the_order_of_the_inputs():
    async def test(model):
        _, batcher = make(model, max_batch_size=2)
        results = await batcher.classify(["aaa", "a", "aa", "aaaaa", "aaaa"])
        assert [float(result.output[0]) for result in results] == [3, 1, 2, 5, 4]
        assert [result.encoding.tokens for result in results] == [3, 1, 2, 5, 4]
        await batcher.close(5)

    scenario(test)


def test_what_waits_while_the_slot_is_busy_becomes_the_next_batch():
    async def test(model):
        model.gate.clear()
        target, batcher = make(model)
        first = asyncio.create_task(batcher.classify(["a"]))
        await entered(model)
        others = [asyncio.create_task(batcher.classify(["b" * n])) for n in (2, 3, 4)]
        await until(lambda: target.waiting_entries == 3)
        model.gate.set()
        await asyncio.gather(first, *others)
        assert model.batches == [[1], [2, 3, 4]]
        await batcher.close(5)

    scenario(test)


def test_as_many_batches_run_side_by_side_as_there_are_sessions():
    async def test(model):
        model.gate.clear()
        target, batcher = make(model, sessions=2, max_batch_size=1)
        work = asyncio.create_task(batcher.classify(["a", "b", "c", "d"]))
        await entered(model)
        await entered(model)
        assert len(model.batches) == 2
        assert target.waiting_entries == 1  # and one is prepared for whichever session is free first
        model.gate.set()
        await work
        await batcher.close(5)

    scenario(test)


def test_the_bound_on_entries_refuses_before_tokenizing():
    async def test(model):
        model.tokenize_gate.clear()
        target, batcher = make(model, capacity_entries=2)
        accepted = asyncio.create_task(batcher.classify(["a", "b"]))
        await until(lambda: target.reserved_entries == 2)
        with pytest.raises(QueueFullError, match="entries") as caught:  # at once, though tokenization is stuck
            await batcher.classify(["c"])
        assert caught.value.retry_after_s >= 1
        model.tokenize_gate.set()
        assert len(await accepted) == 2
        with pytest.raises(InvalidInputError, match="fewer"):
            await batcher.classify(["a", "b", "c"])
        await batcher.close(5)

    scenario(test)


def test_the_bound_on_tokens_refuses_after_tokenizing():
    async def test(model):
        model.gate.clear()
        target, batcher = make(model, capacity_tokens=10)
        first = asyncio.create_task(batcher.classify(["a"]))
        await entered(model)
        second = asyncio.create_task(batcher.classify(["b" * 8]))
        await until(lambda: target.waiting_entries == 1)
        with pytest.raises(QueueFullError, match="tokens"):
            await batcher.classify(["c" * 3])
        with pytest.raises(InvalidInputError, match="tokens"):
            await batcher.classify(["d" * 11])
        model.gate.set()
        await asyncio.gather(first, second)
        await batcher.close(5)

    scenario(test)


def test_close_finishes_what_was_accepted_and_refuses_the_rest():
    async def test(model):
        model.gate.clear()
        model.tokenize_gate.clear()
        target, batcher = make(model)
        accepted = asyncio.create_task(batcher.classify(["a"]))
        await until(lambda: target.reserved_entries == 1)
        closing = asyncio.create_task(batcher.close(20))
        await asyncio.sleep(0)
        with pytest.raises(DrainingError):
            await batcher.classify(["b"])
        model.tokenize_gate.set()
        model.gate.set()
        assert len(await accepted) == 1
        await closing
        assert not batcher.healthy

    scenario(test)


def test_close_fails_what_is_not_finished_in_time(caplog, monkeypatch):
    monkeypatch.setattr(batcher_module, "_THREADS_END_S", 0.01)  # they are held

    async def test(model):
        model.gate.clear()
        target, batcher = make(model, max_batch_size=1)
        tasks = [asyncio.create_task(batcher.classify([text])) for text in ("runs", "is prepared", "waits")]
        await entered(model)
        await until(lambda: target.waiting_entries == 1)
        model.tokenize_gate.clear()
        tasks += [asyncio.create_task(batcher.classify([text])) for text in ("is tokenized", "waits for that")]
        await until(lambda: target.reserved_entries == 2)
        await batcher.close(0.01)
        for task in tasks:
            with pytest.raises(DrainingError):
                await task
        assert (target.waiting_entries, target.reserved_entries) == (0, 0)
        model.tokenize_gate.set()
        model.gate.set()
        await until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("limbeck-")])
        assert model.batches == [[len("runs")]]

    scenario(test)


def test_requests_of_one_moment_are_tokenized_in_one_call():
    async def test(model):
        _, batcher = make(model)
        await asyncio.gather(*(batcher.classify([text]) for text in ("a", "bb", "ccc")))
        assert model.tokenized == [3]
        await batcher.close(5)

    scenario(test)


def test_a_large_request_does_not_keep_the_tokenizer_from_others():
    async def test(model):
        model.tokenize_gate.clear()
        _, batcher = make(model, capacity_entries=200, capacity_tokens=1000)
        large = asyncio.create_task(batcher.classify(["a"] * 70))
        await until(lambda: model.tokenized == [32])
        bulk = asyncio.create_task(batcher.classify(["bb"] * 20, priority=Priority.BULK))
        small = asyncio.create_task(batcher.classify(["ccc"]))
        await asyncio.sleep(0)
        model.tokenize_gate.set()
        results = await asyncio.gather(large, small, bulk)
        assert [len(result) for result in results] == [70, 1, 20]
        assert [{entry.encoding.tokens for entry in result} for result in results] == [{1}, {3}, {2}]
        assert model.tokenized == [32, 1 + 31 + 16, 7 + 4]
        await batcher.close(5)

    scenario(test)


def test_interactive_overtakes_bulk():
    async def test(model):
        model.gate.clear()
        target, batcher = make(model, max_batch_size=4)
        first = asyncio.create_task(batcher.classify(["a"]))
        await entered(model)
        bulk = asyncio.create_task(batcher.classify(["bb"] * 3, priority=Priority.BULK))
        await until(lambda: target.waiting_entries == 3)
        urgent = asyncio.create_task(batcher.classify(["ccc"] * 3))
        await until(lambda: target.waiting_entries in (2, 6))
        model.gate.set()
        await asyncio.gather(first, bulk, urgent)
        assert model.batches == [[1], [3, 3, 3, 2], [2, 2]]
        await batcher.close(5)

    scenario(test)


def test_no_inputs_are_an_error():
    async def test(model):
        _, batcher = make(model)
        with pytest.raises(InvalidInputError, match="at least one"):
            batcher.submit([])
        await batcher.close(5)

    scenario(test)
