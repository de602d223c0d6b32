"""Measure what benchmarks.compression.students made: quality, exactness, size and speed, as one Markdown table.

    .venv/bin/python -m benchmarks.compression.table movie-reviews-mpnet --data DIR --out runs/benchmark

All models of a data set take turns in one run, one thread each, on real lengths. Retained is the share of the teacher's
metric with its paired 95 % bootstrap interval; flips are decisions unlike the same model's in FP32; among 31 others:
decisions that change when a text shares its batch, and whether all logits stay equal bit by bit. A speed is a ratio to
the teacher in ONNX Runtime FP32 as exported: the lowest and the median of the repeats' ratios of medians.

What does not depend on the machine's load is kept in OUT/NAME/quality.json while the models' files are the same, so
`--no-speed` on a busy machine and then the whole command on an idle one gives honest speeds in little time.
"""

import argparse
import hashlib
import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from rich.console import Console

from benchmarks.compression.recipe_list import NAMES, data_override, recipe_path
from compress.calibrate import fit
from compress.confidence import Fitted, reliability
from compress.data import load_splits
from compress.examples import Example
from compress.fold import fold_biases, slice_positions
from compress.fuse import fuse_attention, keep_first_tokens
from compress.graph import Graph
from compress.latency import Timed, measure_latency
from compress.machine import describe_machine, load_average
from compress.measure import Answers, Ruler, Subject, answers, flips
from compress.metrics import interval, paired_retention
from compress.outputs import batch_invariance, rows_alone
from compress.quantize import quantize_model
from compress.recipe import Calibrate, Evaluate, Quantize
from compress.recipe_file import load_recipe
from compress.rows import gather
from compress.search import quantizer
from compress.stage import library_versions
from compress.tasks import METRICS, SPECS
from service.engine.postprocess import activate
from service.engine.session import Session
from service.engine.tokenization import Tokenizer, pad

SIZES = (1, 8)


@dataclass(frozen=True)
class Row:
    """A model of the table."""

    name: str
    subject: Subject
    reference: str
    """The name of the same model in FP32."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    parser.add_argument(
        "--set", nargs="*", default=[], help="keys of the recipe that benchmarks.compression.students was given, too"
    )
    parser.add_argument("--texts", type=int, default=256, help="texts that are timed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds in each repeat")
    parser.add_argument("--no-speed", action="store_true", help="leave the speeds out: for a machine that is not idle")
    arguments = parser.parse_args()
    load = load_average()  # before anything of this run is part of it
    recipe = load_recipe(recipe_path(arguments.name), [data_override(arguments.name, arguments.data), *arguments.set])
    spec, console = SPECS[recipe.task], Console(stderr=True, highlight=False)
    splits = load_splits(recipe.data, recipe.seed, spec)
    ruler = Ruler(spec, splits.labels, Evaluate(), recipe.seed, console)
    out = arguments.out / arguments.name
    rows = build(out, recipe, ruler, splits.validation, splits.train[: recipe.quantize.calibration_texts])
    print(f"Machine: {describe_machine()}; load average {load:.2f} before the start.")
    print(f"Versions: {', '.join(f'{name} {version}' for name, version in library_versions().items())}.")
    repeats: list[Any] = []
    if not arguments.no_speed:
        if load > 0.3:
            print("**The machine was not idle: quote no speed from this run.**")
        chosen = np.random.default_rng(0).permutation(len(splits.test))[: arguments.texts]
        timed = {row.name: _timed(row.subject, [splits.test[i].input for i in sorted(chosen)]) for row in rows}
        repeats = [measure_latency(timed, arguments.rounds, console, SIZES) for _ in range(arguments.repeats)]
        tokens = statistics.mean(encoding.tokens for encoding in timed[rows[0].name].encodings)
        print(
            f"{len(chosen)} texts timed, {tokens:.0f} tokens each, {arguments.repeats} repeats of {arguments.rounds} "
            "rounds."
        )
    score, cells = quality(out, ruler, rows, splits.test)
    main_metric = METRICS[spec.metric]
    print(
        f"{len(splits.test)} test texts.\n\n"
        f"| model | {main_metric.name} [95 %] | retained [95 %] | flips | among 31 others | ECE | MB | batch 1: ms, "
        "speed lowest (median) | batch 8 |\n|---|---|---|---|---|---|---|---|---|"
    )
    for row in rows:
        speeds = [speed(row.name, rows[0].name, size, repeats) for size in SIZES]
        print(f"| {' | '.join([row.name, *cells[row.name], *speeds])} |")
    for manifest in sorted(out.glob("students/*/manifest.json")):
        for baseline in json.loads(manifest.read_text())["baselines"]:
            told = _percent(*(baseline["score"][key] for key in ("value", "low", "high")))
            share = 100 * baseline["score"]["value"] / score
            print(
                f"| {baseline['name']} ({manifest.parent.name}) | {told}"
                f" | {share:.1f} % | | | | {baseline['size_bytes'] / 1e6:.1f} | | |"
            )


def quality(out: Path, ruler: Ruler, rows: list[Row], test: list[Example]) -> tuple[float, dict[str, list[str]]]:
    """Return the teacher's score and each model's cells that time has no part in; computed once for the same files."""
    path = out / "quality.json"
    files = {row.name: hashlib.sha256(row.subject.path.read_bytes()).hexdigest() for row in rows}
    kept = json.loads(path.read_text()) if path.is_file() else {}
    if kept.get("files") != files:
        found = {row.name: answers(ruler, row.name, row.subject, test) for row in rows}
        cells = {row.name: qualities(ruler, row, rows[0].name, found, test) for row in rows}
        score = METRICS[ruler.spec.metric](found[rows[0].name].counts)
        kept = {"files": files, "score": score, "cells": cells}
        path.write_text(json.dumps(kept, indent=2))
    return kept["score"], kept["cells"]


def build(
    out: Path, recipe: Any, ruler: Ruler, validation: list[Example], calibration_texts: list[Example]
) -> list[Row]:
    """Return the teacher in three forms and each student in FP32, in both kinds of INT8, and in the stock one."""
    students = sorted(folder for folder in (out / "students").iterdir() if (folder / "manifest.json").is_file())
    length, first = recipe.data.max_length, students[0]
    tokenizer = Tokenizer(first / "teacher.tokenizer.json", length)
    fitted = _fitted(first, "teacher")
    heads = json.loads((out / "work/teacher/model/config.json").read_text())["num_attention_heads"]
    exact, stock = out / "teacher.int8.onnx", out / "teacher.stock.onnx"
    graph = Graph(onnx.load(first / "teacher.onnx"))
    fuse_attention(graph, heads)
    keep_first_tokens(graph)
    fold_biases(graph)
    slice_positions(graph)
    onnx.save(quantize_model(graph.finish(), Quantize())[0], exact)
    quantize_as_optimum_does(first / "teacher.onnx", stock)
    fp32 = "teacher FP32, as exported"
    rows = [
        Row(fp32, Subject(first / "teacher.onnx", tokenizer, fitted), fp32),
        Row("teacher, stock dynamic INT8", _refitted(stock, tokenizer, ruler, validation), fp32),
        Row("teacher, per-token INT8", _refitted(exact, tokenizer, ruler, validation), fp32),
    ]
    for folder in students:
        own, name = Tokenizer(folder / "student.tokenizer.json", length), folder.name.replace("layers", " layers")
        of_student = _fitted(folder, "student")
        reference = f"{name} FP32"
        quantize_as_optimum_does(folder / "student.onnx", folder / "stock.onnx")
        rows += [
            Row(reference, Subject(folder / "student.onnx", own, of_student), reference),
            Row(f"{name}, stock dynamic INT8", _refitted(folder / "stock.onnx", own, ruler, validation), reference),
            Row(f"{name} INT8, per token", Subject(folder / "per-token.onnx", own, of_student), reference),
            Row(f"{name} INT8, static", Subject(folder / "static.onnx", own, of_student), reference),
        ]
        texts = own.encode([example.input for example in calibration_texts])
        for method in ("per-token", "static"):
            arguments = (folder / "student.onnx", texts, own.pad_id, ruler.console, folder)
            make = quantizer(method, Quantize(), *arguments)
            onnx.save(make(onnx.load(folder / "student.onnx"), frozenset()), folder / f"{method}.onnx")
    return rows


def quantize_as_optimum_does(source: Path, target: Path) -> None:
    """Write what optimum's AutoQuantizationConfig.avx512_vnni(is_static=False) makes of a model.

    A student's graph is fused already, which stands the stock method in good stead; what it cannot infer is float.
    """
    options = {"WeightSymmetric": True, "ActivationSymmetric": False, "DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8, extra_options=options)


def qualities(ruler: Ruler, row: Row, teacher: str, found: dict[str, Answers], test: list[Example]) -> list[str]:
    """Return a model's cells from its score to its size."""
    own, spec, main_metric = found[row.name], ruler.spec, METRICS[ruler.spec.metric]
    samples, seed = ruler.config.bootstrap_samples, ruler.seed
    score = interval(main_metric, own.counts, samples, seed)
    kept = paired_retention(main_metric, found[teacher].counts, own.counts, samples, seed)
    scores = activate(own.rows, spec.activation, row.subject.fitted.temperature)
    error = reliability(scores, own.encoded.targets, spec.multi_label).expected_error
    changed = flips(ruler, found[row.reference], own).value
    cells = [_percent(score.value, score.low, score.high), _percent(kept.value, kept.low, kept.high)]
    cells += [f"{changed:.2%}", among_others(ruler, row.subject, own, test), f"{error:.3f}"]
    return [*cells, f"{row.subject.path.stat().st_size / 1e6:.1f}"]


def speed(name: str, teacher: str, size: int, repeats: list[Any]) -> str:
    """Return milliseconds a call and the ratio to the teacher, lowest and median of the repeats; empty: not timed."""
    if not repeats:
        return ""
    ratios = [one[teacher][size].median_ms / one[name][size].median_ms for one in repeats]
    ms = statistics.median(one[name][size].median_ms for one in repeats)
    return f"{ms:.2f} ms, {min(ratios):.1f}× ({statistics.median(ratios):.1f}×)"


def among_others(ruler: Ruler, subject: Subject, alone: Answers, test: list[Example]) -> str:
    """Return the share of decisions that a random batch of 32 changes, and whether logits are bit-equal."""
    session, pad_id = Session(subject.path), subject.tokenizer.pad_id
    order = np.random.default_rng(0).permutation(len(test)).tolist()
    rows = np.empty_like(alone.rows)
    for start in range(0, len(order), 32):
        group = order[start : start + 32]
        output = session.run(pad([alone.encoded.encodings[i] for i in group], pad_id))
        rows[alone.encoded.rows_of(group)] = gather(output, alone.encoded.texts_and_positions(group))
    decisions = ruler.spec.decide(rows, subject.fitted.threshold_array, subject.fitted.temperature)
    same = (decisions == alone.decisions).reshape(len(rows), -1).all(axis=1)
    exact = batch_invariance(subject.path, alone.encoded.encodings[:500], pad_id, seed=0).bit_equal
    return f"{1 - same.mean():.2%}, {'equal' if exact else 'not equal'}"


def _refitted(path: Path, tokenizer: Tokenizer, ruler: Ruler, validation: list[Example]) -> Subject:
    """Return a quantised teacher with its own temperature and thresholds, as every student has them."""
    encoded = ruler.spec.encode(tokenizer, validation, ruler.labels)
    rows = rows_alone(path, encoded, tokenizer.pad_id, ruler.console, f"validating {path.stem}")
    return Subject(path, tokenizer, fit(rows, encoded.targets, ruler.spec, Calibrate()))


def _fitted(folder: Path, model: str) -> Fitted:
    values = json.loads((folder / "calibration.json").read_text())[model]
    thresholds = None if values["thresholds"] is None else tuple(values["thresholds"])
    return Fitted(values["temperature"], thresholds)


def _timed(subject: Subject, texts: list[Any]) -> Timed:
    return Timed(subject.path, subject.tokenizer.encode(texts), subject.tokenizer.pad_id)


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} % [{100 * low:.1f}–{100 * high:.1f}]"


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    main()
