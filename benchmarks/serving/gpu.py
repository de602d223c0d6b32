"""What a GPU gains: float16 against float32 there and INT8 on the CPU, with and without IO binding and CUDA graphs.

    .venv/bin/python -m benchmarks.serving.gpu runs/movie-reviews/bundle

Where no CUDA device works it says why and ends with exit status 0. It needs an NVIDIA driver for CUDA 13, Python 3.11
or later, and from PyPI: onnxruntime-gpu[cuda,cudnn], numpy, tokenizers, pydantic, pydantic-settings, and onnx where the
bundle has no float16 variant (one is made of its float32); --end-to-end also fastapi, uvicorn, uvloop, httptools,
prometheus-client, typer and rich: all of limbeck[gpu]. Neither torch nor transformers is used.

Prints Markdown: machine, versions, sample counts; for each batch size and length the median milliseconds a call of
rounds in which all ways take turns (fastest to slowest beside it), texts/s, and the largest difference of a score from
float32 on CPU; then requests/s and latency of `limbeck serve` on CUDA, and of the same service on CPU.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.serving.service_process import classify_request, read_answer, serving
from bundle import LAYOUT, Bundle, Variant, open_bundle, write_bundle
from bundle.manifest import GoldenInput
from compress.machine import describe_machine, load_average, usable_cores
from service.engine.errors import SessionError
from service.engine.postprocess import activate
from service.engine.session import RUNTIME_VERSION, Session, available_providers
from service.engine.session_options import CPU, CUDA, SessionOptions
from service.engine.shapes import build_grid
from service.engine.tokenization import IntArray

CALLS_S = 0.2  # of every way in every round, and at least 5 calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 128], help="lengths  [default: 32 128]")
    parser.add_argument("--rounds", type=int, default=5, help="after one to warm up  [default: 5]")
    parser.add_argument("--end-to-end", action=argparse.BooleanOptionalAction, default=True, help="[default: on]")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32, 128, 512])
    parser.add_argument("--seconds", type=float, default=10, help="for each number of connections  [default: 10]")
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    reason = why_no_cuda(bundle)
    if reason:
        print(f"not measured: {reason}")
        return 0
    print(f"{describe_machine()}; load {load_average():.1f}; ONNX Runtime {RUNTIME_VERSION}, {device_name()}; "
          f"{bundle.manifest.name}, {arguments.rounds} rounds\n")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        bundle = with_float16(bundle, Path(folder) / "bundle")
        ways = make_ways(bundle, max(arguments.batches), max(arguments.tokens))
        for tokens in arguments.tokens:
            tokens = min(tokens, bundle.manifest.max_length)
            print(f"## {tokens} tokens\n\n| batch | way | ms a call | texts/s | largest difference of a score |")
            print("|---|---|---|---|---|")
            for size in arguments.batches:
                compare(bundle, ways, size, tokens, arguments.rounds)
            print()
        if arguments.end_to_end:
            end_to_end(bundle, arguments.connections, arguments.seconds)
    return 0


def why_no_cuda(bundle: Bundle) -> str | None:
    """Return why CUDA does not work here, or None."""
    if CUDA not in available_providers():
        return f"this ONNX Runtime has {', '.join(available_providers())}; pip install 'limbeck[gpu]'"
    model = next(v for v in bundle.manifest.variants if v.dtype == "float32")
    try:
        Session(bundle.path(model.file), provider=CUDA)
    except SessionError as error:
        return str(error)
    return None


def device_name() -> str:
    for card in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        return card.read_text(encoding="utf-8").partition("Model:")[2].splitlines()[0].strip()
    return "a CUDA device"


def with_float16(bundle: Bundle, folder: Path) -> Bundle:
    """Return the bundle, or a copy that has a float16 variant made of its float32 one, for CUDA and by order."""
    if any(variant.dtype == "float16" for variant in bundle.manifest.variants):
        return bundle
    import onnx

    from compress.precision import to_float16

    original = next(variant for variant in bundle.manifest.variants if variant.dtype == "float32")
    half = Variant(
        name="fp16", file=LAYOUT.model("fp16"), dtype="float16", execution_providers=(CUDA,), golden_tolerance=2e-2,
        batch_invariant=False, gate_passed=False, gate_reason="made for a benchmark", forced=True,
    )  # fmt: skip
    golden = [
        GoldenInput.model_validate(line.model_dump() | {"scores": line.scores | {"fp16": line.scores[original.name]}})
        for line in bundle.golden()
    ]
    contents: dict[str, Path | bytes] = {name: bundle.path(name) for name in bundle.manifest.files}
    contents[half.file] = to_float16(onnx.load(bundle.path(original.file))).SerializeToString()
    contents[LAYOUT.golden] = "".join(line.model_dump_json() + "\n" for line in golden).encode()
    manifest = bundle.manifest.model_copy(update={"variants": (*bundle.manifest.variants, half)})
    return write_bundle(folder, manifest, contents)


def make_ways(bundle: Bundle, most_rows: int, longest: int) -> dict[str, Session]:
    grid = build_grid(max_batch_size=most_rows, max_batch_tokens=most_rows * longest, max_length=longest)
    plain, bound = SessionOptions(), SessionOptions(grid=grid)
    graphs = SessionOptions(grid=grid, cuda_graphs=True)
    wanted = [("float32", CPU, SessionOptions(threads=usable_cores()), "FP32 on CPU")]
    wanted += [("int8", CPU, SessionOptions(threads=usable_cores()), "INT8 on CPU")]
    for dtype, name in (("float32", "FP32"), ("float16", "FP16")):
        wanted += [
            (dtype, CUDA, plain, f"{name} on CUDA"),
            (dtype, CUDA, bound, f"{name} on CUDA, IO binding"),
            (dtype, CUDA, graphs, f"{name} on CUDA, IO binding, CUDA graphs"),
        ]
    ways = {}
    for dtype, provider, options, name in wanted:
        variant = next((v for v in bundle.manifest.variants if v.dtype == dtype), None)
        try:
            if variant is not None:
                ways[name] = Session(bundle.path(variant.file), provider=provider, options=options)
        except SessionError as error:
            print(f"{name}: cannot be measured: {error}\n")
    return ways


def compare(bundle: Bundle, ways: dict[str, Session], size: int, tokens: int, rounds: int) -> None:
    """Print one row a way, all on the same random batch."""
    ids = np.random.default_rng(size).integers(5, 1000, (size, tokens))
    batch: dict[str, IntArray] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    batch["token_type_ids"] = np.zeros_like(ids)
    times: dict[str, list[float]] = {name: [] for name in ways}
    scores = {}
    for turn in range(rounds + 1):
        for name in random.sample(list(ways), len(ways)):
            scores[name] = activate(ways[name].run(batch), bundle.manifest.activation)
            took_s = seconds_a_call(lambda name=name: ways[name].run(batch))
            if turn:
                times[name].append(took_s * 1000)
    usual = scores["FP32 on CPU"]
    for name, own in times.items():
        median = statistics.median(own)
        print(f"| {size} | {name} | {median:.3f} [{min(own):.3f}–{max(own):.3f}] | {size / median * 1000:,.0f} | "
              f"{np.abs(scores[name] - usual).max():.1e} |", flush=True)  # fmt: skip


def seconds_a_call(call: Callable[[], object]) -> float:
    began, calls = time.perf_counter(), 0
    while calls < 5 or time.perf_counter() - began < CALLS_S:
        call()
        calls += 1
    return (time.perf_counter() - began) / calls


def end_to_end(bundle: Bundle, connections: list[int], seconds: float) -> None:
    texts = [line.text for line in bundle.golden()]
    print(f"## `limbeck serve`, single texts of {len(texts)} golden inputs, {seconds:g} s each\n")
    print("| served | connections | requests/s | p50 ms | p99 ms | errors |\n|---|---|---|---|---|---|")
    for name, settings in (
        ("CPU", {"provider": "cpu"}),
        ("CUDA", {"provider": "cuda", "max_batch_size": 128, "max_batch_tokens": 16384}),
        ("CUDA graphs", {"provider": "cuda", "max_batch_size": 128, "max_batch_tokens": 16384, "cuda_graphs": True}),
    ):
        with serving(bundle.folder, log_level="warning", **settings) as (_, port):
            asyncio.run(load(port, texts, 8, min(2, seconds)))  # warm-up
            for number in connections:
                times, errors = asyncio.run(load(port, texts, number, seconds))
                low, high = np.percentile(times, [50, 99]) * 1000
                rate = len(times) / seconds
                print(f"| {name} | {number} | {rate:,.0f} | {low:.2f} | {high:.2f} | {errors} |", flush=True)


async def load(port: int, texts: list[str], connections: int, seconds: float) -> tuple[list[float], int]:
    """Return the seconds each answered request took, in a closed loop, and the number of other answers than 200."""
    requests = [classify_request(json.dumps({"inputs": [text]}).encode()) for text in texts]
    times: list[float] = []
    errors, end = 0, time.perf_counter() + seconds

    async def client(number: int) -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (began := time.perf_counter()) < end:
            writer.write(requests[number % len(requests)])
            number += 1
            status, _ = await read_answer(reader)
            times.append(time.perf_counter() - began)
            errors += status != 200
        writer.close()

    await asyncio.gather(*(client(number) for number in range(connections)))
    return times, errors


if __name__ == "__main__":
    sys.exit(main())
