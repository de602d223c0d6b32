"""A model whose every step a test can hold or break, and a batcher around it."""

import asyncio
import threading

import numpy as np

from service.engine.batcher import Batcher
from service.engine.queue import BatchQueue
from service.engine.tokenization import HEAD, Encoding
from service.metrics import Metrics


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
        self.poison_length = -1
        self.tokenized: list[int] = []

    def tokenize(self, inputs, reading=HEAD):
        self.tokenized.append(len(inputs))
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
        if self.poison_length in [encoding.tokens for encoding in encodings]:
            raise ValueError("a poisonous input")
        lengths = [float("nan") if e.tokens == self.bad_length else float(e.tokens) for e in encodings]
        return np.array([[length] for length in lengths], dtype=np.float32)


def make(model, *, sessions=1, hung_session_s=60.0, make_infer=None, metrics=None, **bounds):
    """A queue and its batcher; the queue prepares no batch ahead, unless it is full."""
    defaults = {
        "capacity_entries": 8,
        "capacity_tokens": 100,
        "max_batch_size": 4,
        "max_batch_tokens": 100,
        "max_padding_tokens": 100,
        "bulk_aging_s": 60.0,
    }
    target = BatchQueue(**(defaults | bounds))
    batcher = Batcher(
        target,
        model.tokenize,
        model.infer,
        make_infer=make_infer or (lambda: model.infer),
        sessions=sessions,
        hung_session_s=hung_session_s,
        metrics=(metrics or Metrics()).engine("m", "1"),
        observe=lambda _outputs, _encodings: None,
    )
    return target, batcher


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


def value(metrics: Metrics, name: str) -> float:
    """The value of a counter of the model that `make` serves."""
    return metrics.registry.get_sample_value(name, {"model": "m", "version": "1"})
