"""Whether the service's memory stays flat: very many requests of random length, and its resident memory as they pass.

    .venv/bin/python -m benchmarks.serving.soak runs/movie-reviews/bundle

Starts `limbeck serve BUNDLE` on a free port (settings come from LIMBECK_… as ever), sends it REQUESTS requests over
keep-alive connections, stops it and prints Markdown: machine, versions, counts, and resident memory of the service and
its children (median and highest sample) in each tenth of the requests. Half of the requests carry one text, the others
2 to 32; texts have 1 to 400 words, mostly few. Exit status 1: memory grew by more than 5 % from the first tenth to the
last, a request had another answer than 200 with a result for each text, or the service counted other texts than were
sent. Answers of 429 are counted and sent again.
"""

import argparse
import asyncio
import collections
import json
import random
import signal
import statistics
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from benchmarks.serving import usage
from benchmarks.serving.service_process import classify_request, read_answer, serving
from compress.machine import describe_machine, load_average

LARGEST_GROWTH = 0.05
WORDS = (
    "a",
    "the",
    "film",
    "movie",
    "plot",
    "of",
    "and",
    "was",
    "not",
    "very",
    "good",
    "bad",
    "dull",
    "great",
    "never",
)
POOL = 20_000  # different texts
SAMPLE_S = 0.2


@dataclass
class Progress:
    """What has been asked for and answered so far."""

    requests: int
    sent: int = 0
    answered: int = 0
    texts: int = 0
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    wrong: int = 0
    resident_mb: list[list[float]] = field(default_factory=lambda: [[] for _ in range(10)])

    def tenth(self) -> int:
        """Return which tenth of the requests is being answered, 0 to 9."""
        return min(9, self.answered * 10 // self.requests)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=1_000_000, help="[default: 1,000,000]")
    parser.add_argument("--connections", type=int, default=16, help="[default: 16]")
    parser.add_argument("--seed", type=int, default=0, help="[default: 0]")
    arguments = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "uvicorn", "fastapi", "tokenizers"))
    print(f"{describe_machine()}; load {load_average():.1f}; Python {sys.version.split()[0]}, {versions}")
    print(f"{arguments.bundle}, seed {arguments.seed}, {arguments.connections} connections\n", flush=True)
    progress = Progress(arguments.requests)
    with serving(arguments.bundle) as (server, port):
        began = time.monotonic()
        asyncio.run(soak(progress, server.pid, port, arguments.connections, random.Random(arguments.seed)))
        took_s = time.monotonic() - began
        counted = texts_counted(port)
        server.send_signal(signal.SIGTERM)
        status = server.wait(60)
    return report(progress, took_s, counted, status)


def report(progress: Progress, took_s: float, counted: int, status: int) -> int:
    """Print what was found and return the exit status."""
    answers = ", ".join(f"{code}: {number:,}" for code, number in sorted(progress.statuses.items()))
    print(
        f"{progress.answered:,} requests with {progress.texts:,} texts in {took_s:.0f} s; answers {answers}; ", end=""
    )
    print(f"texts counted by the service {counted:,}; its exit status {status}\n")
    print("| tenth of the requests | resident MB: median | highest |\n|---|---|---|")
    medians = [statistics.median(samples) if samples else float("nan") for samples in progress.resident_mb]
    for number, (median, samples) in enumerate(zip(medians, progress.resident_mb, strict=True), start=1):
        print(f"| {number} | {median:.1f} | {max(samples, default=float('nan')):.1f} |")
    growth = medians[-1] / medians[0] - 1
    print(f"\nfirst to last tenth: {growth:+.1%} (wanted: at most {LARGEST_GROWTH:.0%})")
    faults = progress.wrong + sum(number for code, number in progress.statuses.items() if code not in (200, 429))
    flat = growth <= LARGEST_GROWTH  # false for NaN, too: too few requests to have samples in every tenth
    return 0 if flat and not faults and counted == progress.texts and status == 0 else 1


def texts_counted(port: int) -> int:
    """Return how many texts the service says it admitted."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("limbeck_inputs_total")))


async def soak(progress: Progress, pid: int, port: int, connections: int, source: random.Random) -> None:
    texts = [random_text(source) for _ in range(POOL)]
    watching = asyncio.create_task(watch(progress, pid))
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(client(progress, port, texts, source))
    finally:
        watching.cancel()


async def client(progress: Progress, port: int, texts: list[bytes], source: random.Random) -> None:
    """Send requests over one connection until all are sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while progress.sent < progress.requests:
        progress.sent += 1
        size = 1 if source.random() < 0.5 else source.randint(2, 32)
        body = b'{"inputs":[' + b",".join(source.choices(texts, k=size)) + b"]}"
        request = classify_request(body)
        status = 429
        while status == 429:
            writer.write(request)
            status, answer = await read_answer(reader)
            progress.statuses[status] += 1
            if status == 429:
                await asyncio.sleep(0.1)
        progress.answered += 1
        progress.texts += size
        progress.wrong += status == 200 and answer.count(b'"truncated"') != size
    writer.close()
    await writer.wait_closed()


def random_text(source: random.Random) -> bytes:
    """Return a JSON string of 1 to 400 words: most of them few, as people write."""
    words = min(400, 1 + int(source.expovariate(1 / 20))) if source.random() < 0.95 else source.randint(1, 400)
    return json.dumps(" ".join(source.choices(WORDS, k=words))).encode()


async def watch(progress: Progress, pid: int) -> None:
    while True:
        progress.resident_mb[progress.tenth()].append(usage.memory(pid).rss_bytes / 1e6)
        await asyncio.sleep(SAMPLE_S)


if __name__ == "__main__":
    sys.exit(main())
