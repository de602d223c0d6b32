"""Twice as many requests as the service can answer: what it still answers, how late, and how fast it refuses the rest.

    .venv/bin/python -m benchmarks.serving.overload runs/movie-reviews/bundle

The service gets half of the CPUs and the load the others, so that they do not share. Peak is the highest of the medians
of wrk's closed loops; then requests leave at Poisson times at a multiple of it, whether or not answers came, and
latencies count from those times. Goodput is what was answered with 200 while requests were sent. Prints Markdown; exit
status 1 when one of the wanted bounds is missed. Needs wrk, two CPUs and an idle machine.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.serving import closed_loop, usage
from benchmarks.serving.open_loop import OpenLoop, http_request, quantile
from benchmarks.serving.report import spread
from benchmarks.serving.service_process import serving
from compress.machine import describe_machine, load_average
from compress.stage import library_versions

HOST = "127.0.0.1"
CONNECTIONS = (8, 32, 128)
CLIENTS = 3072  # connections: more than wait in the service, so that none is missing
LEAST_GOODPUT, MOST_REFUSAL_MS, MOST_GROWTH = 0.9, 5.0, 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--texts", type=Path, default=Path("examples/movie-reviews/data/test.jsonl"))
    parser.add_argument("--times", type=float, default=2.0, help="of peak  [default: 2]")
    parser.add_argument("--deadline-ms", type=int, default=30_000, help="of every request  [default: 30,000]")
    parser.add_argument("--rounds", type=int, default=3, help="[default: 3]")
    parser.add_argument("--seconds", type=int, default=10, help="of overload in each round  [default: 10]")
    arguments = parser.parse_args()
    closed_loop.find_wrk()
    load = load_average()
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        parser.error("found one CPU, expected two or more: the load must not take the service's")
    print(f"Machine: {describe_machine()}; load average {load:.2f} before the start.")
    if load > 0.3:
        print("**The machine was not idle: quote no figure from this run.**")
    print(f"Versions: {', '.join(f'{name} {version}' for name, version in library_versions().items())}.")
    texts = [json.loads(line)["text"] for line in arguments.texts.read_text(encoding="utf-8").splitlines()]
    half = len(cpus) // 2
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        bodies = closed_loop.write_bodies(Path(folder) / "bodies", [[text] for text in texts])
        os.sched_setaffinity(0, cpus[:half])  # inherited by the service
        options = {"default_timeout_ms": arguments.deadline_ms, "log_level": "error"}
        process, port = stack.enter_context(serving(arguments.bundle, **options))
        os.sched_setaffinity(0, cpus[half:])
        print(
            f"{arguments.bundle}; {half} of {len(cpus)} CPUs for the service, a deadline of {arguments.deadline_ms} ms "
            f"for every request; {arguments.rounds} rounds of {arguments.seconds} s, median [range].\n"
        )
        url = f"http://{HOST}:{port}/v1/classify"
        peak = find_peak(url, bodies, arguments.rounds)
        requests = [http_request("/v1/classify", HOST, body) for body in bodies.read_bytes().splitlines()]
        return overload(process.pid, port, requests, peak, arguments)


def find_peak(url: str, bodies: Path, rounds: int) -> float:
    """Return the most requests a second, over the numbers of connections."""
    closed_loop.run(url, bodies, CONNECTIONS[-1], 2, lambda: None)
    found = {
        connections: [closed_loop.run(url, bodies, connections, 3, lambda: None).per_second for _ in range(rounds)]
        for connections in CONNECTIONS
    }
    for connections, values in found.items():
        print(f"- closed loop, {connections} connections: {spread(values, 0)} requests/s")
    return max(statistics.median(values) for values in found.values())


def overload(pid: int, port: int, requests: list[bytes], peak: float, arguments: argparse.Namespace) -> int:
    """Send more than the service can answer, print the figures and return the exit status."""
    goodput, accepted, refused, late, memory = [], [], [], [], []
    counts: dict[int, int] = {}
    for turn in range(arguments.rounds + 1):
        loop = OpenLoop(HOST, port, requests, max_connections=CLIENTS, grace_s=arguments.deadline_ms / 1000 + 1)
        loop.connect(CLIENTS)
        with usage.sampled_memory(pid) as samples:
            found = loop.run(arguments.times * peak, arguments.seconds, seed=turn)
        if turn == 0:  # to warm up: the first full queue, the first so many connections
            continue
        goodput.append(found.per_second)
        accepted.append(median_and_p99_ms(loop.by_status.get(200, [])))
        refused.append(median_and_p99_ms(loop.by_status.get(429, [])))
        late.append(1000 * quantile(sorted(loop.send_delays_s), 0.99))
        memory.append(max(samples) / 1e6)
        for status, latencies in loop.by_status.items():
            counts[status] = counts.get(status, 0) + len(latencies)
    shares = [one / peak for one in goodput]
    # the goodput that is missing was spent on what was offered and refused
    costs = [(peak - one) / max(arguments.times * peak - one, 1) for one in goodput]
    growth = memory[-1] / memory[0] - 1
    rows = [
        ("goodput", f"{spread(goodput, 0)}/s", f"at least {LEAST_GOODPUT:.0%} of peak", min(shares) >= LEAST_GOODPUT),
        ("share of peak", f"{spread([100 * share for share in shares], 0)} %"),
        ("accepted, p50", f"{spread([p50 for p50, _ in accepted], 1)} ms"),
        (
            "accepted, p99",
            f"{spread([p99 for _, p99 in accepted], 1)} ms",
            f"within the deadline, {arguments.deadline_ms} ms",
            max(p99 for _, p99 in accepted) <= arguments.deadline_ms,
        ),
        (
            "refused, p50",
            f"{spread([p50 for p50, _ in refused], 2)} ms",
            f"under {MOST_REFUSAL_MS:g} ms",
            statistics.median(p50 for p50, _ in refused) < MOST_REFUSAL_MS,
        ),
        ("refused, p99", f"{spread([p99 for _, p99 in refused], 1)} ms"),
        ("a refusal costs, of an answer", f"{spread([100 * cost for cost in costs], 0)} %"),
        ("sent after its time, p99", f"{spread(late, 1)} ms"),
        (
            "highest memory (PSS), by round",
            ", ".join(f"{one:.0f}" for one in memory) + " MB",
            f"last at most {MOST_GROWTH:.0%} over the first",
            growth <= MOST_GROWTH,
        ),
    ]
    print(f"\n{arguments.times:g} × peak, {arguments.times * peak:,.0f} requests/s offered:\n")
    print("| | found | wanted | |\n|---|---|---|---|")
    for name, value, *bound in rows:
        wanted, verdict = (bound[0], "held" if bound[1] else "**missed**") if bound else ("", "")
        print(f"| {name} | {value} | {wanted} | {verdict} |")
    told = ", ".join(f"{status or 'none'}: {count:,}" for status, count in sorted(counts.items()))
    print(f"\nAnswers by status: {told}.")
    return 0 if all(bound[1] for _, _, *bound in rows if bound) else 1


def median_and_p99_ms(seconds: list[float]) -> tuple[float, float]:
    """Return both in milliseconds; nan where there are none."""
    ordered = sorted(seconds)
    return 1000 * quantile(ordered, 0.5), 1000 * quantile(ordered, 0.99)


if __name__ == "__main__":
    sys.exit(main())
