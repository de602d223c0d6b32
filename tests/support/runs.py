"""Finished runs, and parts of them to go on from in the test's own process."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bundle import Bundle, open_bundle
from compress.recipe_file import load_recipe
from compress.stage import Run, StageReport
from tests.support.command import limbeck
from tests.support.models import write_tiny_recipe

STAGES = ("teacher", "targets", "distill", "export", "calibrate", "quantize", "baselines", "evaluate", "package")
QUIET = Console(quiet=True)


@dataclass(frozen=True)
class Finished:
    recipe: Path
    out: Path
    printed: str

    @property
    def bundle(self) -> Bundle:
        return open_bundle(self.out / "bundle")

    def rows(self, split: str) -> list[dict[str, Any]]:
        lines = (self.recipe.parent / "data" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def finish(folder: Path, task: str, **changes: Any) -> Finished:
    """Run a tiny recipe of a task to its end, through the command."""
    recipe = write_tiny_recipe(folder, task, **changes)
    result = limbeck("compress", recipe, "--out", folder / "out")
    assert result.returncode == 0, result.stderr + result.stdout
    return Finished(recipe, folder / "out", result.stdout)


def reopened(
    finished: Finished,
    out: Path,
    stages: Iterable[str] = STAGES,
    overrides: Iterable[str] = (),
    console: Console = QUIET,
) -> Run:
    """Copy some finished stages to `out` and return the run that has them done, perhaps with another recipe."""
    run = Run(load_recipe(finished.recipe, list(overrides)), finished.recipe.parent, out, console, {})
    for stage in stages:
        shutil.copytree(finished.out / "work" / stage, run.folder(stage))
        record = json.loads((run.folder(stage) / "stage.json").read_text(encoding="utf-8"))
        run.reports[stage] = StageReport(**record["report"])
    return run


def stage_folder(run: Run, stage: str) -> Path:
    """An empty folder for a stage that is to be run by itself."""
    folder = run.folder(stage)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
