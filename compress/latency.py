"""Latency in ONNX Runtime, one thread, dynamic length: models take turns so that noise hits all of them."""

import itertools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from bundle.manifest import Latency, LatencyByBatch
from compress.progress import track
from service.engine.session import Session
from service.engine.tokenization import Encoding, pad

BATCH_SIZES = (1, 32)


def measure_latency(
    models: Mapping[str, Path], encodings: Sequence[Encoding], pad_id: int, rounds: int, console: Console
) -> dict[str, LatencyByBatch]:
    """Return each model's milliseconds per call over all of `encodings`, after one round of warm-up.

    In each round every model runs every batch once, one model after the other. Batches are padded to their own
    longest text, as the service pads them, and full: where texts run out, they are taken again from the first.
    """
    sessions = {name: Session(path, threads=1) for name, path in models.items()}
    batches = {size: [pad(batch, pad_id) for batch in _full_batches(encodings, size)] for size in BATCH_SIZES}
    times: dict[str, dict[int, list[float]]] = {name: {size: [] for size in BATCH_SIZES} for name in models}
    with track(console, "measuring latency", (rounds + 1) * len(BATCH_SIZES) * len(models)) as advance:
        for turn in range(rounds + 1):
            for size in BATCH_SIZES:
                for name, session in sessions.items():
                    started = time.perf_counter()
                    for batch in batches[size]:
                        session.run(batch)
                    if turn:
                        times[name][size].append((time.perf_counter() - started) * 1000 / len(batches[size]))
                    advance(1, name)
    return {
        name: LatencyByBatch(batch_1=_summary(by_size[1]), batch_32=_summary(by_size[32]))
        for name, by_size in times.items()
    }


def _full_batches(encodings: Sequence[Encoding], size: int) -> list[list[Encoding]]:
    number = math.ceil(len(encodings) / size)
    texts = itertools.cycle(encodings)
    return [list(itertools.islice(texts, size)) for _ in range(number)]


def _summary(values: list[float]) -> Latency:
    return Latency(median_ms=statistics.median(values), fastest_ms=min(values), slowest_ms=max(values))
