"""Latency in ONNX Runtime, dynamic length: models take turns so that noise hits all of them."""

import itertools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bundle.manifest import Latency
from compress.progress import track
from service.engine.session import Session
from service.engine.tokenization import Encoding, pad

BATCH_SIZES = (1, 8, 32)


@dataclass(frozen=True)
class Timed:
    """A model, and the texts it is timed on as its own tokenizer gives them."""

    path: Path
    encodings: Sequence[Encoding]
    pad_id: int


def measure_latency(
    models: Mapping[str, Timed],
    rounds: int,
    console: Console,
    sizes: Sequence[int] = BATCH_SIZES,
    threads: int = 1,
) -> dict[str, dict[int, Latency]]:
    """Return each model's milliseconds per call at each batch size over all its texts, after one round of warm-up.

    In each round every model runs every batch once, one model after the other. Batches are padded to their own
    longest text, as the service pads them, and full: where texts run out, they are taken again from the first.
    """
    sessions = {name: Session(model.path, threads=threads) for name, model in models.items()}
    batches = {
        (name, size): [pad(batch, model.pad_id) for batch in _full_batches(model.encodings, size)]
        for name, model in models.items()
        for size in sizes
    }
    times: dict[str, dict[int, list[float]]] = {name: {size: [] for size in sizes} for name in models}
    with track(console, "measuring latency", (rounds + 1) * len(sizes) * len(models)) as advance:
        for turn in range(rounds + 1):
            for size in sizes:
                for name, session in sessions.items():
                    own = batches[name, size]
                    started = time.perf_counter()
                    for batch in own:
                        session.run(batch)
                    if turn:
                        times[name][size].append((time.perf_counter() - started) * 1000 / len(own))
                    advance(1, name)
    return {name: {size: _summary(values) for size, values in by_size.items()} for name, by_size in times.items()}


def _full_batches(encodings: Sequence[Encoding], size: int) -> list[list[Encoding]]:
    number = math.ceil(len(encodings) / size)
    texts = itertools.cycle(encodings)
    return [list(itertools.islice(texts, size)) for _ in range(number)]


def _summary(values: list[float]) -> Latency:
    return Latency(median_ms=statistics.median(values), fastest_ms=min(values), slowest_ms=max(values))
