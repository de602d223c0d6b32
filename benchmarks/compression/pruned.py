"""Prune one teacher to the project's three aims: quality, balanced, tiny; then say which were reached.

    .venv/bin/python -m benchmarks.compression.pruned --data DIR --teacher FOLDER   # or --model FOLDER, to fine-tune it

`quality` and `balanced` are a set of two students (`--pareto 19.5,10.7`) of recipes/movie-reviews-pruned.yaml, the
second cut from the first; their targets are megabytes, which no clock decides, and speed comes with them. `tiny` is cut
from the six layers that the set has taught, to a speed: run it on an idle machine. docs/experiments.md tells why the
students begin as MiniLM and not as the teacher itself.
A killed run goes on where it was; what is done is not made again. The rows are those of each bundle's manifest: INT8 on
the test split, ONNX Runtime, one thread, batch 1, real lengths, all models in turns. An aim counts as reached when the
lower end of the retained share's paired 95 % interval is, and speed and size are. `--rows` prints what there is.
`benchmarks.compression.table movie-reviews-pruned` then sets the students beside the stock INT8 of each and of the
teacher.
"""

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.compression.recipe_list import data_override, recipe_path
from benchmarks.compression.students import KEPT, copy_student, keep
from compress.pareto import pareto
from compress.pipeline import compress
from compress.report import markdown_table

NAME = "movie-reviews-pruned"


@dataclass(frozen=True)
class Aim:
    """What a row of the table asks for, and the folder of the run's bundle."""

    retained: float
    """Share of the teacher's accuracy."""
    speedup: float
    smaller: float
    """How many times smaller than the teacher's FP32 file."""
    bundle: Path


AIMS = {
    "quality": Aim(0.97, 12, 20, Path(NAME) / "pareto/1/bundle"),
    "balanced": Aim(0.95, 25, 40, Path(NAME) / "pareto/2/bundle"),
    "tiny": Aim(0.90, 130, 150, Path(f"{NAME}-tiny") / "bundle"),
}
SIZES_MB = (19.5, 10.7)
TINY = (
    "target={speedup: 140}",
    "distill.epochs=1",
    "distill.learning_rate=2.0e-4",
    "vocabulary.embedding_rank=64",
    "prune.steps=1",
    "prune.final_epochs=8",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data set's folder")
    parser.add_argument("--model", help="the pre-trained teacher, where the recipe's is not installed")
    parser.add_argument("--teacher", type=Path, help="a fine-tuned teacher; the recipe's fine_tune is left out")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--only", nargs="*", choices=["set", "tiny"], default=["set", "tiny"], help="a part of it")
    parser.add_argument("--set", nargs="*", default=[], help="more keys of the recipe, for all aims")
    parser.add_argument("--rows", action="store_true", help="make nothing, print what is there")
    arguments = parser.parse_args()
    common = [data_override(NAME, arguments.data)]
    if arguments.model:
        common.append(f"teacher.model={arguments.model}")
    if arguments.teacher:
        common += [f"teacher.model={arguments.teacher.resolve()}", "teacher.fine_tune=null"]
    console = Console(highlight=False)
    parts = [] if arguments.rows else arguments.only
    if "set" in parts:
        pareto(recipe_path(NAME), [*common, *arguments.set], arguments.out / NAME, console, SIZES_MB, force=True)
    if "tiny" in parts:
        out = arguments.out / f"{NAME}-tiny"
        six_layers = (arguments.out / NAME / "six-layers").resolve()
        copy_student(arguments.out / NAME, six_layers)
        for stage in ("teacher", "targets"):  # the same teacher, which is not taught again
            shutil.copytree(arguments.out / NAME / "work" / stage, out / "work" / stage, dirs_exist_ok=True)
        begins = f"student.init={six_layers}"
        compress(recipe_path(NAME), [*common, *TINY, begins, *arguments.set], out, console, force=True)
    manifests = {aim: arguments.out / wanted.bundle / "manifest.json" for aim, wanted in AIMS.items()}
    found = {aim: json.loads(path.read_text()) for aim, path in manifests.items() if path.is_file()}
    for aim in found if parts else ():
        run, shared = arguments.out / AIMS[aim].bundle.parent, arguments.out / NAME
        # a point of the set has its teacher there, and a pruned vocabulary its tokenizer in the bundle
        own = {name: run / source for name, source in KEPT.items()} | {
            "teacher.tokenizer.json": shared / "work/teacher/tokenizer.json",
            "student.tokenizer.json": run / "bundle/tokenizer.json",
        }
        keep(own, shared / "students" / aim)
    if found:
        print("\n".join(markdown_table(HEADINGS, [row(aim, manifest) for aim, manifest in found.items()])))
        print(f"\nMachine: {next(iter(found.values()))['lineage']['machine']}.")


HEADINGS = ("aim", "accuracy [95 %]", "retained [95 %]", "speed-up", "size", "what is asked for", "reached")


def row(aim: str, manifest: dict[str, Any]) -> list[str]:
    """Return the cells of one aim."""
    wanted = AIMS[aim]
    teacher, int8 = (next(r for r in manifest["metrics"] if r["stage"] == stage) for stage in ("teacher", "int8"))
    score, retained = int8["quality"]["scores"]["accuracy"], int8["quality"]["retained"]
    speedup, smaller = int8["speedup"]["batch_1"], teacher["onnx_bytes"] / int8["onnx_bytes"]
    missed = []
    if retained["low"] < wanted.retained:
        missed.append("retained" if retained["value"] < wanted.retained else "retained, by its bound")
    missed += ["speed-up"] if speedup < wanted.speedup else []
    missed += ["size"] if smaller < wanted.smaller else []
    return [
        aim,
        _percent(score),
        _percent(retained),
        f"{speedup:.1f}×",
        f"{int8['onnx_bytes'] / 1e6:.1f} MB, 1/{smaller:.0f}",
        f"≥ {wanted.retained:.0%}, ≥ {wanted.speedup:g}×, ≤ 1/{wanted.smaller:g}",
        f"not: {', '.join(missed)}" if missed else "yes",
    ]


def _percent(interval: dict[str, float]) -> str:
    return " ".join([f"{100 * interval['value']:.1f} %", f"[{100 * interval['low']:.1f}–{100 * interval['high']:.1f}]"])


if __name__ == "__main__":
    main()
