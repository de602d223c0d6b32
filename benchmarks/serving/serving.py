"""Limbeck and other servers on the same ONNX file: requests a second, latency, errors, CPU and memory, as Markdown.

    .venv/bin/python -m benchmarks.serving.serving --model student=runs/movie-reviews/bundle

Each peer runs in a virtual environment of its own, made at first use. Before anything is timed, its scores are
compared with those of the same file in this process. Every setting of a peer is tried and the fastest kept. Then the
servers take turns, round after round, in closed loop (wrk) and afterwards in open loop at shares of Limbeck's peak; all
are up, and those whose turn it is not are stopped (SIGSTOP). Only an idle machine's times are worth quoting.
"""

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.serving import closed_loop, usage
from benchmarks.serving.catalog import PEER_LIST
from benchmarks.serving.contenders import MAIN, Trial, contenders, in_process, say
from benchmarks.serving.open_loop import OpenLoop, http_request
from benchmarks.serving.report import Outcome, Sample, render
from benchmarks.serving.server import HOST, Server
from bundle import Bundle, open_bundle
from compress.machine import describe_machine, load_average
from compress.stage import library_versions

ROOT = Path(__file__).resolve().parents[2]
CONNECTIONS = (1, 8, 32, 128)
SHARES = (0.5, 0.8)


def main() -> None:
    arguments = _arguments()
    closed_loop.find_wrk()
    if arguments.quick:
        arguments.rounds, arguments.open_rounds, arguments.seconds, arguments.open_seconds = 1, 1, 1, 1.0
    load, pages = load_average(), []
    for name, folder in arguments.model:
        outcomes, tokens = measure(name, open_bundle(folder), arguments)
        pages.append(f"## {name}\n\n{tokens:.0f} tokens a text in the mean.\n\n{render(outcomes, SHARES, MAIN)}")
    page = "\n\n".join([_head(arguments, load), *pages]) + "\n"
    print(page)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(page, encoding="utf-8")


def measure(name: str, bundle: Bundle, arguments: argparse.Namespace) -> tuple[list[Outcome], float]:
    """Return what was measured of every contender on one model, and the mean number of tokens."""
    texts = _texts(arguments.texts, arguments.samples)
    logits, tokens = in_process(bundle, arguments.variant, texts)
    outcomes: list[Outcome] = []
    servers: list[tuple[Outcome, Server, Path]] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, ExitStack() as running:
        for contender in contenders(bundle, arguments):
            bodies = Path(scratch) / f"{contender.name}.jsonl"
            bodies.write_text("".join(json.dumps(contender.wire.body([text])) + "\n" for text in texts))
            logs = arguments.environments / "logs" / name
            trial = Trial(contender, bundle, bodies, logs, texts, logits, 1 if arguments.quick else 2)
            outcome = trial.best()
            outcomes.append(outcome)
            if outcome.setting is None and not servers:
                raise SystemExit(f"Limbeck cannot be measured: {outcome.tries[0].reason}")
            if outcome.setting is not None:
                server = running.enter_context(trial.start(outcome.setting))
                servers.append((outcome, server, bodies))
                closed_loop.run(server.url, bodies, MAIN, 1, lambda: None)
                server.settle()
                server.pause()
        for turn in range(arguments.rounds):
            for connections in CONNECTIONS:
                say(f"{name}: round {turn + 1} of {arguments.rounds}, {connections} connections")
                for outcome, server, bodies in servers:
                    sample = closed(server, bodies, connections, arguments.seconds)
                    outcome.closed.setdefault(connections, []).append(sample)
        peak = max(
            statistics.median(sample.measured.per_second for sample in samples)
            for samples in outcomes[0].closed.values()
        )
        for turn in range(arguments.open_rounds):
            for share in SHARES:
                say(f"{name}: open loop, round {turn + 1} of {arguments.open_rounds}, {share:.0%} of {peak:.0f}/s")
                for outcome, server, bodies in servers:
                    sample = opened(server, bodies, share * peak, arguments.open_seconds, turn)
                    outcome.opened.setdefault(share, []).append(sample)
    return outcomes, tokens


def closed(server: Server, bodies: Path, connections: int, seconds: int) -> Sample:
    """Return one turn of a server in closed loop, with the memory it held halfway."""
    memory: list[usage.Memory] = []
    server.resume()
    before = usage.cpu_seconds(server.pid)
    found = closed_loop.run(server.url, bodies, connections, seconds, lambda: memory.append(usage.memory(server.pid)))
    sample = Sample(found, usage.cpu_seconds(server.pid) - before, memory[0])
    server.settle()
    server.pause()
    return sample


def opened(server: Server, bodies: Path, rate: float, seconds: float, seed: int) -> Sample:
    """Return one turn of a server in open loop, and wait until it has worked off what it could not answer in time."""
    host = f"{HOST}:{server.port}"
    requests = [http_request(server.wire.path, host, body) for body in bodies.read_bytes().splitlines()]
    server.resume()
    before = usage.cpu_seconds(server.pid)
    found = OpenLoop(HOST, server.port, requests).run(rate, seconds, seed)
    sample = Sample(found, usage.cpu_seconds(server.pid) - before, usage.memory(server.pid))
    server.settle()
    server.pause()
    return sample


def _head(arguments: argparse.Namespace, load: float) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    lines = [
        "# Serving, measured",
        "",
        f"Machine: {describe_machine()}; load average {load:.2f} before the start.",
        f"Limbeck: {versions}. Load: {closed_loop.wrk_version()}.",
        f"Peers: {', '.join(peer.version for peer in PEER_LIST)}, each with onnxruntime of the same version.",
        f"{arguments.samples} texts in turn, one a request. Closed loop: {arguments.rounds} rounds of "
        f"{arguments.seconds} s; open loop: {arguments.open_rounds} of {arguments.open_seconds:g} s. "
        "Figures are the median of the rounds, with the lowest and the highest.",
    ]
    if load > 0.3:
        lines.append("**The machine was not idle: quote no speed from this run.**")
    return "\n".join(lines)


def _texts(file: Path, count: int) -> list[str]:
    lines = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    chosen = np.random.default_rng(0).permutation(len(lines))[:count]
    return [lines[i] for i in sorted(chosen)]


def _pair(given: str) -> tuple[str, str]:
    key, found, value = given.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {given!r}")
    return key, value


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=_pair, action="append", required=True, help="NAME=BUNDLE_FOLDER; repeatable")
    parser.add_argument("--variant", default="int8", help="variant of the bundles that all serve")
    parser.add_argument("--texts", type=Path, default=ROOT / "examples/movie-reviews/data/test.jsonl")
    parser.add_argument("--samples", type=int, default=256, help="texts that take turns")
    parser.add_argument("--peers", nargs="*", choices=[peer.folder for peer in PEER_LIST], help="only these")
    parser.add_argument("--limbeck", type=Path, default=ROOT, help="checkout whose Limbeck is measured")
    parser.add_argument("--limbeck-set", type=_pair, action="append", default=[], help="SETTING=VALUE; repeatable")
    parser.add_argument("--environments", type=Path, default=ROOT / "runs/bench-venvs")
    parser.add_argument("--rounds", type=int, default=5, help="of the closed loop")
    parser.add_argument("--seconds", type=int, default=2, help="of one turn in closed loop")
    parser.add_argument("--open-rounds", type=int, default=3, help="of the open loop")
    parser.add_argument("--open-seconds", type=float, default=2.0, help="of one turn in open loop")
    parser.add_argument("--quick", action="store_true", help="one short round, to see whether everything works")
    parser.add_argument("--out", type=Path, help="write the page there, too")
    arguments = parser.parse_args()
    arguments.model = [(name, Path(folder)) for name, folder in arguments.model]
    return arguments


if __name__ == "__main__":
    main()
