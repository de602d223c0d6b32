import asyncio
import logging
import threading

import numpy as np
import pytest

from service.engine.batcher import Batcher
from service.engine.queue import BatchQueue
from service.engine.tokenization import Encoding
from service.errors import DrainingError, InferenceError, InvalidInputError, NotReadyError, QueueFullError
from service.metrics import Metrics
from tests.service.helpers import until


class FakeModel:
    """One token a character; the score of a text is its length. The gates hold inference and tokenization."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.tokenize_gate = threading.Event()
        self.gate.set()
        self.tokenize_gate.set()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[int]] = []
        self.failing: Exception | None = None
        self.bad_length = -1

    def tokenize(self, inputs):
        assert self.tokenize_gate.wait(20)
        if "broken" in inputs:
            raise ValueError("secret of the tokenizer")
        return [Encoding([1] * len(text), [0] * len(text), truncated=False) for text in inputs]

    def infer(self, encodings):
        self.batches.append([encoding.tokens for encoding in encodings])
        self.entered.release()
        assert self.gate.wait(20)
        if self.failing:
            raise self.failing
        lengths = [float("nan") if e.tokens == self.bad_length else float(e.tokens) for e in encodings]
        return np.array([[length] for length in lengths], dtype=np.float32)


def make(model, *, sessions=1, **bounds):
    defaults = {"capacity_entries": 8, "capacity_tokens": 100, "max_batch_size": 4, "max_batch_tokens": 100}
    target = BatchQueue(**(defaults | bounds))
    return target, Batcher(
        target, model.tokenize, model.infer, sessions=sessions, metrics=Metrics().engine("m", "1")
    ).start()


def scenario(test):
    """Run `test(model)` on an event loop; whatever it holds back is let go at the end."""

    async def run():
        model = FakeModel()
        try:
            async with asyncio.timeout(30):
                await test(model)
        finally:
            model.gate.set()
            model.tokenize_gate.set()

    asyncio.run(run())


async def entered(model):
    await asyncio.to_thread(model.entered.acquire, timeout=20)


def test_results_come_back_in_the_order_of_the_inputs():
    async def test(model):
        _, batcher = make(model, max_batch_size=2)
        results = await batcher.classify(["aaa", "a", "aa", "aaaaa", "aaaa"])
        assert [float(result.scores[0]) for result in results] == [3, 1, 2, 5, 4]
        assert [result.tokens for result in results] == [3, 1, 2, 5, 4]
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
        work = asyncio.create_task(batcher.classify(["a", "b", "c"]))
        await entered(model)
        await entered(model)
        assert len(model.batches) == 2
        assert target.waiting_entries == 1
        model.gate.set()
        await work
        await batcher.close(5)

    scenario(test)


def test_a_failing_batch_fails_only_its_own_requests(caplog):
    async def test(model):
        _, batcher = make(model)
        model.failing = RuntimeError("secret of the session")
        with pytest.raises(InferenceError) as caught:
            await batcher.classify(["a", "b"])
        assert "secret" not in str(caught.value)
        model.failing = None
        assert len(await batcher.classify(["a"])) == 1
        assert batcher.healthy
        await batcher.close(5)

    scenario(test)
    assert "secret of the session" in caplog.text


def test_a_failure_drops_the_rest_of_the_same_request(caplog):
    async def test(model):
        model.failing = RuntimeError("no")
        target, batcher = make(model, max_batch_size=1)
        with pytest.raises(InferenceError):
            await batcher.classify(["a", "b", "c", "d"])
        assert target.waiting_entries == 0
        await batcher.close(5)
        assert len(model.batches) <= 2  # one more may have begun before the failure was seen

    scenario(test)


def test_a_score_that_is_no_number_fails_its_request_and_not_its_batch_mates(caplog):
    async def test(model):
        model.gate.clear()
        target, batcher = make(model)
        blocker = asyncio.create_task(batcher.classify(["x"]))
        await entered(model)
        model.bad_length = 2
        bad, good = (asyncio.create_task(batcher.classify([text])) for text in ("bb", "ccc"))
        await until(lambda: target.waiting_entries == 2)
        model.gate.set()
        await blocker
        with pytest.raises(InferenceError, match="finite"):
            await bad
        assert float((await good)[0].scores[0]) == 3
        assert model.batches[1] == [2, 3]
        await batcher.close(5)

    scenario(test)


def test_a_wrong_number_of_rows_is_an_error_for_the_whole_batch(caplog):
    async def test(model):
        _, batcher = make(model)
        model_infer = model.infer
        batcher._infer = lambda encodings: model_infer(encodings)[:-1]
        with pytest.raises(InferenceError):
            await batcher.classify(["a", "b"])
        await batcher.close(5)

    scenario(test)


def test_a_tokenizer_error_gives_the_places_back(caplog):
    async def test(model):
        target, batcher = make(model)
        with pytest.raises(InferenceError, match="tokenization failed"):
            await batcher.classify(["broken"])
        assert target.reserved_entries == 0
        assert len(await batcher.classify(["a"])) == 1
        await batcher.close(5)

    scenario(test)
    assert "secret of the tokenizer" in caplog.text


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


def test_close_fails_what_is_not_finished_in_time(caplog):
    async def test(model):
        model.gate.clear()
        target, batcher = make(model, max_batch_size=1)
        running = asyncio.create_task(batcher.classify(["a"]))
        await entered(model)
        waiting = asyncio.create_task(batcher.classify(["b"]))
        await until(lambda: target.waiting_entries == 1)
        model.tokenize_gate.clear()
        tokenizing = [asyncio.create_task(batcher.classify([text])) for text in ("c", "d")]  # one runs, one is queued
        await until(lambda: target.reserved_entries == 2)
        await batcher.close(0.01)
        model.tokenize_gate.set()
        for task in (running, waiting, *tokenizing):
            with pytest.raises(DrainingError):
                await task
        assert (target.waiting_entries, target.reserved_entries) == (0, 0)

    scenario(test)


def test_when_the_owner_dies_everyone_gets_an_error_and_health_turns_false(caplog):
    async def test(model):
        model.gate.clear()
        target, batcher = make(model)
        running = asyncio.create_task(batcher.classify(["a"]))
        await entered(model)
        waiting = asyncio.create_task(batcher.classify(["b"]))
        await until(lambda: target.waiting_entries == 1)
        model.tokenize_gate.clear()
        tokenizing = asyncio.create_task(batcher.classify(["c"]))
        await until(lambda: target.reserved_entries == 1)

        def broken():
            raise RuntimeError("a fault in the owner")

        target.next_batch = broken
        model.gate.set()  # the slot is freed, and the owner looks for the next batch
        assert len(await running) == 1
        with pytest.raises(InferenceError, match="died"):
            await waiting
        assert not batcher.healthy
        model.tokenize_gate.set()
        with pytest.raises(NotReadyError):
            await tokenizing
        with pytest.raises(NotReadyError):
            await batcher.classify(["d"])
        assert (target.waiting_entries, target.reserved_entries) == (0, 0)
        await batcher.close(5)

    with caplog.at_level(logging.CRITICAL):
        scenario(test)
    assert "a fault in the owner" in caplog.text
