"""One cut or several with teaching between, the same epochs in all: which keeps more, judged on validation.

    .venv/bin/python -m benchmarks.compression.cuts --data DIR --teacher FOLDER --seeds 1 2 3 4 5

The teacher (a fine-tuned MiniLM-L6) is its own student, untaught, and is cut to five megabytes in every way of WAYS: a
target that no clock decides. No epoch is saved by patience. The best one after the last cut counts, on the split that
judges: of five or twelve with one cut, of two or six with several, so one cut is favored a little. Small, so that a way
takes minutes: 2,000 texts with and 2,000 without labels, none augmented. No choice hangs on the test split. A way that
is done is not run again.
"""

import argparse
from pathlib import Path

from rich.console import Console

from benchmarks.compression.recipe_list import FOLDER, data_override, recipe_path
from benchmarks.compression.seeds import Measure, Row, collect, show
from compress import pipeline
from compress.recipe_file import load_recipe
from compress.stage import Run

NAME = "movie-reviews-pruned"
SMALL = (
    "data.limit=2000",
    "student.init=teacher",
    "distill.augment.copies=0",
    "distill.patience=12",
    "target={size_mb: 5}",
    "prune.texts=256",
    "teacher.fine_tune=null",
)
WAYS = {
    "1 cut: 5 epochs": (1, 1, 5),
    "4 cuts: 1 + 1 + 1 + 2": (4, 1, 2),
    "1 cut: 12 epochs": (1, 1, 12),
    "4 cuts: 2 + 2 + 2 + 6": (4, 2, 6),
}
"""Cuts, epochs after each but the last, epochs after the last."""
MEASURES = {
    "score": Measure("accuracy on validation", ".4f", compared=True),
    "megabytes": Measure("MB", ".2f"),
    "seconds": Measure("seconds", ".0f"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data set's folder")
    parser.add_argument("--teacher", type=Path, required=True, help="a fine-tuned MiniLM-L6")
    parser.add_argument("--out", type=Path, default=Path("runs/cuts"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="WAY", help="some of them")
    parser.add_argument("--set", nargs="*", default=[], help="more keys of the recipe, for all ways")
    arguments = parser.parse_args()
    teacher = f"teacher.model={arguments.teacher.resolve()}"
    common = [data_override(NAME, arguments.data), *SMALL, teacher, *arguments.set]
    console = Console(stderr=True, highlight=False)
    pipeline.quiet_libraries()

    def measure(seed: int, way: str) -> Row:
        console.rule(f"seed {seed}: {way}")
        steps, epochs, final = WAYS[way]
        own = [f"seed={seed}", f"prune.steps={steps}", f"prune.epochs={epochs}", f"prune.final_epochs={final}"]
        folder = arguments.out / f"seed-{seed}"
        run = Run(load_recipe(recipe_path(NAME), [*common, *own]), FOLDER, folder, console, {})
        pipeline.run_until(run, "prune")
        report = run.reports["prune"]
        return {
            "score": report.summary["steps"][-1]["validation_score"],
            "megabytes": report.summary["measured"],
            "seconds": report.seconds,
        }

    results = collect(arguments.out / "cuts.json", common, arguments.seeds, arguments.ways, measure)
    show(results, MEASURES)


if __name__ == "__main__":
    main()
