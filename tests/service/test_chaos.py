"""Everything at once: every request gets exactly one answer, the right one, and what was dropped has never run."""

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest

from service.engine.queue import Priority
from service.engine.tokenization import Encoding
from service.errors import DeadlineError, InferenceError, QueueFullError, ServiceError
from service.metrics import Metrics
from tests.service.fakes import make, value

CLIENTS = 200
HANGS = (40, 300)  # the calls of the model that never come back


class ChaoticModel:
    """A text is its own number; its first token id is that number, and its score, too. Some numbers are bad."""

    def __init__(self) -> None:
        self.ran: Counter[int] = Counter()
        self.calls = 0
        self.hangs = 0
        self.broken_calls = 0
        self.released = threading.Event()
        self._lock = threading.Lock()

    def tokenize(self, texts, reading=None):
        return [Encoding([int(text)] * (1 + int(text) * 7919 % 40), [], truncated=False) for text in texts]

    def infer(self, encodings):
        numbers = [encoding.ids[0] for encoding in encodings]
        with self._lock:
            self.calls += 1
            self.ran.update(numbers)
            hangs = self.calls in HANGS
            self.hangs += hangs
            breaks = (len(numbers) > 1 and self.calls % 50 == 0) or any(map(poisonous, numbers))
            self.broken_calls += breaks and not hangs
        if hangs:
            self.released.wait()
        if breaks:
            raise RuntimeError("broken on purpose")
        return np.array([[np.nan if infinite(number) else number] for number in numbers], dtype=np.float32)


def poisonous(number: int) -> bool:
    return number % 501 == 7


def infinite(number: int) -> bool:
    return number % 601 == 8


@dataclass
class Tally:
    """What the clients saw."""

    answered: int = 0
    refused: Counter[type[ServiceError]] = field(default_factory=Counter)
    refused_late: int = 0  # entries of requests that were never run
    requests: list[tuple[list[int], asyncio.Future]] = field(default_factory=list)


async def client(batcher, tally, numbers, count, seed):
    rng = random.Random(seed)
    loop = asyncio.get_running_loop()
    for _ in range(count):
        mine = [next(numbers) for _ in range(rng.choice((1, 1, 1, 1, 2, 3, 5, 8)))]
        deadline_s = rng.choice((None, None, 60.0, 60.0, rng.uniform(0, 0.02)))
        try:
            future = batcher.submit(
                [str(number) for number in mine],
                priority=rng.choice(tuple(Priority)),
                deadline_s=None if deadline_s is None else time.monotonic() + deadline_s,
            )
        except ServiceError as error:
            tally.refused[type(error)] += len(mine)
            await asyncio.sleep(0.001)
            continue
        tally.requests.append((mine, future))
        future.add_done_callback(lambda _: setattr(tally, "answered", tally.answered + 1))
        if rng.random() < 0.2:
            loop.call_later(rng.uniform(0, 0.02), future.cancel)
        with contextlib.suppress(ServiceError, asyncio.CancelledError):
            await future


def watch_given_up(batcher):
    """The numbers in batches that were given up: those that hang, and on a machine without a free processor others."""
    given_up: set[int] = set()
    hung = batcher._workers._hung

    def spy(batch):
        given_up.update(work.encoding.ids[0] for work in batch.works)
        hung(batch)

    batcher._workers._hung = spy
    return given_up


def check(tally, model, given_up, metrics):
    """Hold every answer and every counter against what the model saw."""
    never_ran: Counter[str] = Counter()
    for numbers, future in tally.requests:
        assert future.done()
        outcome = "cancelled" if future.cancelled() else type(future.exception()).__name__
        never_ran[outcome] += sum(number not in model.ran for number in numbers)
        if outcome == "NoneType":
            assert [float(result.output[0]) for result in future.result()] == numbers
            assert not [number for number in numbers if poisonous(number) or infinite(number)]
        elif outcome == InferenceError.__name__:
            assert [n for n in numbers if poisonous(n) or infinite(n) or n in given_up]
        elif outcome == QueueFullError.__name__:
            assert not [number for number in numbers if number in model.ran]
        elif outcome == DeadlineError.__name__:
            assert [number for number in numbers if number not in model.ran]
        else:
            assert outcome == "cancelled"
    assert tally.answered == len(tally.requests)
    assert never_ran["NoneType"] == 0
    assert never_ran["cancelled"] == value(metrics, "limbeck_cancelled_entries_total") > 0
    expired = never_ran[DeadlineError.__name__] + tally.refused[DeadlineError]
    assert expired == value(metrics, "limbeck_expired_entries_total") > 0
    assert tally.refused.keys() <= {DeadlineError, QueueFullError}
    assert value(metrics, "limbeck_hung_sessions_total") >= model.hangs == len(HANGS)
    assert value(metrics, "limbeck_batch_size_sum") == len(model.ran.keys() - given_up)
    assert 0 < value(metrics, "limbeck_failed_batches_total") <= model.broken_calls  # which counts poison again, alone
    assert max(model.ran.values()) <= 2  # once more alone, when the batch failed


async def chaos(requests):
    model, metrics, tally = ChaoticModel(), Metrics(), Tally()
    # seconds, because a thread may wait long for a busy machine's processor, and that is not to count as a hang
    target, batcher = make(
        model,
        sessions=3,
        hung_session_s=4.0,
        metrics=metrics,
        capacity_entries=600,
        capacity_tokens=9000,
        max_batch_size=16,
        max_batch_tokens=400,
        max_padding_tokens=8,
        bulk_aging_s=0.01,
    )
    numbers = iter(range(1, 10**9))
    given_up = watch_given_up(batcher)
    try:
        async with asyncio.timeout(280):
            await asyncio.gather(
                *(client(batcher, tally, numbers, requests // CLIENTS, seed) for seed in range(CLIENTS))
            )
        assert batcher.healthy
        assert (target.waiting_entries, target.waiting_tokens, target.reserved_entries) == (0, 0, 0)
        check(tally, model, given_up, metrics)
    finally:
        model.released.set()
        await batcher.close(5)


@pytest.mark.parametrize("requests", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_every_request_gets_one_answer_whatever_happens(requests, caplog):
    caplog.set_level("CRITICAL")  # thousands of expected errors
    asyncio.run(chaos(requests))
    assert not caplog.records
