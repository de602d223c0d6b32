"""How fast and how exact each way of running the student is, against its teacher in FP32. All take turns in one run.

    .venv/bin/python benchmarks/int8_speed.py runs/movie-reviews

Give the folder of a finished `limbeck compress` run. Prints Markdown: machine, versions, sample counts, and for every
model the median of the rounds with the fastest and slowest, the speed-up over the teacher (the lowest of its rounds'
ratios beside the median), the labels that change when each text is run among 31 others instead of alone, and the
largest change of a logit over random batchings.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from bundle.manifest import Task
from compress.data import read_examples
from compress.export import export_model
from compress.fuse import fuse_attention, keep_first_tokens
from compress.graph import Graph
from compress.machine import describe_machine, load_average
from compress.models import load_classifier
from compress.outputs import batch_invariance
from compress.quantize import quantize_model
from compress.recipe import Columns, Quantize
from compress.stage import library_versions
from compress.tasks import SPECS
from service.engine.session import Session
from service.engine.tokenization import Encoding, IntArray, Tokenizer, pad

LABELS = ["negative", "positive"]
SPEC = SPECS[Task.SINGLE_LABEL]
HEADS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--test", type=Path, default=Path("examples/movie-reviews/data/test.jsonl"))
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()

    models = build(arguments.run / "work", arguments.run / "benchmark")
    tokenizer = Tokenizer(arguments.run / "work/teacher/tokenizer.json", 128)
    examples = read_examples(arguments.test, Columns(), SPEC, labeled=True)
    everything = tokenizer.encode([example.input for example in examples])
    encodings = everything[: arguments.texts]
    sessions = {name: Session(path) for name, path in models.items()}
    print(f"Machine: {describe_machine()}; load average {load_average():.2f} before the start.")
    print(f"Versions: {', '.join(f'{name} {version}' for name, version in library_versions().items())}.")
    mean = sum(encoding.tokens for encoding in encodings) / len(encodings)
    print(f"{len(encodings)} texts of {mean:.0f} tokens in the mean, {arguments.rounds} rounds after one warm-up.\n")
    print("| model | MB | batch | ms a call: median [fastest–slowest] | faster: median (lowest) |")
    print("|---|---|---|---|---|")
    for size in (1, 8, 32):
        batches = [pad(encodings[i : i + size], tokenizer.pad_id) for i in range(0, len(encodings), size)]
        rounds = take_turns(sessions, batches, arguments.rounds)
        teacher = rounds["teacher FP32, as exported"]
        for name, seconds in rounds.items():
            calls = [1000 * value / len(batches) for value in seconds]
            ratios = [own / other for own, other in zip(teacher, seconds, strict=True)]
            print(
                f"| {name} | {models[name].stat().st_size / 1e6:.1f} | {size} | {statistics.median(calls):.3f} "
                f"[{min(calls):.3f}–{max(calls):.3f}] | {statistics.median(ratios):.2f}× ({min(ratios):.2f}×) |"
            )
    exactness(sessions, everything, tokenizer.pad_id)


def exactness(sessions: dict[str, Session], encodings: list[Encoding], pad_id: int) -> None:
    """Print, for each model, what batch mates change."""
    print(f"\n| model | labels changed of {len(encodings)} | largest change of a logit |\n|---|---|---|")
    order = np.random.default_rng(0).permutation(len(encodings)).tolist()
    groups = [order[i : i + 32] for i in range(0, len(order), 32)]
    for name, session in sessions.items():
        flips = 0
        for group in groups:
            together = session.run(pad([encodings[i] for i in group], pad_id)).argmax(axis=1)
            alone = [session.run(pad([encodings[i]], pad_id)).argmax() for i in group]
            flips += int((together != alone).sum())
        change = batch_invariance(session.path, encodings, pad_id, seed=0).max_difference
        print(f"| {name} | {flips} ({flips / len(encodings):.1%}) | {change:.1e} |")


def take_turns(sessions: dict[str, Session], batches: list[dict[str, IntArray]], rounds: int) -> dict[str, list[float]]:
    """Return seconds of each round for each model; within a round every model runs every batch once."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(rounds + 1):
        for name, session in sessions.items():
            started = time.perf_counter()
            for batch in batches:
                session.run(batch)
            if turn:
                times[name].append(time.perf_counter() - started)
    return times


def build(work: Path, folder: Path) -> dict[str, Path]:
    """Write the student in every form that docs/experiments.md speaks of."""
    folder.mkdir(exist_ok=True)
    student = load_classifier(str(work / "distill/model"), LABELS, 0, SPEC, keep_head=True)
    onnx.save(export_model(student, SPEC.exporter_task, 18), folder / "plain.onnx")
    attention = Graph(onnx.load(folder / "plain.onnx"))
    fuse_attention(attention, HEADS)
    onnx.save(attention.finish(), folder / "attention.onnx")
    for source, target in (
        (folder / "plain.onnx", "cut.onnx"),
        (work / "export/teacher.fp32.onnx", "teacher.cut.onnx"),
    ):
        graph = Graph(onnx.load(source))
        fuse_attention(graph, HEADS)
        assert keep_first_tokens(graph)
        onnx.save(graph.finish(), folder / target)
    for name in ("plain", "attention", "cut"):
        quantized, _ = quantize_model(onnx.load(folder / f"{name}.onnx"), Quantize())
        onnx.save(quantized, folder / f"{name}.int8.onnx")
    quantize_dynamic(folder / "plain.onnx", folder / "stock.onnx", per_channel=True, weight_type=QuantType.QInt8)
    return {
        "teacher FP32, as exported": work / "export/teacher.fp32.onnx",
        "teacher FP32, fused and cut": folder / "teacher.cut.onnx",
        "student FP32, as exported": folder / "plain.onnx",
        "student FP32, fused and cut": folder / "cut.onnx",
        "stock dynamic INT8, per channel": folder / "stock.onnx",
        "per-token INT8, as exported": folder / "plain.int8.onnx",
        "per-token INT8, attention fused": folder / "attention.int8.onnx",
        "per-token INT8, fused and cut": folder / "cut.int8.onnx",
    }


if __name__ == "__main__":
    main()
