"""The order of the stages, what each reads, and where a run goes on after a kill."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from bundle import LAYOUT, Bundle, BundleError, check_target, open_bundle
from compress import distill, evaluate, export, package, quantize, teacher
from compress.errors import CompressError
from compress.models import model_identity
from compress.recipe import load_recipe
from compress.report import stage_table
from compress.stage import Run, run_stage
from compress.train import autocast_dtype, best_device


def compress(recipe_path: Path, overrides: list[str], out: Path | None, console: Console) -> Bundle:
    """Run a recipe and return the bundle in `OUT/bundle`; a run that was killed goes on where it was.

    `out` is by default `runs/NAME` under the current folder. Raises CompressError, and BundleError when the bundle
    cannot be written.
    """
    recipe = load_recipe(recipe_path, overrides)
    run = Run(recipe, recipe_path.resolve().parent, out or Path("runs") / recipe.name, console, {})
    check_target(run.out / package.BUNDLE)
    with _alone(run.out):
        _quiet_libraries()
        data = run.splits.fingerprints()
        console.print(
            f"{recipe.name}: {len(run.splits.labels)} labels; "
            + ", ".join(f"{data[name].rows} {name}" for name in data)
            + " rows",
            soft_wrap=True,
        )
        seen = {name: data[name] for name in ("train", "validation", "unlabeled")}
        common = {"seed": recipe.seed, "max_length": recipe.data.max_length, "labels": run.splits.labels}
        files = run.files
        computes = {"precision": str(autocast_dtype("auto", best_device())), "device": best_device().type}
        run_stage(
            run,
            "teacher",
            common
            | {"data": seen, "recipe": _outcome(recipe.teacher), "computes": computes}
            | {"model": _identity(run, recipe.teacher.model)},
            teacher.run,
        )
        init = recipe.student.init
        run_stage(
            run,
            "distill",
            common
            | {"data": seen, "recipe": [recipe.student, _outcome(recipe.distill)], "computes": computes}
            | {"teacher": files("teacher")}
            | {"model": None if init == "teacher" else _identity(run, init)},
            distill.run,
        )
        run_stage(run, "export", {"recipe": recipe.export, "models": [files("teacher"), files("distill")]}, export.run)
        run_stage(run, "quantize", {"recipe": recipe.quantize, "model": files("export")}, quantize.run)
        run_stage(
            run,
            "evaluate",
            common
            | {
                "data": data,
                "recipe": recipe.evaluate,
                "models": [files(name) for name in ("teacher", "export", "quantize")],
            },
            evaluate.run,
        )
        _forget_lost_bundle(run)
        run_stage(
            run,
            "package",
            {"recipe": recipe, "data": data, "all": {name: run.files(name) for name in run.reports}},
            package.run,
        )
        console.print(stage_table(evaluate.read_metrics(run.folder("evaluate")), f"{recipe.name}: test split"))
        bundle = open_bundle(run.out / package.BUNDLE)
        for variant in bundle.manifest.variants:
            if not variant.gate_passed:
                text = f"Variant {variant.name} did not pass the gate and will not be served: {variant.gate_reason}"
                console.print(text, style="yellow", markup=False, soft_wrap=True)
        return bundle


def _outcome(part: BaseModel) -> Any:
    """Return the keys of a part of the recipe that decide what comes out; how often it is saved does not."""
    return part.model_dump(mode="json", exclude={"checkpoint_seconds": True, "fine_tune": {"checkpoint_seconds"}})


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


def _quiet_libraries() -> None:
    """Keep advice meant for people at a prompt of transformers out of our progress."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def _alone(out: Path) -> Iterator[None]:
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
