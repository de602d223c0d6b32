"""What fails, hangs or dies, and whom it takes along."""

import asyncio
import logging
import subprocess
import sys
import threading

import pytest

import service.engine.workers as workers_module
from service.engine.errors import SessionError
from service.errors import (
    InferenceError,
    NotReadyError,
)
from service.metrics import Metrics
from tests.service.fakes import FakeModel, entered, make, scenario, value
from tests.service.helpers import until


def test_a_failing_model_fails_its_requests_and_recovers(caplog):
    async def test(model):
        metrics = Metrics()
        _, batcher = make(model, metrics=metrics)
        model.failing = RuntimeError("secret of the session")
        with pytest.raises(InferenceError) as caught:
            await batcher.classify(["a", "b"])
        assert "secret" not in str(caught.value)
        model.failing = None
        assert len(await batcher.classify(["a"])) == 1
        assert batcher.healthy
        assert value(metrics, "limbeck_failed_batches_total") == 1
        await batcher.close(5)

    scenario(test)
    assert "secret of the session" in caplog.text


def test_one_poisonous_input_fails_alone(caplog):
    async def test(model):
        model.gate.clear()
        target, batcher = make(model)
        blocker = asyncio.create_task(batcher.classify(["x"]))
        await entered(model)
        model.poison_length = 2
        bad, good, *_ = tasks = [asyncio.create_task(batcher.classify([text])) for text in ("bb", "ccc", "dddd")]
        await until(lambda: target.waiting_entries == 3)
        model.gate.set()
        await blocker
        await asyncio.wait(tasks)
        with pytest.raises(InferenceError, match="inference failed"):
            await bad
        assert float((await good)[0].output[0]) == 3
        assert model.batches[1:] == [[2, 3, 4], [2], [3], [4]]  # together, then each once alone
        await batcher.close(5)

    scenario(test)


def test_a_failure_drops_the_rest_of_the_same_request(caplog):
    async def test(model):
        model.failing = RuntimeError("no")
        target, batcher = make(model, max_batch_size=1)
        with pytest.raises(InferenceError):
            await batcher.classify(["a", "bb", "ccc", "dddd", "eeeee"])
        assert target.waiting_entries == 0
        await batcher.close(5)
        assert [5] not in model.batches  # the ones before it may have begun before the failure was seen

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
        assert float((await good)[0].output[0]) == 3
        assert model.batches[1] == [2, 3]
        await batcher.close(5)

    scenario(test)


def test_a_wrong_number_of_rows_is_an_error_for_the_whole_batch(caplog):
    async def test(model):
        model_infer = model.infer
        model.infer = lambda encodings: model_infer(encodings)[:-1]
        _, batcher = make(model)
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

        def broken(now_s, ahead):
            raise RuntimeError("a fault in the owner")

        target.next_batch = broken
        model.gate.set()  # the slot is freed, and the owner looks for the next batch
        assert len(await running) == 1
        for waiter in (waiting, tokenizing):
            with pytest.raises(InferenceError, match="died"):
                await waiter
        assert not batcher.healthy
        model.tokenize_gate.set()
        with pytest.raises(NotReadyError):
            await batcher.classify(["d"])
        assert (target.waiting_entries, target.reserved_entries) == (0, 0)
        await batcher.close(5)

    with caplog.at_level(logging.CRITICAL):
        scenario(test)
    assert "a fault in the owner" in caplog.text


def test_a_text_that_cannot_be_tokenized_fails_alone(caplog):
    async def test(model):
        _, batcher = make(model)
        bad, good = (asyncio.create_task(batcher.classify([text])) for text in ("broken", "aa"))
        assert (await good)[0].encoding.tokens == 2
        with pytest.raises(InferenceError, match="tokenization failed"):
            await bad
        assert model.tokenized == [2, 1, 1]
        await batcher.close(5)

    scenario(test)


def test_a_session_that_hangs_is_given_up_and_replaced(caplog):
    async def test(model):
        metrics = Metrics()
        other = FakeModel()
        made_in: list[str] = []

        def make_infer():
            made_in.append(threading.current_thread().name)
            return other.infer

        model.gate.clear()
        _, batcher = make(model, metrics=metrics, hung_session_s=1.0, make_infer=make_infer)
        hangs = asyncio.create_task(batcher.classify(["a"]))
        await entered(model)
        waits = asyncio.create_task(batcher.classify(["bb"]))
        with pytest.raises(InferenceError, match="too long"):
            await hangs
        assert float((await waits)[0].output[0]) == 2
        assert (model.batches, other.batches) == ([[1]], [[2]])
        assert made_in == ["limbeck-infer"]  # loading takes seconds: not on the event loop
        assert value(metrics, "limbeck_hung_sessions_total") == 1
        model.gate.set()  # the late result is nobody's, and its thread ends
        await until(lambda: sum(thread.name == "limbeck-infer" for thread in threading.enumerate()) == 1)
        assert len(await batcher.classify(["ccc"])) == 1
        assert other.batches == [[2], [3]]
        assert value(metrics, "limbeck_batch_size_count") == 2
        await batcher.close(5)

    scenario(test)
    assert "a session hangs" in caplog.text


def test_without_a_session_requests_are_refused_until_one_is_made(caplog):
    async def test(model):
        made = threading.Event()
        other = FakeModel()

        def make_infer():
            assert made.wait(20)
            return other.infer

        model.gate.clear()
        _, batcher = make(model, hung_session_s=0.5, make_infer=make_infer)
        with pytest.raises(InferenceError, match="too long"):
            await batcher.classify(["a"])
        assert not batcher.healthy
        with pytest.raises(NotReadyError):
            await batcher.classify(["bb"])
        made.set()
        await until(lambda: batcher.healthy)
        model.gate.set()
        await batcher.close(5)

    scenario(test)


def test_a_session_that_cannot_be_replaced_turns_health_false(caplog):
    async def test(model):
        def make_infer():
            raise SessionError("the file is gone")

        model.gate.clear()
        _, batcher = make(model, hung_session_s=0.5, make_infer=make_infer)
        hangs = asyncio.create_task(batcher.classify(["a"]))
        await entered(model)
        waits = asyncio.create_task(batcher.classify(["bb"]))
        for task in (hangs, waits):
            with pytest.raises(InferenceError):
                await task
        assert not batcher.healthy
        model.gate.set()
        await batcher.close(5)

    scenario(test)
    assert "the file is gone" in caplog.text
    assert "no session is left" in caplog.text


def test_too_many_stuck_sessions_turn_health_false(caplog, monkeypatch):
    monkeypatch.setattr(workers_module, "_MOST_HUNG", 1)

    async def test(model):
        model.gate.clear()
        _, batcher = make(model, hung_session_s=0.5)
        for _ in range(2):
            await until(lambda: batcher.healthy)
            with pytest.raises(InferenceError, match="too long"):
                await batcher.classify(["a"])
        assert not batcher.healthy
        model.gate.set()
        await batcher.close(5)

    scenario(test)
    assert "2 sessions hang" in caplog.text


HANGING = """
import asyncio, threading
from tests.service.fakes import make

class Hanging:
    entered = threading.Event()
    def tokenize(self, inputs, reading=None):
        from service.engine.tokenization import Encoding
        return [Encoding([1], [0], truncated=False) for _ in inputs]
    def infer(self, encodings):
        self.entered.set()
        threading.Event().wait()

async def main():
    model = Hanging()
    _, batcher = make(model)
    request = batcher.submit(["a"])
    await asyncio.to_thread(model.entered.wait)
    await batcher.close(0.01)
    print(type(request.exception()).__name__)

asyncio.run(main())
"""


def test_a_thread_that_hangs_does_not_keep_the_process_from_ending():
    ended = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (0, "DrainingError\n"), ended.stderr
