"""Several students from one run: at targets that are given, or spread in equal ratios up to the recipe's.

Each point prunes the student of the point before it, so the set costs little more than its last point. Teacher, its
logits, distillation and vocabulary are shared.
"""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bundle import Bundle, check_target, open_bundle
from compress import distill, package
from compress.cost import Meter
from compress.errors import GateError, RecipeError
from compress.pipeline import alone, introduce, quiet_libraries, run_until
from compress.prune import check_reachable, recorded
from compress.recipe import Recipe
from compress.recipe_file import load_recipe
from compress.recipe_target import Target
from compress.report import METRIC_NAMES, main_metric
from compress.stage import Run, fingerprint, library_versions, read_json, write_atomic
from compress.stage_inputs import read_by_prune
from compress.student import load_student
from service.engine.tokenization import Tokenizer

FOLDER, _READ, _SET = "pareto", "read.json", "pareto.json"


@dataclass(frozen=True)
class Point:
    """One student of a set."""

    wanted: float
    reached: float
    quality: float
    """The task's main metric in INT8, on the test split."""
    onnx_bytes: int
    milliseconds: float
    bundle: str


def pareto(
    recipe_path: Path,
    overrides: list[str],
    out: Path | None,
    console: Console,
    wanted: Sequence[float] | int,
    force: bool = False,
    events_folder: Path | None = None,
) -> list[Bundle]:
    """Run a recipe for several targets and return the bundles, in `OUT/pareto/1/bundle` and so on.

    `wanted` are the targets, of the recipe's kind and the weakest first, or how many to spread up to the recipe's. A
    point that its gate refuses has no bundle. `events_folder` is for TensorBoard; points have folders of their own. A
    run that was killed goes on where it was. Raises CompressError (GateError when no point passed), and BundleError
    when a bundle cannot be written.
    """
    recipe = load_recipe(recipe_path, overrides)
    if recipe.target is None:
        raise RecipeError(f"{recipe_path}: target: not given; --pareto needs the strongest target that is wanted")
    if not isinstance(wanted, int):
        check_order(wanted, recipe.target.kind)
    number = wanted if isinstance(wanted, int) else len(wanted)
    base = Run(recipe, recipe_path.resolve().parent, out or Path("runs") / recipe.name, console, {}, force)
    base.events_folder = events_folder
    folders = [base.out / FOLDER / str(index + 1) for index in range(number)]
    for folder in folders:
        check_target(folder / package.BUNDLE)
    with alone(base.out):
        quiet_libraries()
        introduce(base)
        run_until(base, base.student_stages[-2])  # all but the pruning
        bundles, previous, refused = [], None, None
        targets = _targets(base, recipe.target, wanted)
        for index, (folder, target) in enumerate(zip(folders, targets, strict=True)):
            console.rule(f"point {index + 1} of {number}")
            own = _recipe_of_point(recipe, recipe.target, target, index, number)
            events = events_folder and events_folder / f"point-{index + 1}"
            point = replace(
                base, recipe=own, out=folder, reports={}, shared=base.out, previous=previous, events_folder=events
            )
            try:
                run_until(point, "package")
                bundles.append(open_bundle(folder / package.BUNDLE))
            except GateError as error:
                console.print(f"point {index + 1}: {error}", style="yellow", markup=False, soft_wrap=True)
                refused = error
            previous = point
        if not bundles and refused is not None:
            raise refused
        points = [_point(bundle, base.out) for bundle in bundles]
        write_atomic(base.out / FOLDER / _SET, json.dumps([vars(point) for point in points], indent=2))
        metric = METRIC_NAMES[main_metric(bundles[0].manifest.metrics) or "accuracy"]
        console.print(points_table(points, f"{recipe.name}: students by target", metric))
        return bundles


def check_order(targets: Sequence[float], kind: str) -> None:
    """Raise RecipeError unless each target asks for more than the one before, whose student it prunes on."""
    rising = kind == "speedup"
    least = 1 if rising else 0
    if not all(least < target < math.inf for target in targets) or list(targets) != sorted(
        set(targets), reverse=not rising
    ):
        found, order = ", ".join(f"{target:g}" for target in targets), "higher" if rising else "lower"
        raise RecipeError(
            f"--pareto: found {found}; expected {kind} targets above {least}, each {order} than the one before"
        )


def spread(begin: float, end: float, number: int) -> list[float]:
    """Return `number` targets from beyond `begin` to `end`, each the same ratio from the last; three digits each."""
    values = [begin * (end / begin) ** ((index + 1) / number) for index in range(number - 1)]
    return [float(f"{value:.3g}") for value in values] + [end]


def dominated(points: Sequence[Point]) -> list[bool]:
    """Return which points another one beats: no worse in quality and in milliseconds, and better in one of them."""

    def beats(one: Point, other: Point) -> bool:
        no_worse = one.quality >= other.quality and one.milliseconds <= other.milliseconds
        return no_worse and (one.quality > other.quality or one.milliseconds < other.milliseconds)

    return [any(beats(other, point) for other in points) for point in points]


def points_table(points: Sequence[Point], title: str, metric: str) -> Table:
    """Return the table of a set for a terminal."""
    table = Table(title=title, box=SIMPLE_HEAD)
    for heading in ("target", "reached", metric, "batch 1", "size", ""):
        table.add_column(heading, justify="right")
    for point, beaten in zip(points, dominated(points), strict=True):
        table.add_row(
            f"{point.wanted:g}",
            f"{point.reached:.3g}",
            f"{100 * point.quality:.1f}",
            f"{point.milliseconds:.2f} ms",
            f"{point.onnx_bytes / 1e6:.1f} MB",
            "another is better" if beaten else "",
        )
    return table


def _targets(base: Run, target: Target, wanted: Sequence[float] | int) -> list[float]:
    """Return the points' targets, the strongest of which can be met; raises ModelError where it cannot.

    What is measured for it is kept for the points, and for a run that goes on, until what they are cut from changes.
    """
    scratch = base.folder(FOLDER)
    mark = {"fingerprint": fingerprint([read_by_prune(base), library_versions(extras=False)])}
    if read_json(scratch / _READ) != mark:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        write_atomic(scratch / _READ, json.dumps(mark))
    source = base.before("prune")
    student = load_student(base, source / distill.MODEL)
    tokenizer = Tokenizer(source / distill.TOKENIZER, base.recipe.data.max_length)
    strongest = target if isinstance(wanted, int) else target.model_copy(update={target.kind: wanted[-1]})
    meter = Meter.open(base, strongest, student, tokenizer, scratch, recorded(base))
    cost = meter.cost(student)
    check_reachable(meter, student)
    meter.close()
    if not isinstance(wanted, int):
        return list(wanted)
    begin = meter.value(cost)
    if cost <= meter.wanted:
        raise RecipeError(
            f"target.{target.kind}: found {target.value:g}, which the student meets as it is ({begin:.3g}); --pareto "
            f"{wanted} needs a stronger one to spread students up to"
        )
    return spread(begin, target.value, wanted)


def _recipe_of_point(recipe: Recipe, target: Target, wanted: float, index: int, number: int) -> Recipe:
    steps = max(1, round(recipe.prune.steps / number))
    changed: dict[str, Any] = {
        "target": target.model_copy(update={target.kind: wanted}),
        "prune": recipe.prune.model_copy(update={"steps": steps}),
        "version": f"{recipe.version}-{index + 1}",
    }
    return recipe.model_copy(update=changed)


def _point(bundle: Bundle, out: Path) -> Point:
    manifest = bundle.manifest
    row = next(row for row in manifest.metrics if row.stage == "int8")
    outcome = manifest.target
    if outcome is None or row.quality is None or row.latency_ms is None:
        raise ValueError("a pruned student has a target, a quality and a latency")
    return Point(
        wanted=outcome.wanted,
        reached=outcome.reached,
        quality=next(iter(row.quality.scores.values())).value,
        onnx_bytes=row.onnx_bytes,
        milliseconds=row.latency_ms.batch_1.median_ms,
        bundle=str(bundle.folder.relative_to(out)),
    )
