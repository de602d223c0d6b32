"""Search over keys of a recipe for the student that is best on the validation split; a killed search goes on."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from compress import distill, prune, teacher
from compress.errors import FAULTS, ModelError, RecipeError, TrainingError
from compress.pipeline import alone, quiet_libraries, run_until
from compress.recipe import Range, Recipe, Tune
from compress.recipe_file import load_recipe
from compress.stage import Run, fingerprint, write_atomic
from compress.student import load_student
from service.engine.tokenization import Tokenizer

if TYPE_CHECKING:
    import optuna

REPORT = "tune.json"
_JOURNAL = "tune.journal"
_LATER = ("prune", "vocabulary")
"""Stages after distill, the last one first, whose keys can be searched."""
_SEARCHED = ("teacher.", "student.", "distill.", *(f"{stage}." for stage in _LATER))


def tune(recipe_path: Path, overrides: list[str], out: Path | None, console: Console, trials: int) -> dict[str, Any]:
    """Run trials until `trials` of them are over, and return the best one's keys; `OUT/tune.json` has all.

    A trial is a run up to the stage distill, or to the last one whose keys are searched, in `OUT`, so whatever its keys
    do not change is taken over from the trial before. Values come from a tree-structured Parzen estimator (Bergstra et
    al. 2011), seeded by the recipe and the number of trials that are over: an interrupted search asks for the same
    values again. Raises CompressError.
    """
    recipe = load_recipe(recipe_path, overrides)
    if recipe.tune is None:
        raise RecipeError(f"{recipe_path}: no tune.space; expected keys to search over, such as distill.learning_rate")
    _check(recipe_path, overrides, recipe.tune)
    if recipe.target is not None:
        prune.recorded(Run(recipe, recipe_path.resolve().parent, Path(), console, {}))  # refused now, not after a trial
    out = out or Path("runs") / recipe.name
    with alone(out):
        import optuna

        quiet_libraries()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        distributions = {key: _distribution(values) for key, values in recipe.tune.space.items()}
        study = _study(recipe_path, recipe, out, console)
        while (over := _over(study)) < trials:
            study.sampler = optuna.samplers.TPESampler(seed=recipe.seed + over)
            trial = study.ask(distributions)
            chosen = _overrides(trial.params)
            console.print(f"\n[bold]trial {over + 1} of {trials}[/bold]: {' '.join(chosen)}", soft_wrap=True)
            score = _score(recipe_path, [*overrides, *chosen], out, console, _last_stage(recipe.tune))
            state = optuna.trial.TrialState.PRUNED if score is None else optuna.trial.TrialState.COMPLETE
            study.tell(trial, score, state=state)
            _write_report(study, out)
        return _best(study)


def _last_stage(config: Tune) -> str:
    """Return the stage whose student is judged."""
    return next((stage for stage in _LATER if any(key.startswith(f"{stage}.") for key in config.space)), "distill")


def _score(recipe_path: Path, overrides: list[str], out: Path, console: Console, last: str) -> float | None:
    """Return the student's validation score, or None where these values cannot be trained with."""
    try:
        run = Run(load_recipe(recipe_path, overrides), recipe_path.resolve().parent, out, console, {})
        run_until(run, last)
    except (ModelError, RecipeError, TrainingError) as error:
        if isinstance(error, FAULTS):  # which other values would meet, too, and a later run may not
            raise
        console.print(f"  given up: {error}", style="yellow", markup=False, soft_wrap=True)
        return None
    if last != "distill":
        return _measured(run, run.folder(last))
    score = run.reports["distill"].summary.get("validation_score")
    if score is None:
        raise RecipeError(
            "tune: the student is all of its teacher, which is pruned first and taught then, so trials cannot be told "
            "apart; leave target out while you search, give student.layers fewer layers, or search over keys of prune, "
            "too"
        )
    return float(score)


def _measured(run: Run, folder: Path) -> float:
    """Return the validation score of the student that a stage left."""
    tokenizer = Tokenizer(folder / distill.TOKENIZER, run.recipe.data.max_length)
    score = teacher.validation_score(run.spec, tokenizer, run.splits.validation, run.splits.labels)
    return score(load_student(run, folder / distill.MODEL))


def _study(recipe_path: Path, recipe: Recipe, out: Path, console: Console) -> "optuna.Study":
    """Return the search of this recipe and these data, with the trials of earlier runs of it."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    data = Run(recipe, recipe_path.resolve().parent, out, console, {}).splits.fingerprints()
    name = fingerprint([recipe, data])
    _drop_half_a_line(out / "work" / _JOURNAL)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(out / "work" / _JOURNAL)))
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):  # of a run that was killed
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    if over := _over(study):
        console.print(f"going on after {over} trials")
    return study


def _drop_half_a_line(journal: Path) -> None:
    """Cut off what a full disk or a kill left of a last line, which Optuna could not read."""
    if journal.is_file():
        content = journal.read_bytes()
        os.truncate(journal, content.rfind(b"\n") + 1)


def _over(study: "optuna.Study") -> int:
    """Return how many trials are over; one that was killed is not, and is done again."""
    from optuna.trial import TrialState

    return len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)))


def _check(recipe_path: Path, overrides: list[str], config: Tune) -> None:
    """Raise RecipeError for keys that are none, and for values that a recipe cannot have."""
    for key, values in config.space.items():
        if not key.startswith(_SEARCHED):
            raise RecipeError(
                f"tune.space: {key} does not decide how good the student is on the validation split; expected keys of "
                "teacher, student, distill, vocabulary or prune"
            )
        for value in (values.low, values.high) if isinstance(values, Range) else values:
            load_recipe(recipe_path, [*overrides, *_overrides({key: value})])


def _distribution(values: Range | tuple[Any, ...]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution([json.dumps(value) for value in values])
    if isinstance(values.low, int) and isinstance(values.high, int):
        return IntDistribution(values.low, values.high, log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _overrides(params: Mapping[str, Any]) -> list[str]:
    """Return values as `--set` takes them; JSON is YAML."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in params.items()]


def _best(study: "optuna.Study") -> dict[str, Any]:
    try:
        best = study.best_trial
    except ValueError as error:
        raise TrainingError("no trial could be trained to its end; look at the ranges of tune.space") from error
    return {"score": best.value, "set": _overrides(best.params)}


def _write_report(study: "optuna.Study", out: Path) -> None:
    from optuna.trial import TrialState

    over = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    rows = [{"score": trial.value, "set": _overrides(trial.params)} for trial in over]
    best = max((row for row in rows if row["score"] is not None), key=lambda row: row["score"], default=None)
    write_atomic(out / REPORT, json.dumps({"best": best, "trials": rows}, indent=2))
