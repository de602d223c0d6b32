"""What the server costs beyond tokenizer and model: CPU for each request, against both, and against a bare ASGI app.

    .venv/bin/python benchmarks/serving/overhead.py runs/movie-reviews/bundle
    .venv/bin/python benchmarks/serving/overhead.py runs/movie-reviews/bundle --workers 1 2    # compared, interleaved

wrk sends single texts to Limbeck and to bare_app.py, in turn, closed loop; after that the same texts go through
tokenizer and ONNX Runtime in this process, one thread, at batch 1 and at the mean batch size that the server just
formed. CPU is user and system time from /proc, of all of a server's processes; it does not depend on how many cores
wrk leaves, as requests/s do. Then requests of 32 texts against plain loops over the same batches, one a CPU.

Overhead is Limbeck's CPU less that of tokenizer and model at the mean batch size. `x bare` is the overhead over the
bare app's CPU. Needs wrk (apt install wrk). Quote figures from an idle machine.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from compress.machine import describe_machine, load_average
from service.engine.tokenization import pad
from service.registry import Model, load_model
from service.settings import Settings, usable_cpus

HERE = Path(__file__).parent
LIBRARIES = ("uvicorn", "uvloop", "httptools", "fastapi", "msgspec", "onnxruntime", "tokenizers", "numpy")
BATCH = 32
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    process: int
    url: str

    def cpu_s(self) -> float:
        """CPU seconds that its processes have used so far."""
        children = Path(f"/proc/{self.process}/task/{self.process}/children").read_text().split()
        stats = [Path(f"/proc/{process}/stat").read_text() for process in (str(self.process), *children)]
        fields = [stat.rpartition(")")[2].split() for stat in stats]
        return sum(int(own[11]) + int(own[12]) for own in fields) / TICKS_A_SECOND


@dataclass(frozen=True)
class Sample:
    """One run of the load."""

    requests_per_s: float
    cpu_ms: float  # a request
    p50_ms: float
    p99_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of a bundle")
    parser.add_argument("--texts", type=Path, default=Path("examples/movie-reviews/data/test.jsonl"))
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="processes; several numbers are compared")
    parser.add_argument("--seconds", type=int, default=5, help="of each run of wrk")
    parser.add_argument("--repeats", type=int, default=5, help="of everything, interleaved")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed; on Debian and Ubuntu: apt install wrk")
    texts = [json.loads(line)["text"] for line in arguments.texts.read_text(encoding="utf-8").splitlines()]
    model = load_model(arguments.bundle, Settings(bundles=(arguments.bundle,)))
    tokens = statistics.mean(encoding.tokens for encoding in model.tokenizer.encode(texts))
    average = load_average()
    print(f"Machine: {describe_machine()}; load average {average:.2f} before the start.")
    if average > 0.3:
        print("**The machine was not idle: quote no requests/s from this run, and CPU with care.**")
    print(f"Versions: Python {sys.version.split()[0]}, {', '.join(f'{name} {version(name)}' for name in LIBRARIES)}.")
    print(
        f"{model.manifest.name} {model.manifest.version}, {model.variant.name} ({arguments.bundle}); {len(texts)} "
        f"texts of {tokens:.0f} tokens; {arguments.repeats} repeats of {arguments.seconds} s."
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        singles = _bodies(Path(folder) / "singles", [[text] for text in texts])
        batches = _bodies(Path(folder) / "batches", _in_batches(texts, BATCH))
        pairs = [stack.enter_context(serving(arguments.bundle, texts, workers)) for workers in arguments.workers]
        for connections in arguments.connections:
            single_texts(pairs, model, texts, singles, connections, arguments)
        for _, ours in pairs:
            batch_requests(ours, texts, batches, arguments)


def single_texts(
    pairs: list[tuple[Server, Server]],
    model: Model,
    texts: list[str],
    bodies: Path,
    connections: int,
    arguments: argparse.Namespace,
) -> None:
    """Print the table of one number of connections. Each pair is the bare app and Limbeck, with as many workers."""
    samples: dict[str, list[Sample]] = {server.name: [] for pair in pairs for server in pair}
    mixed: dict[str, list[float]] = {ours.name: [] for _, ours in pairs}
    sizes: dict[str, list[float]] = {ours.name: [] for _, ours in pairs}
    alone = []
    for _ in range(arguments.repeats):
        for bare, ours in pairs:
            samples[bare.name].append(load(bare, bodies, connections, arguments.seconds))
            before = batch_sizes(ours)
            samples[ours.name].append(load(ours, bodies, connections, arguments.seconds))
            after = batch_sizes(ours)
            sizes[ours.name].append((after[0] - before[0]) / (after[1] - before[1]))
            mixed[ours.name].append(in_process_cpu_ms(model, texts, max(1, round(sizes[ours.name][-1]))))
        alone.append(in_process_cpu_ms(model, texts, 1))
    print(f"\n{connections} connection(s), one text a request:\n")
    print("| | CPU ms a request | requests/s | p50 ms | p99 ms |\n|---|---|---|---|---|")
    for name, own in samples.items():
        cells = [_spread([sample.cpu_ms for sample in own], 3), _spread([s.requests_per_s for s in own], 0)]
        cells += [_spread([sample.p50_ms for sample in own], 2), _spread([sample.p99_ms for sample in own], 2)]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"| tokenizer and model in-process, batch 1 | {_spread(alone, 3)} | | | |")
    for name, own_sizes in sizes.items():
        print(f"| the same in the batches of {name}, {_spread(own_sizes, 1)} texts | {_spread(mixed[name], 3)} | | | |")
    print()
    for bare, ours in pairs:
        costs = [sample.cpu_ms for sample in samples[ours.name]]
        overheads = [cost - part for cost, part in zip(costs, mixed[ours.name], strict=True)]
        multiples = [one / sample.cpu_ms for one, sample in zip(overheads, samples[bare.name], strict=True)]
        over = [cost / part for cost, part in zip(costs, mixed[ours.name], strict=True)]
        over_alone = [cost / part for cost, part in zip(costs, alone, strict=True)]
        print(
            f"{ours.name}: overhead {_spread(overheads, 3)} ms a request, {_spread(multiples, 1)} x bare; the server's "
            f"CPU is {_spread(over, 2)} x tokenizer and model in these batches, {_spread(over_alone, 2)} x at batch 1."
        )


def batch_requests(server: Server, texts: list[str], bodies: Path, arguments: argparse.Namespace) -> None:
    """Print the throughput of requests of 32 texts beside that of plain loops."""
    over_http, loops = [], []
    processes = usable_cpus()
    for _ in range(arguments.repeats):
        over_http.append(BATCH * load(server, bodies, 2 * processes, arguments.seconds).requests_per_s)
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            job = (arguments.bundle, texts, arguments.seconds)
            loops.append(sum(pool.map(in_process_texts_per_s, [job] * processes)))
    shares = [100 * one / other for one, other in zip(over_http, loops, strict=True)]
    print(
        f"\n{BATCH} texts a request, {2 * processes} connections, {server.name}: {_spread(over_http, 0)} texts/s; "
        f"{processes} plain loops: {_spread(loops, 0)} texts/s; the server reaches {_spread(shares, 0)} % of them."
    )


def load(server: Server, bodies: Path, connections: int, seconds: int) -> Sample:
    """Let wrk send for `seconds`."""
    command = [
        "wrk",
        "-t1",
        "--timeout",
        "60s",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        "-s",
        str(HERE / "overhead.lua"),
    ]
    before_s = server.cpu_s()
    told = subprocess.run(
        [*command, server.url], env=os.environ | {"BODIES": str(bodies)}, capture_output=True, text=True, check=True
    ).stdout
    cpu_s = server.cpu_s() - before_s
    if "Non-2xx" in told or "Socket errors" in told:
        raise SystemExit(f"{server.name} did not answer everything:\n{told}")
    requests = int(_found(r"(\d+) requests in", told))
    p50, p99 = (_ms(_found(rf"\n +{percent}% +(\S+)", told)) for percent in (50, 99))
    return Sample(float(_found(r"Requests/sec:\s+(\S+)", told)), 1000 * cpu_s / requests, p50, p99)


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
def serving(bundle: Path, texts: list[str], workers: int) -> Iterator[tuple[Server, Server]]:
    """Run the bare app, whose answers are as long as Limbeck's, and Limbeck."""
    ours, bare = (f"http://127.0.0.1:{port}" for port in (8790 + 2 * workers, 8791 + 2 * workers))
    settings = {"LOG_LEVEL": "error", "BUNDLES": str(bundle), "WORKERS": str(workers), "PORT": ours[-4:]}
    environment = os.environ | {f"LIMBECK_{name}": value for name, value in settings.items()}
    question = json.dumps({"inputs": texts[:1]}).encode()
    with _running([sys.executable, "-m", "service"], environment) as limbeck:
        _until_ready(f"{ours}/health/ready")
        with urllib.request.urlopen(
            urllib.request.Request(f"{ours}/v1/classify", question, {"content-type": "application/json"})
        ) as answer:
            environment["BARE_ANSWER_BYTES"] = str(len(answer.read()))
        options = "--loop uvloop --http httptools --ws none --lifespan off --no-access-log --no-proxy-headers"
        command = [sys.executable, "-m", "uvicorn", *options.split(), "--log-level", "error", "--port", bare[-4:]]
        command += ["--workers", str(workers), "--app-dir", str(HERE), "bare_app:app"]
        with _running(command, environment) as uvicorn:
            _until_ready(bare, question)
            yield (
                Server(f"bare ASGI app, {workers} worker(s)", uvicorn, bare),
                Server(f"Limbeck, {workers} worker(s)", limbeck, ours),
            )


def batch_sizes(server: Server) -> tuple[float, float]:
    """Return how many texts there were in how many batches so far."""
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        told = answer.read().decode()
    total, count = (_found(rf"limbeck_batch_size_{part}\S* (\S+)", told) for part in ("sum", "count"))
    return float(total), float(count)


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[int]:
    process = subprocess.Popen(command, env=environment)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def _until_ready(url: str, body: bytes | None = None) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, body):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{url} is not ready after a minute")


def _in_batches(texts: list[str], size: int) -> list[list[str]]:
    return [texts[start : start + size] for start in range(0, len(texts) - size + 1, size)]


def _bodies(path: Path, batches: list[list[str]]) -> Path:
    path.write_text("".join(json.dumps({"inputs": batch}) + "\n" for batch in batches), encoding="utf-8")
    return path


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"expected {pattern} in:\n{text}")
    return match.group(1)


def _ms(told: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", told).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000}[unit]


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} [{min(values):,.{digits}f}–{max(values):,.{digits}f}]"


if __name__ == "__main__":
    main()
