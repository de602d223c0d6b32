"""How ONNX Runtime should be set up on this CPU: its options, the way of calling it, calls side by side, its memory.

    .venv/bin/python benchmarks/serving/sessions.py MODEL.onnx --tokenizer tokenizer.json --texts test.jsonl

Prints Markdown: machine, versions, sample counts, and tables. Speeds are multiples of what `service/engine/session.py`
does, medians of rounds in which all take turns in random order, with the lowest round beside them. One-threaded figures
are CPU time, so that neighbors on the machine hardly matter; calls side by side are wall time and need an idle machine.
With `--memory N` each choice for memory runs N batches of random shapes in a process of its own, from two threads.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from compress.machine import describe_machine, load_average
from service.engine.session import Session
from service.engine.tokenization import IntArray, Tokenizer, pad

Arrays = dict[str, IntArray]
OFF = ["SkipLayerNormFusion", "BiasSkipLayerNormFusion"]
LEVEL = ort.GraphOptimizationLevel
SHRINK = ("memory.enable_memory_arena_shrinkage", "cpu:0")
# name -> (attributes of SessionOptions, session config entries, optimizers switched off)
CHOICES: dict[str, tuple[dict[str, object], dict[str, str], list[str]]] = {
    "memory pattern on": ({"enable_mem_pattern": True}, {}, OFF),
    "arena off": ({"enable_cpu_mem_arena": False}, {}, OFF),
    "memory reuse off": ({"enable_mem_reuse": False}, {}, OFF),
    "weights outside the arena": ({}, {"session.use_device_allocator_for_initializers": "1"}, OFF),
    "denormals as zero": ({}, {"session.set_denormal_as_zero": "1"}, OFF),
    "no packed weights": ({}, {"session.disable_prepacking": "1"}, OFF),
    "optimization level extended": ({"graph_optimization_level": LEVEL.ORT_ENABLE_EXTENDED}, {}, OFF),
    "optimization level basic": ({"graph_optimization_level": LEVEL.ORT_ENABLE_BASIC}, {}, OFF),
    "SkipLayerNormFusion on": ({}, {}, []),
    "BiasGeluFusion off": ({}, {}, [*OFF, "BiasGeluFusion"]),
}
MEMORY = {
    "as served": {},
    "arena shrunk after each call": {},
    "memory pattern on": {"enable_mem_pattern": True},
    "arena off": {"enable_cpu_mem_arena": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an ONNX file")
    parser.add_argument("--tokenizer", type=Path, help="its tokenizer.json; needed for all but --memory")
    parser.add_argument("--texts", type=Path, help="JSONL with a key `text`; needed for all but --memory")
    parser.add_argument("--max-length", type=int, default=128, help="tokens  [default: 128]")
    parser.add_argument("--count", type=int, default=256, help="texts  [default: 256]")
    parser.add_argument("--rounds", type=int, default=15, help="after one to warm up  [default: 15]")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--memory", type=int, metavar="N", help="measure memory instead, over N batches each")
    parser.add_argument("--memory-choice", choices=MEMORY, help=argparse.SUPPRESS)  # one process of --memory
    arguments = parser.parse_args()
    if arguments.memory_choice:
        soak(arguments.model, arguments.memory_choice, arguments.memory)
        return
    print(f"{describe_machine()}; ONNX Runtime {ort.__version__}; load {load_average():.1f}; {arguments.model}\n")
    if arguments.memory:
        memory_table(arguments.memory)
        return
    tokenizer = Tokenizer(arguments.tokenizer, arguments.max_length)
    with arguments.texts.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(arguments.count), strict=False)]
    encodings = tokenizer.encode(texts)
    print(f"{len(texts)} texts, {statistics.mean(e.tokens for e in encodings):.0f} tokens on average, "
          f"{arguments.rounds} rounds\n")  # fmt: skip
    for size in arguments.batches:
        batches = [pad(encodings[start : start + size], tokenizer.pad_id) for start in range(0, len(texts), size)]
        print(f"## batches of {size}\n\n| choice | speed: median (lowest) |\n|---|---|")
        compare(one_thread(arguments.model, batches), arguments.rounds, time.thread_time)
        compare(side_by_side(arguments.model, batches), arguments.rounds, time.perf_counter)
        print()


def compare(cases: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float]) -> None:
    """Print one row a case: how many times as fast as the first."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name in random.sample(list(cases), len(cases)):
            began = clock()
            cases[name]()
            if turn:
                times[name].append(clock() - began)
    first = next(iter(times.values()))
    for name, own in times.items():
        ratios = [usual / found for usual, found in zip(first, own, strict=True)]
        note = f" = {statistics.median(own) * 1000:.1f} ms a round" if own is first else ""
        print(f"| {name} | {statistics.median(ratios):.2f} ({min(ratios):.2f}){note} |", flush=True)


def one_thread(model: Path, batches: Sequence[Arrays]) -> dict[str, Callable[[], None]]:
    """Return what one thread does with all batches, in each way."""
    served = Session(model)
    native = session(model)
    names, output = [node.name for node in native.get_inputs()], [native.get_outputs()[0].name]
    shrinking = ort.RunOptions()
    shrinking.add_run_config_entry(*SHRINK)
    binding = native.io_binding()
    wider = {
        step: [{n: np.pad(a, ((0, 0), (0, -a.shape[1] % step))) for n, a in b.items()} for b in batches]
        for step in (8, 16)
    }

    def feed(batch: Arrays) -> Arrays:
        return {name: batch[name] for name in names}

    def bound(batch: Arrays) -> None:
        for name in names:
            binding.bind_cpu_input(name, batch[name])
        binding.bind_output(output[0])
        native.run_with_iobinding(binding)
        binding.copy_outputs_to_cpu()

    def values(batch: Arrays) -> None:
        native.run_with_ort_values(output, {n: ort.OrtValue.ortvalue_from_numpy(batch[n]) for n in names})[0].numpy()

    cases: dict[str, Callable[[], None]] = {
        "as served": lambda: [served.run(batch) for batch in batches],
        "without our checks": lambda: [native.run(output, feed(batch)) for batch in batches],
        "IO binding": lambda: [bound(batch) for batch in batches],
        "OrtValues": lambda: [values(batch) for batch in batches],
        "lengths padded to multiples of 8": lambda: [served.run(batch) for batch in wider[8]],
        "lengths padded to multiples of 16": lambda: [served.run(batch) for batch in wider[16]],
        "arena shrunk after each call": lambda: [native.run(output, feed(batch), shrinking) for batch in batches],
    }
    for name, (attributes, entries, off) in CHOICES.items():
        other = session(model, attributes, entries, off)
        cases[name] = lambda other=other: [other.run(output, feed(batch)) for batch in batches]
    return cases


def side_by_side(model: Path, batches: Sequence[Arrays]) -> dict[str, Callable[[], None]]:
    """Return what two threads do with all batches, sharing a session or not, and one call that has two threads."""
    shared, first, second, wide = Session(model), Session(model), Session(model), Session(model, threads=2)

    def both(*sessions: Session) -> None:
        def work(own: Session, part: Sequence[Arrays]) -> None:
            for batch in part:
                own.run(batch)

        threads = [threading.Thread(target=work, args=(own, batches[n::2])) for n, own in enumerate(sessions)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return {
        "one call at a time (wall time from here on)": lambda: [shared.run(batch) for batch in batches],
        "two calls at once, one session": lambda: both(shared, shared),
        "two calls at once, a session each": lambda: both(first, second),
        "one call at a time with two threads": lambda: [wide.run(batch) for batch in batches],
    }


def session(
    model: Path,
    attributes: dict[str, object] | None = None,
    entries: dict[str, str] | None = None,
    off: Sequence[str] = OFF,
) -> ort.InferenceSession:
    """Return ONNX Runtime's session as `service/engine/session.py` makes it, but for what is given."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    for name, value in (attributes or {}).items():
        setattr(options, name, value)
    for name, value in ({"session.intra_op.allow_spinning": "0"} | (entries or {})).items():
        options.add_session_config_entry(name, value)
    return ort.InferenceSession(
        str(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(off) or None
    )


def memory_table(count: int) -> None:
    print(f"resident MB after each tenth of {count} batches of random shape (1–16 × 2–256 tokens), two threads\n")
    print("| choice | at first | " + " | ".join(f"{tenth}/10" for tenth in range(1, 11)) + " | last over first tenth |")
    print("|---" * 13 + "|")
    for name in MEMORY:
        command = [sys.executable, *sys.argv, "--memory-choice", name]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"| {name} | " + " | ".join(f"{mb:.0f}" for mb in found) + f" | {found[-1] / found[1]:.2f} |", flush=True)


def soak(model: Path, choice: str, count: int) -> None:
    """Print, as JSON, the resident MB of this process before and after each tenth of `count` batches."""
    own = session(model, MEMORY[choice])
    names, output = [node.name for node in own.get_inputs()], [own.get_outputs()[0].name]
    options = ort.RunOptions()
    if choice.startswith("arena shrunk"):
        options.add_run_config_entry(*SHRINK)
    marks, done, lock = [resident_mb()], 0, threading.Lock()

    def work(seed: int) -> None:
        nonlocal done
        source = np.random.default_rng(seed)
        while True:
            with lock:
                if done == count:
                    return
                done += 1
                if done % (count // 10) == 0:
                    marks.append(resident_mb())
            length = int(source.integers(2, 257) if source.random() < 0.2 else source.integers(2, 64))
            rows = int(min(source.integers(1, 17), max(1, 4096 // length)))
            ids = source.integers(5, 1000, (rows, length))
            arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            own.run(output, {name: arrays[name] for name in names}, options)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(marks))


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096 / 1e6


if __name__ == "__main__":
    main()
