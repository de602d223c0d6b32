"""Stage: cut the student to its target in several steps, and teach it again after each.

Before each cut the importance of heads, neurons, layers and hidden numbers is measured on the student as it is, a
search keeps the most of it that the step's budget allows, and what goes is physically removed. Budgets fall by the same
factor from step to step. The last cut is measured in ONNX Runtime and searched again until it costs what the target
says.
"""

import copy
import json
import math
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from compress import distill, teacher
from compress.anatomy import anatomy_of
from compress.batches import best_device
from compress.cost import COSTS, Meter, shape_of
from compress.cut import Kept, cut
from compress.distill import Lesson
from compress.errors import MeasurementsError, ModelError, RecipeError
from compress.importance import Importance, measure_importance
from compress.mask_search import Costs, Found, search, smallest
from compress.progress import track
from compress.quantize_weights import MIN_MATRIX_ELEMENTS
from compress.recipe_target import Target
from compress.stage import CHECKPOINTS, Run, read_json, write_atomic
from compress.student import load_student
from service.engine.tokenization import Tokenizer

NEAR = 0.10
"""A target counts as met when the student's own figure is this near."""
_NEAR_ENOUGH = 0.04
"""The search stops when a measurement is this near; the final one, on other texts, may then differ a little."""
_TRIES, _SEARCHES = 6, 25
"""Cuts that are measured for the last step, at most; several questions can have the same answer."""
_SAME = 1.003
_DONE, _PLAN, _MODEL, _TRAINING = "done.json", "plan.json", "model", "training"


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write `model/`, the pruned student, its `tokenizer.json`, and `costs.json`, what was measured for it."""
    recipe = run.recipe
    if recipe.target is None:
        raise RecipeError("target: not given")
    scratch, source = folder / CHECKPOINTS, run.before("prune")
    shutil.copyfile(source / distill.TOKENIZER, folder / distill.TOKENIZER)
    student = load_student(run, source / distill.MODEL)
    tokenizer = Tokenizer(folder / distill.TOKENIZER, recipe.data.max_length)
    meter = Meter.open(run, recipe.target, student, tokenizer, scratch, recorded(run))
    begin, costs = meter.cost(student), meter.costs(student)
    lesson = Lesson.of(run, tokenizer, run.team)
    cutter = _Cutter(run, recipe.target, lesson, meter, costs, begin, scratch)
    run.console.print(f"  before: {meter.in_words(begin)}; wanted: {meter.in_words(meter.wanted)}", markup=False)
    check_reachable(meter, student)
    student, steps = cutter.cut_all(student)
    summary = lesson.teach_rounding(student, folder)
    teacher.save_model(student, folder / distill.MODEL)
    shutil.copyfile(scratch / COSTS, folder / COSTS)
    return {
        "target": recipe.target.model_dump(mode="json", exclude_none=True),
        "before": meter.value(begin),
        "measured": meter.value(meter.cost(student)),
        "parameters": teacher.count_parameters(student),
        "steps": steps,
        **summary,
    }


def follow(run: Run, folder: Path) -> None:
    """Teach with the first process, which measures and cuts; `folder` is this process's own."""
    own = run.folder("prune")
    done = run.team.shared(0)
    source = _place(own / CHECKPOINTS, done) / _MODEL if done else run.before("prune") / distill.MODEL
    student = load_student(run, source)
    tokenizer = Tokenizer(own / distill.TOKENIZER, run.recipe.data.max_length)
    lesson = Lesson.of(run, tokenizer, run.team)
    run.team.gathered(None)
    while (kept := run.team.shared(None)) is not None:
        done += 1
        cut(student, _kept(kept))
        _teach(lesson, student, done, folder)
    lesson.teach_rounding(student, folder)


def recorded(run: Run) -> dict[str, Any] | None:
    """Return the measurements of an earlier run that this one is to use; raises MeasurementsError."""
    path = run.recipe.prune.measurements
    if path is None:
        earlier = run.previous.folder("prune") if run.previous else run.shared and run.shared / "work" / "pareto"
        return read_json(earlier / COSTS) if earlier else None
    found = read_json(run.recipe_folder / path)
    if found is None or not {"about", "measured"} <= found.keys():
        raise MeasurementsError(f"prune.measurements: {path} is not the {COSTS} of a finished run")
    return found


_GIVE_WAY = {
    "speedup": "ask for a lower speed-up",
    "latency_ms": "allow more milliseconds",
    "size_mb": "allow a larger file",
}


def check_reachable(meter: Meter, student: nn.Module) -> None:
    """Raise ModelError when not even the smallest student that can be cut from this one meets the meter's target."""
    least, cost = meter.least(student)
    if cost > meter.wanted * (1 + NEAR):
        hidden, layers = shape_of(least)
        settings = meter.run.recipe.prune
        off = [f"allow prune.{name}" for name in ("layers", "hidden") if not getattr(settings, name)]
        advice = [_GIVE_WAY[meter.target.kind], *off, "prune its vocabulary", "or start from a narrower student"]
        raise ModelError(
            f"target.{meter.target.kind}: found {meter.target.value:g}; the smallest student that can be cut from this "
            f"one ({len(layers)} layers of 1 head and {layers[0][1]} neurons, {hidden} wide) comes to "
            f"{meter.in_words(cost)}; {', '.join(advice)}"
        )


def _place(scratch: Path, step: int) -> Path:
    return scratch / f"step-{step}"


def _teach(lesson: Lesson, student: nn.Module, step: int, folder: Path) -> dict[str, Any]:
    """Teach a student after a cut, in place; return the summary of the training."""
    recipe = lesson.run.recipe
    settings = recipe.prune
    changed = {
        "epochs": settings.final_epochs if step == settings.steps else settings.epochs,
        "learning_rate": settings.learning_rate or recipe.distill.learning_rate,
    }
    config, seed = recipe.distill.model_copy(update=changed), recipe.seed + 10 + step
    return lesson.teach(student, config, folder, f"distilling after cut {step}", seed=seed)


@dataclass(frozen=True)
class _Cutter:
    """Cuts and teaches, step by step; what is done lies in `scratch` and is not done again."""

    run: Run
    target: Target
    lesson: Lesson
    meter: Meter
    costs: Costs
    begin: float
    scratch: Path

    def cut_all(self, student: nn.Module) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Return the pruned student and what was done in each step; raises ModelError for a target out of reach."""
        wanted, number = self.meter.wanted, self.run.recipe.prune.steps
        done: list[dict[str, Any]] = []
        # by a run that was killed
        while (report := read_json(_place(self.scratch, len(done) + 1) / _DONE)) is not None:
            done.append(report)
        if done:
            student = load_student(self.run, _place(self.scratch, len(done)) / _MODEL)
        self.run.team.shared(len(done))
        self.run.team.gathered(None)  # the others have read their texts: nothing disturbs what is timed now
        if self.begin <= wanted:
            self.run.console.print("  the student meets its target as it is: nothing is cut")
            number = 0
        for step in range(len(done) + 1, number + 1):
            report = self._step(student, step, self.begin * (wanted / self.begin) ** (step / number))
            done.append(report)
        self.run.team.shared(None)  # no cut comes
        return student, done

    def _step(self, student: nn.Module, step: int, budget: float) -> dict[str, Any]:
        """Cut and teach `student` in place, save it, and return what was done."""
        run, settings, place = self.run, self.run.recipe.prune, _place(self.scratch, step)
        place.mkdir(parents=True, exist_ok=True)
        plan = read_json(place / _PLAN)
        if plan is None:
            plan = self._plan(student, step, budget)
            write_atomic(place / _PLAN, json.dumps(plan))
        cut(student, _kept(run.team.shared(plan["kept"])))
        told = _told(student, self.meter, plan["cost"])
        run.console.print(f"  cut {step} of {settings.steps}: {told}", soft_wrap=True, markup=False)
        summary = _teach(self.lesson, student, step, place / _TRAINING)
        teacher.save_model(student, place / _MODEL)
        report = {
            "cost": plan["cost"],
            "lost": plan["lost"],
            "shape": told,
            "validation_score": summary["validation_score"],
            "epochs": summary["epochs"],
            "history": summary["history"],
        }
        write_atomic(place / _DONE, json.dumps(report))
        shutil.rmtree(place / _TRAINING, ignore_errors=True)
        shutil.rmtree(_place(self.scratch, step - 1) / _MODEL, ignore_errors=True)
        return report

    def _plan(self, student: nn.Module, step: int, budget: float) -> dict[str, Any]:
        importance = self._importance(student, step)
        tries = _TRIES if step == self.run.recipe.prune.steps else 2
        found, cost = self._fitting(student, importance, budget, tries)
        return {"kept": asdict(found.kept), "cost": cost, "lost": found.lost}

    def _fitting(self, student: nn.Module, importance: Importance, budget: float, tries: int) -> tuple[Found, float]:
        """Return the cut whose measured cost is nearest to `budget`, and that cost.

        The search knows costs from its table. What it must be asked for is found between the smallest student and this
        one, whose costs are measured, by interpolation on logarithms; each cut that is measured narrows the bounds.
        """
        settings = self.run.recipe.prune
        options: dict[str, Any] = {
            "block": settings.block,
            "matrix": MIN_MATRIX_ELEMENTS,
            "skip_layers": settings.layers,
        }
        least, cost = self.meter.least(student)
        low, high = (
            (self.costs.of(*shape_of(least)), cost),
            (self.costs.of(*shape_of(student)), self.meter.cost(student)),
        )
        found = smallest(importance, self.costs, **options)
        best, tried = (abs(math.log(cost / budget)), found, cost), {found.kept}
        for _ in range(_SEARCHES):
            asked = _between(low, high, budget)
            proposed = search(importance, self.costs, asked, **options)
            if proposed is None or len(tried | {proposed.kept}) > tries + 1:
                break
            tried.add(proposed.kept)
            cost = self._measured(student, proposed.kept)
            best = min(best, (abs(math.log(cost / budget)), proposed, cost), key=lambda one: one[0])
            if best[0] <= _NEAR_ENOUGH or high[0] / low[0] < _SAME:
                break
            low, high = (low, (asked, cost)) if cost > budget else ((asked, cost), high)
        return best[1], best[2]

    def _measured(self, student: nn.Module, kept: Kept) -> float:
        smaller = copy.deepcopy(student)
        cut(smaller, kept)
        return self.meter.cost(smaller)

    def _importance(self, student: nn.Module, step: int) -> Importance:
        run, data = self.run, self.lesson.data
        settings = run.recipe.prune
        kind: str = settings.importance
        untaught = run.previous is None and step == 1 and run.reports["distill"].summary["epochs"] == 0
        if kind == "taylor" and untaught:  # the loss of a student that is its teacher has no slope
            kind = "fisher"
        if kind == "fisher" and run.recipe.distill.loss == "kl":
            kind = "fisher-sigmoid" if run.spec.multi_label else "fisher-softmax"
        number = len(data.encoded.encodings)
        drawn = random.Random(run.recipe.seed + step).sample(range(number), min(settings.texts, number))  # noqa: S311 - not for secrets
        student.to(best_device())
        with track(run.console, "measuring importance", len(drawn)) as advance:
            found = measure_importance(
                student,
                data,
                drawn,
                self.lesson.loss,
                kind,
                pad_id=self.lesson.tokenizer.pad_id,
                seed=run.recipe.seed + step,
                advance=advance,
            )
        student.to("cpu")
        return found


def _between(low: tuple[float, float], high: tuple[float, float], budget: float) -> float:
    """Return what to ask for between two points (asked, measured) to measure `budget`, not too near to either."""
    (low_asked, low_cost), (high_asked, high_cost) = ((math.log(a), math.log(c)) for a, c in (low, high))
    share = (math.log(budget) - low_cost) / (high_cost - low_cost) if high_cost > low_cost else 0.5
    return math.exp(low_asked + min(0.9, max(0.1, share)) * (high_asked - low_asked))


def _kept(plan: dict[str, Any]) -> Kept:
    heads, neurons = (tuple(tuple(layer) for layer in plan[part]) for part in ("heads", "neurons"))
    return Kept(tuple(plan["layers"]), heads, neurons, tuple(plan["hidden"]))


def _told(student: nn.Module, meter: Meter, cost: float) -> str:
    anatomy = anatomy_of(student)
    layers = anatomy.layers
    return (
        f"{len(layers)} layers, {anatomy.hidden} wide, heads {'+'.join(str(layer.heads) for layer in layers)}, neurons "
        f"{'+'.join(str(layer.neurons) for layer in layers)}: {meter.in_words(cost)}"
    )
