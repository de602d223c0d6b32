"""What a stage is given, what it gives back, and how a finished one is recognised."""

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from bundle import sha256_file
from compress.data import Splits, load_splits
from compress.examples import Example
from compress.recipe import Recipe
from compress.recipe_file import located
from compress.tasks import SPECS, TaskSpec
from compress.team import ALONE, Team

LIBRARIES = ("limbeck", "numpy", "onnx", "optimum", "optimum-onnx", "scipy", "tokenizers", "torch", "transformers")
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_EXTRAS = ("accelerate", "peft")
"""In the lineage only: who installs them in the middle of a run is not to lose what is finished."""
CHECKPOINTS = "checkpoints"
"""Folder in a stage's folder that outlives a kill."""
_RECORD, _STARTED = "stage.json", "started.json"
_SHARED = ("label", "teacher", "targets", "distill", "vocabulary", "baselines")


@dataclass(frozen=True)
class StageReport:
    """What a finished stage says of itself."""

    stage: str
    seconds: float
    files: dict[str, str]
    """File name in the stage's folder -> SHA-256."""
    summary: dict[str, Any]


@dataclass
class Run:
    """One run of a recipe: its inputs and the reports so far. Data is read when the first stage needs it."""

    recipe: Recipe
    recipe_folder: Path
    out: Path
    console: Console
    reports: dict[str, StageReport]
    force: bool = False
    """Write the bundle although the gate failed."""
    team: Team = ALONE
    """The processes that train together."""
    events_folder: Path | None = None
    """Where TensorBoard finds how training goes."""
    shared: Path | None = None
    """Of a point of a Pareto set: the folder whose first stages all points share."""
    previous: "Run | None" = None
    """The point before it, whose student it prunes on."""

    @cached_property
    def splits(self) -> Splits:
        """The examples; raises DataError."""
        return load_splits(located(self.recipe.data, self.recipe_folder), self.recipe.seed, self.spec)

    @cached_property
    def unlabeled(self) -> list[Example]:
        """The unlabeled rows that the recipe uses, in their order: a share of them, drawn by seed."""
        share, rows = self.recipe.distill.unlabeled_share, self.splits.unlabeled
        if share == 1:
            return rows
        chosen = random.Random(self.recipe.seed).sample(range(len(rows)), round(share * len(rows)))  # noqa: S311 - not for secrets
        return [rows[index] for index in sorted(chosen)]

    @property
    def spec(self) -> TaskSpec:
        """What the task decides."""
        return SPECS[self.recipe.task]

    @property
    def student_stages(self) -> list[str]:
        """The stages that change the student, first to last; the last one's model and tokenizer are exported."""
        more = {"vocabulary": self.recipe.vocabulary, "prune": self.recipe.target}
        return ["distill", *(stage for stage, part in more.items() if part is not None)]

    @property
    def student(self) -> Path:
        """Where the student that is exported lies."""
        return self.folder(self.student_stages[-1])

    def before(self, stage: str) -> Path:
        """Return where the student lies that one of the `student_stages` begins with."""
        if self.previous is not None and stage == "prune":
            return self.previous.student
        stages = self.student_stages
        return self.folder(stages[stages.index(stage) - 1])

    def folder(self, stage: str) -> Path:
        """Return where a stage keeps its files."""
        shared = stage.partition("-")[0] in _SHARED  # teacher-2 is a teacher, too
        root = self.shared if self.shared is not None and shared else self.out
        return root / "work" / stage

    def files(self, stage: str) -> dict[str, str]:
        """Return the files of a finished stage with their hashes."""
        return self.reports[stage].files


StageFunction = Callable[[Run, Path], dict[str, Any]]
"""Does a stage's work in its folder and returns the summary for the report."""


def library_versions(*, extras: bool = True) -> dict[str, str]:
    """Return the versions of the libraries whose code decides the outcome, with `extras` also those for some runs."""
    versions = {name: metadata.version(name) for name in LIBRARIES}
    for name in (*_RUNTIMES, *_EXTRAS) if extras else _RUNTIMES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def fingerprint(content: Any) -> str:
    """Return the SHA-256 of anything JSON can hold, parts of a recipe included."""
    text = json.dumps(content, sort_keys=True, default=lambda part: part.model_dump(mode="json"))
    return hashlib.sha256(text.encode()).hexdigest()


def follow_stage(run: Run, name: str, work: Callable[[Run, Path], Any] | None) -> None:
    """Do in another than the first process what a stage does together, in a folder of its own that is left nowhere."""
    if not run.team.shared(False) or work is None:
        run.team.shared(None)
        return
    folder = run.out / "work" / f".process-{run.team.rank}" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    work(run, folder)
    shutil.rmtree(folder.parent, ignore_errors=True)
    run.team.shared(None)


def run_stage(run: Run, name: str, reads: Any, work: StageFunction) -> StageReport:
    """Run a stage, resume it, or take over its finished report when it read the same inputs.

    A stage is finished when `stage.json` is there, its fingerprint matches and every file it lists has its hash. A
    folder left by a kill keeps its checkpoints when its fingerprint matches; otherwise it is emptied.
    """
    folder = run.folder(name)
    mark = fingerprint({"stage": name, "reads": reads, "versions": library_versions(extras=False)})
    report = _finished(folder, mark)
    run.team.shared(report is None)  # whether there is something to do
    if report is not None:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # of a run killed just after the stage was finished
        run.console.print(f"[bold]{name}[/bold]: done earlier ({report.seconds:.0f} s)")
    else:
        _clear(folder, keep={_STARTED, CHECKPOINTS} if read_json(folder / _STARTED) == {"fingerprint": mark} else set())
        write_atomic(folder / _STARTED, json.dumps({"fingerprint": mark}))
        run.console.print(f"[bold]{name}[/bold]")
        started = time.monotonic()
        summary = work(run, folder)
        files = {
            str(path.relative_to(folder)): sha256_file(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != _STARTED and CHECKPOINTS not in path.relative_to(folder).parts
        }
        report = StageReport(name, round(time.monotonic() - started, 3), files, summary)
        write_atomic(folder / _RECORD, json.dumps({"fingerprint": mark, "report": asdict(report)}, indent=2))
        # only now: a kill before this line must still find all of them
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    run.reports[name] = report
    run.team.shared(None)  # it is finished
    return report


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a kill leaves the old content or the new, never half."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _clear(folder: Path, keep: set[str]) -> None:
    """Make an empty folder but for what a killed run can go on from."""
    folder.mkdir(parents=True, exist_ok=True)
    if _STARTED not in keep:  # first: checkpoints that are half deleted must not be taken for this stage's
        (folder / _STARTED).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name in keep:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _finished(folder: Path, mark: str) -> StageReport | None:
    record = read_json(folder / _RECORD)
    if record is None or record.get("fingerprint") != mark:
        return None
    report = StageReport(**record["report"])
    for name, digest in report.files.items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != digest:
            return None
    return report


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
