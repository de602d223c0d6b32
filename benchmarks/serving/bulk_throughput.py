"""Rows a second of bulk classification against the bare loop of tokenizer and ONNX Runtime. All take turns in one run.

    .venv/bin/python benchmarks/serving/bulk_throughput.py runs/movie-reviews/bundle

The bare loop tokenizes windows of 2,048 texts, sorts each by length and runs it in batches of 8 or 16, in one process
or in one a core; sessions have one thread. Prints Markdown: machine, versions, sample counts, and for each way the
median rows a second of the rounds with the slowest and fastest, the ratio to the fastest bare loop (median and lowest
of the rounds' ratios), and CPU seconds per 1,000 rows, which other work on the machine disturbs less.
"""

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from rich.console import Console

from bulk import Classifier
from bulk.files import Job
from bulk.rows import TextColumns
from bulk.run import classify_file
from bundle import LAYOUT, open_bundle
from compress.machine import describe_machine, load_average
from service.engine.postprocess import activate
from service.engine.session import RUNTIME_VERSION, Session
from service.engine.tokenization import Tokenizer, pad
from service.settings import usable_cpus

WINDOW_ROWS = 2048
Seconds = tuple[float, float]
"""Of the clock, and of the CPU."""


class BareLoop:
    """Tokenizer, session and activation, and nothing else."""

    def __init__(self, folder: Path, variant: str) -> None:
        # as many tokenizer threads as processes would only disturb each other
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        bundle = open_bundle(folder)
        self.manifest = bundle.manifest
        self.tokenizer = Tokenizer(bundle.path(LAYOUT.tokenizer), bundle.manifest.max_length)
        self.session = Session(bundle.path(bundle.manifest.variant(variant).file))

    def scores(self, texts: Sequence[str], batch: int) -> np.ndarray:
        """Return the scores (N, C) of N texts."""
        scores = np.empty((len(texts), len(self.manifest.labels)), dtype=np.float32)
        for at in range(0, len(texts), WINDOW_ROWS):
            encodings = self.tokenizer.encode(texts[at : at + WINDOW_ROWS])
            order = sorted(range(len(encodings)), key=lambda row: encodings[row].tokens)
            for begin in range(0, len(order), batch):
                rows = order[begin : begin + batch]
                logits = self.session.run(pad([encodings[row] for row in rows], self.tokenizer.pad_id))
                found = activate(logits, self.manifest.activation, self.manifest.temperature)
                scores[[at + row for row in rows]] = found
        return scores


def worker(folder: Path, variant: str, texts: Sequence[str], pipe: Any) -> None:
    """Answer each batch size with the CPU seconds that all texts took."""
    loop = BareLoop(folder, variant)
    loop.scores(texts[:WINDOW_ROWS], 8)
    pipe.send("ready")
    while (batch := pipe.recv()) is not None:
        began = time.process_time()
        loop.scores(texts, batch)
        pipe.send(time.process_time() - began)


class Workers:
    """Processes with a bare loop each, and an equal share of the texts."""

    def __init__(self, folder: Path, variant: str, texts: Sequence[str], count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes = []
        for index in range(count):
            here, there = context.Pipe()
            share = texts[index::count]
            context.Process(target=worker, args=(folder, variant, share, there), daemon=True).start()
            self.pipes.append(here)
        for pipe in self.pipes:
            pipe.recv()

    def run(self, batch: int) -> Seconds:
        """Classify all texts once."""
        began = time.perf_counter()
        for pipe in self.pipes:
            pipe.send(batch)
        cpu = sum(pipe.recv() for pipe in self.pipes)
        return time.perf_counter() - began, cpu

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.send(None)


def timed(work: Callable[[], object]) -> Seconds:
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of a bundle for single texts")
    parser.add_argument("--data", type=Path, default=Path("examples/movie-reviews/data/train.jsonl"))
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    with arguments.data.open(encoding="utf-8") as file:
        given = [json.loads(line)["text"] for line in file]
    texts = (given * (arguments.rows // len(given) + 1))[: arguments.rows]
    cores = usable_cpus()
    before = load_average()
    with tempfile.TemporaryDirectory() as folder, Classifier(arguments.bundle) as classifier:
        file = Path(folder) / "in.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        bare = Workers(arguments.bundle, classifier.variant, texts, 1)
        bare_many = Workers(arguments.bundle, classifier.variant, texts, cores)
        single = Classifier(arguments.bundle, sessions=1)

        def classify() -> None:
            job = Job(file, "jsonl", Path(folder) / "out.jsonl", None, TextColumns("text", None), "", False, True)
            classify_file(classifier, job, Console(quiet=True))

        ways: dict[str, Callable[[], Seconds]] = {
            "bare loop, 1 process, batch 8": functools.partial(bare.run, 8),
            "bare loop, 1 process, batch 16": functools.partial(bare.run, 16),
            f"bare loop, {cores} processes, batch 8": functools.partial(bare_many.run, 8),
            f"bare loop, {cores} processes, batch 16": functools.partial(bare_many.run, 16),
            "Classifier.scores, 1 session": lambda: timed(lambda: single.scores(texts)),
            f"Classifier.scores, {cores} sessions": lambda: timed(lambda: classifier.scores(texts)),
            f"limbeck classify, JSONL to JSONL, {cores} sessions": lambda: timed(classify),
        }
        found: dict[str, list[Seconds]] = {name: [] for name in ways}
        for round_ in range(arguments.rounds + 1):
            for name, run in ways.items():
                seconds = run()
                if round_:  # the first warms up
                    found[name].append(seconds)
        bare.close()
        bare_many.close()
        single.close()
        variant = classifier.variant
    print(f"Machine: {describe_machine()}; load average {before:.2f} before the start.")
    print(f"Versions: numpy {np.__version__}, onnxruntime {RUNTIME_VERSION}, tokenizers {tokenizers.__version__}.")
    print(f"{arguments.bundle}, variant {variant}; {len(texts)} rows, {arguments.rounds} rounds after one warm-up.\n")
    print("| | rows/s: median [slowest–fastest] | of the fastest bare loop: median (lowest) | CPU s per 1,000 rows |")
    print("|---|---|---|---|")
    bare_names = [name for name in ways if name.startswith("bare")]
    for name, rounds in found.items():
        rates = sorted(len(texts) / wall for wall, _ in rounds)
        ratios = [min(found[other][index][0] for other in bare_names) / wall for index, (wall, _) in enumerate(rounds)]
        cpu = statistics.median(1000 * cpu / len(texts) for _, cpu in rounds)
        print(
            f"| {name} | {statistics.median(rates):,.0f} [{rates[0]:,.0f}–{rates[-1]:,.0f}] "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}) | {cpu:.3f} |"
        )


if __name__ == "__main__":
    main()
