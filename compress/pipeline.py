"""The order of the stages, and where a run goes on after a kill."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from bundle import LAYOUT, Bundle, BundleError, check_target, open_bundle
from compress import (
    calibrate,
    distill,
    evaluate,
    export,
    label,
    package,
    prune,
    search,
    targets,
    teacher,
    vocabulary,
    worth,
)
from compress import stage_inputs as reads
from compress.errors import CompressError
from compress.recipe_file import load_recipe
from compress.report import stage_table, target_line, wording, worth_lines
from compress.savings import price_of, savings_line
from compress.slices import by_column
from compress.stage import Run, StageFunction, follow_stage, run_stage
from compress.team import connect, disband, on_all_cores


@dataclass(frozen=True)
class _Stage:
    name: str
    reads: Callable[[Run], Any]
    """What decides its outcome; it runs anew when that has changed."""
    work: StageFunction
    follow: Callable[[Run, Path], Any] | None = None
    """What processes beside the first do in it, where several train together."""


def compress(
    recipe_path: Path,
    overrides: list[str],
    out: Path | None,
    console: Console,
    force: bool = False,
    events_folder: Path | None = None,
) -> Bundle | None:
    """Run a recipe and return the bundle in `OUT/bundle`; a run that was killed goes on where it was.

    `out` is by default `runs/NAME` under the current folder. `events_folder` is for TensorBoard. Where a launcher
    started several processes, all but the first train with it, say nothing, and return None. Raises CompressError
    (GateError when no variant kept enough, unless `force`), and BundleError when the bundle cannot be written.
    """
    recipe = load_recipe(recipe_path, overrides)
    run = Run(recipe, recipe_path.resolve().parent, out or Path("runs") / recipe.name, console, {}, force)
    run.events_folder = events_folder
    run.team = connect()
    try:
        if run.team.first:
            return _lead(run)
        _follow(run)
        return None
    finally:
        disband()


def _follow(run: Run) -> None:
    run.console = Console(quiet=True)
    quiet_libraries()
    try:
        for stage in _stages(run):
            follow_stage(run, stage.name, stage.follow)
    except CompressError:  # the first process meets the same, or has ended
        raise SystemExit(1) from None


def _lead(run: Run) -> Bundle:
    console = run.console
    check_target(run.out / package.BUNDLE)
    with alone(run.out):
        for leftover in (run.out / "work").glob(".process-*"):  # of a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        quiet_libraries()
        introduce(run)
        run_until(run, "package")
        bundle = open_bundle(run.out / package.BUNDLE)
        show(bundle, console, "test split")
        return bundle


def run_until(run: Run, last: str) -> None:
    """Run the stages up to the one called `last`, or take over what was finished earlier."""
    for stage in _stages(run):
        if stage.name == "package":
            _forget_lost_bundle(run)
        with nullcontext() if stage.follow else on_all_cores(run.team):
            run_stage(run, stage.name, stage.reads(run), stage.work)
        if stage.name == last:
            return


def _stages(run: Run) -> list[_Stage]:
    baselines = (
        [_Stage("baselines", reads.read_by_baselines, worth.run, worth.follow)] if run.recipe.evaluate.baselines else []
    )
    reducers = {
        "vocabulary": _Stage("vocabulary", reads.read_by_vocabulary, vocabulary.run, vocabulary.follow),
        "prune": _Stage("prune", reads.read_by_prune, prune.run, prune.follow),
    }
    return [
        *_teachers(run),
        _Stage("targets", reads.read_by_targets, targets.run),
        _Stage("distill", reads.read_by_distill, distill.run, distill.run),
        *[reducers[name] for name in run.student_stages[1:]],
        _Stage("export", reads.read_by_export, export.run),
        _Stage("calibrate", reads.read_by_calibrate, calibrate.run),
        _Stage("quantize", reads.read_by_quantize, search.run),
        *baselines,
        _Stage("evaluate", reads.read_by_evaluate, evaluate.run),
        _Stage("package", reads.read_by_package, package.run),
    ]


def _teachers(run: Run) -> list[_Stage]:
    """Return the stages after which everyone who teaches is there."""
    config = run.recipe.teacher
    stages = [_Stage("label", reads.read_by_label, label.run)] if config.llm is not None else []
    stages.append(_Stage(teacher.FIRST, partial(reads.read_by_teacher, config=config), teacher.run, teacher.run))
    for number, other in enumerate(config.others):
        work = partial(teacher.run_other, number=number)
        stages.append(_Stage(teacher.other(number), partial(reads.read_by_teacher, config=other), work, work))
    return stages


def introduce(run: Run) -> None:
    """Print what a run is about to do; raises DataError, or RecipeError for measurements that are none."""
    splits = run.splits
    rows = ", ".join(f"{split.rows} {name}" for name, split in splits.fingerprints().items())
    column = run.recipe.data.columns.slice
    if column is not None:  # refused now, not after the training
        by_column(column, [example.slice for example in splits.test])
    if run.recipe.target is not None:
        prune.recorded(run)  # likewise
    run.console.print(f"{run.recipe.name}: {len(splits.labels)} labels; {rows} rows", soft_wrap=True)
    for pair, shared in splits.overlap().items():
        if shared:
            own, other = pair.split(" in ")
            text = f"Warning: texts of {own} that stand in {other}, too: {shared}; quality on them may flatter"
            run.console.print(text, style="yellow", soft_wrap=True)


def show(bundle: Bundle, console: Console, what: str) -> None:
    """Print what was measured, what the baselines do, and what did not pass the gate."""
    manifest = bundle.manifest
    console.print(stage_table(manifest.metrics, f"{manifest.name}: {what}", wording(manifest)))
    saved = savings_line(manifest.metrics, price_of(manifest), wording(manifest).reference)
    if saved is not None:
        console.print(saved, markup=False, soft_wrap=True)
    if manifest.target is not None:
        console.print(target_line(manifest.target), style=None if manifest.target.met else "yellow", soft_wrap=True)
    for line in worth_lines(manifest.baselines):
        console.print(line, style="yellow" if "NOT" in line else None, markup=False, soft_wrap=True)
    for variant in manifest.variants:
        if not variant.gate_passed:
            consequence = "is marked as forced" if variant.forced else "will not be served"
            text = f"Variant {variant.name} did not pass the gate and {consequence}: {variant.gate_reason}"
            console.print(text, style="yellow", markup=False, soft_wrap=True)
    console.print(f"Report: {bundle.path(LAYOUT.report)}", markup=False, soft_wrap=True)


def _forget_lost_bundle(run: Run) -> None:
    """Make the package stage run again when its bundle is gone, damaged, or another run's."""
    mark = run.folder("package") / LAYOUT.manifest_hash
    try:
        bundle = open_bundle(run.out / package.BUNDLE)
        if mark.read_bytes() == (bundle.folder / LAYOUT.manifest_hash).read_bytes():
            return
    except (BundleError, OSError):
        pass
    mark.unlink(missing_ok=True)


def quiet_libraries() -> None:
    """Keep advice meant for people at a prompt of transformers out of our progress."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the output folder for one run at a time."""
    try:
        (out / "work").mkdir(parents=True, exist_ok=True)
        lock = (out / "work" / ".lock").open("w", encoding="utf-8")
    except OSError as error:
        raise CompressError(f"{out}: cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CompressError(f"{out}: another run is writing there; wait for it, or give another --out") from error
        yield
