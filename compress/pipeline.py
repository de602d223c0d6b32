"""The order of the stages, what each reads, and where a run goes on after a kill."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel
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
from compress.batches import autocast_dtype, best_device
from compress.errors import CompressError
from compress.models import model_identity
from compress.recipe_file import load_recipe
from compress.recipe_training import OneTeacher
from compress.report import stage_table, target_line, wording, worth_lines
from compress.savings import price_of, savings_line
from compress.slices import by_column
from compress.stage import Run, StageFunction, follow_stage, run_stage
from compress.team import connect, disband


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
        run_stage(run, stage.name, stage.reads(run), stage.work)
        if stage.name == last:
            return


def _stages(run: Run) -> list[_Stage]:
    baselines = (
        [_Stage("baselines", _read_by_baselines, worth.run, worth.follow)] if run.recipe.evaluate.baselines else []
    )
    makers = {"vocabulary": (_read_by_vocabulary, vocabulary.run), "prune": (_read_by_prune, prune.run)}
    reducers = [_Stage(name, *makers[name]) for name in run.student_stages[1:]]
    return [
        *_teachers(run),
        _Stage("targets", _read_by_targets, targets.run),
        _Stage("distill", _read_by_distill, distill.run, distill.run),
        *reducers,
        _Stage("export", lambda run: [run.recipe.export, run.files("teacher"), _student(run)], export.run),
        _Stage("calibrate", _read_by_calibrate, calibrate.run),
        _Stage("quantize", _read_by_quantize, search.run),
        *baselines,
        _Stage("evaluate", _read_by_evaluate, evaluate.run),
        _Stage("package", _read_by_package, package.run),
    ]


def _teachers(run: Run) -> list[_Stage]:
    """Return the stages after which everyone who teaches is there."""
    config = run.recipe.teacher
    stages = [_Stage("label", _read_by_label, label.run)] if config.llm is not None else []
    stages.append(_Stage(teacher.FIRST, partial(_read_by_teacher, config=config), teacher.run, teacher.run))
    for number, other in enumerate(config.others):
        work = partial(teacher.run_other, number=number)
        stages.append(_Stage(teacher.other(number), partial(_read_by_teacher, config=other), work, work))
    return stages


def _common(run: Run) -> dict[str, Any]:
    """What most stages read."""
    recipe = run.recipe
    data = run.splits.fingerprints()
    return {
        "task": recipe.task,
        "seed": recipe.seed,
        "max_length": recipe.data.max_length,
        "labels": run.splits.labels,
        "data": {name: data[name] for name in ("train", "validation", "unlabeled")},
        "computes": {"precision": str(autocast_dtype("auto", best_device())), "device": best_device().type},
    }


def _read_by_label(run: Run) -> Any:
    config = run.recipe.teacher.llm
    return _common(run) | {
        "recipe": None if config is None else config.decides(),
        "unlabeled_share": run.recipe.distill.unlabeled_share,
    }


def _read_by_teacher(run: Run, config: OneTeacher) -> Any:
    fine_tune = None if config.fine_tune is None else _outcome(config.fine_tune)
    labels = run.files("label") if config.fine_tune is not None and run.recipe.teacher.llm is not None else {}
    recipe = {"model": config.model, "fine_tune": fine_tune}
    return _common(run) | {"recipe": recipe, "model": _identity(run, config.model), "labels": labels}


def _read_by_targets(run: Run) -> Any:
    recipe = run.recipe
    names = [stage.name for stage in _teachers(run)]
    voices = [recipe.teacher.weight, *(other.weight for other in recipe.teacher.others)]
    return _common(run) | {
        "teachers": {name: run.files(name) for name in names},
        "weights": [*voices, recipe.teacher.llm and recipe.teacher.llm.weight],
        "recipe": [recipe.distill.augment, recipe.distill.unlabeled_share],
    }


def _read_by_distill(run: Run) -> Any:
    recipe = run.recipe
    model = None if recipe.student.init == "teacher" else _identity(run, recipe.student.init)
    aware = recipe.distill.quantization_aware_epochs > 0 and run.student_stages[-1] == "distill"
    pruned_first = recipe.target is not None and recipe.student.init == "teacher"
    rounding = _rounding(run) if aware else []
    return _common(run) | {
        "recipe": [recipe.student, _outcome(recipe.distill), rounding, pruned_first],
        "teacher": [run.files("teacher"), run.files("targets")],
        "model": model,
    }


def _rounding(run: Run) -> list[Any]:
    return [run.recipe.quantize.weight_bits, run.recipe.quantize.embeddings]


def _student(run: Run, before: str | None = None) -> dict[str, str]:
    """Return the files of the student that is exported, or of the one that the stage `before` begins with."""
    if before == "prune" and run.previous is not None:
        return _student(run.previous)
    stages = run.student_stages
    return run.files(stages[-1] if before is None else stages[stages.index(before) - 1])


def _read_by_vocabulary(run: Run) -> Any:
    recipe = run.recipe
    return _common(run) | {
        "recipe": [recipe.vocabulary, _outcome(recipe.distill), _rounding(run), run.student_stages[-1]],
        "test": run.splits.fingerprints()["test"],
        "inputs": [_student(run, "vocabulary"), run.files("targets")],
    }


def _read_by_prune(run: Run) -> Any:
    recipe = run.recipe
    speed = [recipe.quantize.candidates[0], recipe.evaluate.latency_texts, recipe.evaluate.latency_rounds]
    return _common(run) | {
        "recipe": [recipe.target, recipe.prune, _outcome(recipe.distill), _rounding(run), recipe.export, speed],
        "measurements": prune.recorded(run),
        "inputs": [_student(run, "prune"), run.files("teacher"), run.files("targets")],
    }


def _read_by_calibrate(run: Run) -> Any:
    return _common(run) | {"recipe": run.recipe.calibrate, "models": run.files("export")}


def _read_by_quantize(run: Run) -> Any:
    recipe = run.recipe
    return _common(run) | {
        "recipe": [recipe.quantize, recipe.gate, recipe.evaluate],
        "models": [run.files("export"), run.files("calibrate")],
    }


def _read_by_baselines(run: Run) -> Any:
    pruned = run.recipe.target is not None
    return _read_by_distill(run) | {"test": run.splits.fingerprints()["test"], "pruned": pruned}


def _read_by_evaluate(run: Run) -> Any:
    models = [
        run.files(name) for name in ("teacher", "export", "calibrate", "quantize", "baselines") if name in run.reports
    ]
    return _common(run) | {
        "test": run.splits.fingerprints()["test"],
        "slices": [run.recipe.data.columns.slice, [example.slice for example in run.splits.test]],
        "recipe": [run.recipe.evaluate, run.recipe.target],
        "models": models,
    }


def _read_by_package(run: Run) -> Any:
    everything = {name: run.files(name) for name in run.reports if name != "package"}
    return {
        "recipe": run.recipe.model_dump(mode="json", exclude={"tune"}),
        "data": run.splits.fingerprints(),
        "all": everything,
        "force": run.force,
    }


def introduce(run: Run) -> None:
    """Print what a run is about to do; raises DataError."""
    splits = run.splits
    rows = ", ".join(f"{split.rows} {name}" for name, split in splits.fingerprints().items())
    column = run.recipe.data.columns.slice
    if column is not None:  # refused now, not after the training
        by_column(column, [example.slice for example in splits.test])
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


def _outcome(part: BaseModel) -> Any:
    """Return the keys of a part of the recipe that decide what comes out; how often it is saved does not."""
    return part.model_dump(mode="json", exclude={"checkpoint_seconds"})


def _identity(run: Run, reference: str) -> Any:
    return model_identity(reference, run.recipe_folder)


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
