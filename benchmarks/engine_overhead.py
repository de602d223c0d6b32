"""CPU that the engine itself costs per request, with a model that computes nothing but takes its time.

    python benchmarks/engine_overhead.py [--rounds 5] [--loop uvloop]

The fake tokenizer and the fake model hash bytes without holding the interpreter's lock, as the real ones compute; the
CPU that they use is measured in their threads and taken off that of the process. What is left is the engine's Python,
the event loop's, the threads' hand-overs, and 2 µs of the client's own.
"""

import argparse
import asyncio
import hashlib
import os
import platform
import statistics
import time
from collections.abc import Sequence

import numpy as np
import uvloop

from service.engine.batcher import Batcher
from service.engine.queue import BatchQueue
from service.engine.tokenization import Encoding
from service.metrics import Metrics

CLIENTS = (1, 8, 32, 128)
LENGTHS = (12, 18, 22, 24, 27, 29, 33, 41)  # tokens, about as in movie reviews
TOKENIZE_S = 40e-6  # a text
CALL_S, TOKEN_S = 60e-6, 5e-6  # a call of a model of 2 layers by 128, and a padded token of it

own_s = [0.0]  # CPU of the fakes; added to under the interpreter's lock
calls = {"tokenize": 0, "infer": 0}
block = memoryview(bytes(8 * 2**20))


def hashed_bytes_per_s() -> float:
    best_s = min(timed_hash() for _ in range(20))
    return len(block) / best_s


def timed_hash() -> float:
    began_s = time.thread_time()
    hashlib.sha256(block)
    return time.thread_time() - began_s


rate = hashed_bytes_per_s()


def work(seconds: float) -> None:
    """Use the CPU for so long in one call that does not hold the lock."""
    hashlib.sha256(block[: int(seconds * rate)])


def tokenize(texts: Sequence[str]) -> list[Encoding]:
    began_s = time.thread_time()
    work(TOKENIZE_S * len(texts))
    encodings = [Encoding([1] * int(text), [0] * int(text), truncated=False) for text in texts]
    own_s[0] += time.thread_time() - began_s
    calls["tokenize"] += 1
    return encodings


def infer(encodings: Sequence[Encoding]) -> np.ndarray:
    began_s = time.thread_time()
    work(CALL_S + TOKEN_S * len(encodings) * max(len(encoding.ids) for encoding in encodings))
    scores = np.zeros((len(encodings), 2), np.float32)
    own_s[0] += time.thread_time() - began_s
    calls["infer"] += 1
    return scores


async def measure(clients: int, requests: int) -> tuple[float, float, float, float]:
    """Return CPU µs of the engine per request, requests/s, texts per call of the model and of the tokenizer."""
    queue: BatchQueue = BatchQueue(
        capacity_entries=1024,
        capacity_tokens=131072,
        max_batch_size=16,
        max_batch_tokens=4096,
        max_padding_tokens=8,
        bulk_aging_s=1,
    )
    batcher = Batcher(
        queue,
        tokenize,
        infer,
        make_infer=lambda: infer,
        sessions=2,
        hung_session_s=600,
        metrics=Metrics().engine("m", "1"),
        observe=lambda _outputs, _encodings: None,
    )

    async def client(number: int, count: int) -> None:
        for turn in range(count):
            text = str(LENGTHS[(number + turn) % len(LENGTHS)])
            await batcher.submit([text], deadline_s=time.monotonic() + 600)

    async def all_clients(count: int) -> None:
        await asyncio.gather(*(client(number, count) for number in range(clients)))

    await all_clients(5)
    own_s[0], calls["tokenize"], calls["infer"] = 0.0, 0, 0
    process_s, wall_s = time.process_time(), time.perf_counter()
    await all_clients(requests // clients)
    process_s, wall_s = time.process_time() - process_s, time.perf_counter() - wall_s
    done = requests // clients * clients
    await batcher.close(5)
    return (process_s - own_s[0]) / done * 1e6, done / wall_s, done / calls["infer"], done / calls["tokenize"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=4000, help="in each round, at each number of clients")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    options = parser.parse_args()
    run = uvloop.run if options.loop == "uvloop" else asyncio.run
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    print(f"Python {platform.python_version()}, {options.loop}, {options.requests} requests, {options.rounds} rounds")
    found: dict[int, list[tuple[float, float, float, float]]] = {clients: [] for clients in CLIENTS}
    for _ in range(options.rounds):
        for clients in CLIENTS:
            found[clients].append(run(measure(clients, options.requests)))
    print(
        "| clients | engine CPU µs/request: median [lowest–highest] | requests/s | texts/batch | texts/tokenizer call |"
    )
    print("|---|---|---|---|---|")
    for clients, rounds in found.items():
        cpu_us, per_s, batch, call = zip(*rounds, strict=True)
        print(
            f"| {clients} | {statistics.median(cpu_us):.1f} [{min(cpu_us):.1f}–{max(cpu_us):.1f}] "
            f"| {statistics.median(per_s):.0f} | {statistics.median(batch):.1f} | {statistics.median(call):.1f} |"
        )


if __name__ == "__main__":
    main()
