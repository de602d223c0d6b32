"""Whether memory stays flat under a steady load: a share of the highest rate, for half an hour, by `limbeck loadtest`.

    .venv/bin/python -m benchmarks.serving.steady runs/movie-reviews/bundle

Starts `limbeck serve BUNDLE` on a free port (settings come from LIMBECK_… as ever), finds what it answers to 32 clients
in a closed loop, then sends LOAD of that rate in an open loop, Poisson, and prints Markdown: machine, versions, rates,
latencies, errors, and the service's memory (proportional set size, all its processes) in each tenth of the time. Exit
status 1: memory grew by more than 5 % from the first tenth to the last, or a request was not answered with 200.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.serving import usage
from benchmarks.serving.service_process import ROOT, serving
from benchmarks.serving.soak import LARGEST_GROWTH
from compress.machine import describe_machine, load_average
from compress.stage import library_versions
from loadtest.outcome import Outcome
from loadtest.result import read_result

CLIENTS, PEAK_S = 32, 20
PARTS = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--texts", type=Path, default=Path("examples/movie-reviews/data/test.jsonl"))
    parser.add_argument("--load", type=float, default=0.7, help="share of the highest rate  [default: 0.7]")
    parser.add_argument("--minutes", type=float, default=30, help="[default: 30]")
    arguments = parser.parse_args()
    print(f"Machine: {describe_machine()}; load average {load_average():.2f} before the start.")
    print(f"Versions: {', '.join(f'{name} {version}' for name, version in library_versions().items())}.\n", flush=True)
    with serving(arguments.bundle, log_level="error") as (process, port), tempfile.TemporaryDirectory() as folder:
        peak = test(port, arguments.texts, Path(folder), "--clients", CLIENTS, "--duration", PEAK_S)
        rate = round(arguments.load * (peak.rate.value or 0))
        with usage.sampled_memory(process.pid) as samples:
            seconds = round(60 * arguments.minutes)
            found = test(port, arguments.texts, Path(folder), "--rate", rate, "--duration", seconds)
    return report(peak, found, samples)


def test(port: int, texts: Path, folder: Path, *options: object) -> Outcome:
    """Put the service under load and return what was measured."""
    result = folder / "result.json"
    command = [sys.executable, str(ROOT / "limbeck.py"), "loadtest", "run", f"http://127.0.0.1:{port}"]
    command += ["--texts", str(texts), "--json", str(result), *map(str, options)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read_result(result).main_step.outcome


def report(peak: Outcome, found: Outcome, samples: list[int]) -> int:
    """Print what was found and return the exit status."""
    p50, p99 = (found.latency_ms[name].value for name in ("p50", "p99"))
    errors = ", ".join(f"{kind}: {number:,}" for kind, number in found.errors.items()) or "none"
    print(f"{CLIENTS} clients in a closed loop were answered {peak.rate.value:,.0f} requests/s.")
    print(
        f"At {found.rate_asked:,.0f} requests/s for {found.seconds:,} s: {found.requests:,} requests, "
        f"{found.rate.value:,.0f} answered a second, p50 {p50:.1f} ms, p99 {p99:.1f} ms, highest {found.max_ms:,.0f} "
        f"ms; errors {errors}."
    )
    if found.generator_limited:
        print(f"Mind: {found.generator_note}")
    print("\n| tenth of the time | MB: median | highest |\n|---|---|---|")
    parts = [list[float]() for _ in range(PARTS)]
    for number, taken in enumerate(samples):  # at equal distances
        parts[PARTS * number // len(samples)].append(taken / 1e6)
    medians = [statistics.median(part) for part in parts]
    for number, (median, part) in enumerate(zip(medians, parts, strict=True), start=1):
        print(f"| {number} | {median:.1f} | {max(part):.1f} |")
    growth = medians[-1] / medians[0] - 1
    print(f"\nfirst to last tenth: {growth:+.1%} (wanted: at most {LARGEST_GROWTH:.0%})")
    return 0 if growth <= LARGEST_GROWTH and not found.errors else 1


if __name__ == "__main__":
    sys.exit(main())
