"""What the server costs beyond tokenizer and model: CPU for each request, against both, and against a bare ASGI app.

    .venv/bin/python -m benchmarks.serving.overhead runs/movie-reviews/bundle
    .venv/bin/python -m benchmarks.serving.overhead runs/movie-reviews/bundle --workers 1 2    # compared, interleaved
    .venv/bin/python -m benchmarks.serving.overhead runs/movie-reviews/bundle --guarded

wrk sends single texts to Limbeck and to bare_app.py, in turn, closed loop; after that the same texts go through
tokenizer and ONNX Runtime in this process, one thread, at batch 1 and at the mean batch size that the server just
formed. CPU is user and system time from /proc, of all of a server's processes; it does not depend on how many cores
wrk leaves, as requests/s do. Then requests of 32 texts against plain loops over the same batches, one a CPU.

`--guarded` adds a Limbeck with API keys (with quotas) and the request log on, which is asked with a key.

Overhead is Limbeck's CPU less that of tokenizer and model at the mean batch size. `x bare` is the overhead over the
bare app's CPU. Needs wrk (apt install wrk). Quote figures from an idle machine.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from benchmarks.serving import closed_loop, usage
from benchmarks.serving.closed_loop import Measured
from benchmarks.serving.report import spread
from benchmarks.serving.service_process import free_port, running, serving
from compress.machine import describe_machine, load_average
from service.engine.tokenization import pad
from service.keys import make_key
from service.model import Model, load_model
from service.settings import Settings, usable_cpus

LIBRARIES = ("uvicorn", "uvloop", "httptools", "fastapi", "msgspec", "onnxruntime", "tokenizers", "numpy")
BATCH = 32


@dataclass(frozen=True)
class Running:
    """A running server."""

    name: str
    pid: int
    url: str
    headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Turn:
    """What a server did under load for some seconds."""

    measured: Measured
    cpu_ms: float  # a request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of a bundle")
    parser.add_argument("--texts", type=Path, default=Path("examples/movie-reviews/data/test.jsonl"))
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="processes; several numbers are compared")
    parser.add_argument("--guarded", action="store_true", help="also with keys and request log on")
    parser.add_argument("--seconds", type=int, default=5, help="of each run of wrk")
    parser.add_argument("--repeats", type=int, default=5, help="of everything, interleaved")
    arguments = parser.parse_args()
    closed_loop.find_wrk()
    average = load_average()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as in the service; the processes below inherit it
    texts = [json.loads(line)["text"] for line in arguments.texts.read_text(encoding="utf-8").splitlines()]
    model = load_model(arguments.bundle, Settings(bundles=(arguments.bundle,)))
    tokens = statistics.mean(encoding.tokens for encoding in model.tokenizer.encode(texts))
    print(f"Machine: {describe_machine()}; load average {average:.2f} before the start.")
    if average > 0.3:
        print("**The machine was not idle: quote no requests/s from this run, and CPU with care.**")
    print(f"Versions: Python {sys.version.split()[0]}, {', '.join(f'{name} {version(name)}' for name in LIBRARIES)}.")
    print(
        f"{model.manifest.name} {model.manifest.version}, {model.variant.name} ({arguments.bundle}); {len(texts)} "
        f"texts of {tokens:.0f} tokens; {arguments.repeats} repeats of {arguments.seconds} s: median [range]."
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        singles = closed_loop.write_bodies(Path(folder) / "singles", [[text] for text in texts])
        batches = closed_loop.write_bodies(Path(folder) / "batches", _in_batches(texts, BATCH))
        pairs = []
        for workers in arguments.workers:
            bare, ours = stack.enter_context(both(arguments.bundle, texts, workers))
            pairs.append((bare, ours))
            if arguments.guarded:
                again = replace(bare, name=f"{bare.name}, again")
                pairs.append((again, stack.enter_context(guarded(arguments.bundle, workers, Path(folder)))))
        for connections in arguments.connections:
            single_texts(pairs, model, texts, singles, connections, arguments)
        for _, ours in pairs:
            batch_requests(ours, texts, batches, arguments)


def single_texts(
    pairs: list[tuple[Running, Running]],
    model: Model,
    texts: list[str],
    bodies: Path,
    connections: int,
    arguments: argparse.Namespace,
) -> None:
    """Print the table of one number of connections. Each pair is the bare app and Limbeck, with as many workers."""
    turns: dict[str, list[Turn]] = {server.name: [] for pair in pairs for server in pair}
    mixed: dict[str, list[float]] = {ours.name: [] for _, ours in pairs}
    sizes: dict[str, list[float]] = {ours.name: [] for _, ours in pairs}
    alone = []
    for _ in range(arguments.repeats):
        for bare, ours in pairs:
            turns[bare.name].append(load(bare, bodies, connections, arguments.seconds))
            before = batch_sizes(ours)
            turns[ours.name].append(load(ours, bodies, connections, arguments.seconds))
            after = batch_sizes(ours)
            sizes[ours.name].append((after[0] - before[0]) / (after[1] - before[1]))
            mixed[ours.name].append(in_process_cpu_ms(model, texts, max(1, round(sizes[ours.name][-1]))))
        alone.append(in_process_cpu_ms(model, texts, 1))
    print(f"\n{connections} connection(s), one text a request:\n")
    print("| | CPU ms a request | requests/s | p50 ms | p99 ms |\n|---|---|---|---|---|")
    for name, own in turns.items():
        cells = [spread([turn.cpu_ms for turn in own], 3), spread([turn.measured.per_second for turn in own], 0)]
        cells += [spread([turn.measured.p50_ms for turn in own], 2), spread([turn.measured.p99_ms for turn in own], 2)]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"| tokenizer and model in-process, batch 1 | {spread(alone, 3)} | | | |")
    for name, own_sizes in sizes.items():
        print(f"| the same in the batches of {name}, {spread(own_sizes, 1)} texts | {spread(mixed[name], 3)} | | | |")
    print()
    for bare, ours in pairs:
        costs = [turn.cpu_ms for turn in turns[ours.name]]
        overheads = [cost - part for cost, part in zip(costs, mixed[ours.name], strict=True)]
        multiples = [one / turn.cpu_ms for one, turn in zip(overheads, turns[bare.name], strict=True)]
        over = [cost / part for cost, part in zip(costs, mixed[ours.name], strict=True)]
        over_alone = [cost / part for cost, part in zip(costs, alone, strict=True)]
        print(
            f"{ours.name}: overhead {spread(overheads, 3)} ms a request, {spread(multiples, 1)} x bare; the server's "
            f"CPU is {spread(over, 2)} x tokenizer and model in these batches, {spread(over_alone, 2)} x at batch 1."
        )


def batch_requests(server: Running, texts: list[str], bodies: Path, arguments: argparse.Namespace) -> None:
    """Print the throughput of requests of 32 texts beside that of plain loops."""
    over_http, loops = [], []
    processes = usable_cpus()
    for _ in range(arguments.repeats):
        over_http.append(BATCH * load(server, bodies, 2 * processes, arguments.seconds).measured.per_second)
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            job = (arguments.bundle, texts, arguments.seconds)
            loops.append(sum(pool.map(in_process_texts_per_s, [job] * processes)))
    shares = [100 * one / other for one, other in zip(over_http, loops, strict=True)]
    print(
        f"\n{BATCH} texts a request, {2 * processes} connections, {server.name}: {spread(over_http, 0)} texts/s; "
        f"{processes} plain loops: {spread(loops, 0)} texts/s; the server reaches {spread(shares, 0)} % of them."
    )


def load(server: Running, bodies: Path, connections: int, seconds: int) -> Turn:
    """Let wrk send for `seconds`; every request must be answered well."""
    before_s = usage.cpu_seconds(server.pid)
    found = closed_loop.run(server.url, bodies, connections, seconds, lambda: None, server.headers)
    cpu_s = usage.cpu_seconds(server.pid) - before_s
    if found.errors:
        raise SystemExit(f"{server.name} did not answer {found.errors} of {found.answers + found.errors} requests")
    return Turn(found, 1000 * cpu_s / found.answers)


def in_process_cpu_ms(model: Model, texts: list[str], size: int) -> float:
    """Return the CPU milliseconds that tokenizer and model take for one text, in batches of `size`."""
    began_s = time.process_time()
    for batch in _in_batches(texts, size):
        model.session.run(pad(model.tokenizer.encode(batch), model.tokenizer.pad_id))
    return 1000 * (time.process_time() - began_s) / len(texts)


def in_process_texts_per_s(job: tuple[Path, list[str], int]) -> float:
    """Run batches for some seconds, as one of several processes."""
    bundle, texts, seconds = job
    model = load_model(bundle, Settings(bundles=(bundle,)))
    batches, done, began_s = _in_batches(texts, BATCH), 0, time.perf_counter()
    while time.perf_counter() - began_s < seconds:
        batch = batches[done % len(batches)]
        model.session.run(pad(model.tokenizer.encode(batch), model.tokenizer.pad_id))
        done += 1
    return BATCH * done / (time.perf_counter() - began_s)


@contextlib.contextmanager
def both(bundle: Path, texts: list[str], workers: int) -> Iterator[tuple[Running, Running]]:
    """Run the bare app, whose answers are as long as Limbeck's, and Limbeck."""
    with serving(bundle, workers=workers, log_level="error") as (limbeck, port):
        ours = f"http://127.0.0.1:{port}/v1/classify"
        question = json.dumps({"inputs": texts[:1]}).encode()
        with urllib.request.urlopen(
            urllib.request.Request(ours, question, {"content-type": "application/json"})
        ) as answer:
            length = len(answer.read())
        port = free_port()
        options = "--loop uvloop --http httptools --ws none --lifespan off --no-access-log --no-proxy-headers"
        command = [sys.executable, "-m", "uvicorn", *options.split(), "--log-level", "error", "--port", str(port)]
        command += ["--workers", str(workers), "benchmarks.serving.bare_app:app"]
        bare = f"http://127.0.0.1:{port}/"
        with running(command, bare, {"BARE_ANSWER_BYTES": str(length)}) as uvicorn:
            yield (
                Running(f"bare ASGI app, {workers} worker(s)", uvicorn.pid, bare),
                Running(f"Limbeck, {workers} worker(s)", limbeck.pid, ours),
            )


@contextlib.contextmanager
def guarded(bundle: Path, workers: int, folder: Path) -> Iterator[Running]:
    """Run Limbeck with a key that has both quotas, larger than what can be asked, and with a line for each request."""
    secret, entry = make_key("benchmark")
    keys = folder / "keys.toml"
    keys.write_text(f"{entry}requests_per_minute = 1000000000\ntokens_per_minute = 1000000000\n", encoding="utf-8")
    settings = {"workers": workers, "log_level": "error", "keys_file": keys, "request_log": True}
    with serving(bundle, printed=folder / f"requests-{workers}", **settings) as (limbeck, port):
        yield Running(
            f"Limbeck with keys and log, {workers} worker(s)",
            limbeck.pid,
            f"http://127.0.0.1:{port}/v1/classify",
            (f"Authorization: Bearer {secret}",),
        )


def batch_sizes(server: Running) -> tuple[float, float]:
    """Return how many texts there were in how many batches so far."""
    with urllib.request.urlopen(server.url.replace("/v1/classify", "/metrics")) as answer:
        lines = [line.rpartition(" ") for line in answer.read().decode().splitlines()]
    total, count = (
        sum(float(value) for name, _, value in lines if name.startswith(f"limbeck_batch_size_{part}"))
        for part in ("sum", "count")
    )
    return total, count


def _in_batches(texts: list[str], size: int) -> list[list[str]]:
    return [texts[start : start + size] for start in range(0, len(texts) - size + 1, size)]


if __name__ == "__main__":
    main()
