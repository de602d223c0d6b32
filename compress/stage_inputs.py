"""What each stage of the pipeline reads: it runs anew when that has changed, and only then."""

from typing import Any

from pydantic import BaseModel

from compress import evidence, prune, teacher
from compress.batches import autocast_dtype, best_device
from compress.models import model_identity
from compress.recipe_training import OneTeacher
from compress.stage import Run


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


def read_by_label(run: Run) -> Any:
    """Return what decides the outcome of `label`: the texts that a language model labels, and how it is asked."""
    config = run.recipe.teacher.llm
    return _common(run) | {
        "recipe": None if config is None else config.decides(),
        "unlabeled_share": run.recipe.distill.unlabeled_share,
    }


def read_by_teacher(run: Run, config: OneTeacher) -> Any:
    """Return what decides the outcome of `teacher`: a teacher, its data and how it is fine-tuned."""
    fine_tune = None if config.fine_tune is None else _outcome(config.fine_tune)
    labels = run.files("label") if config.fine_tune is not None and run.recipe.teacher.llm is not None else {}
    recipe = {"model": config.model, "fine_tune": fine_tune}
    return _common(run) | {"recipe": recipe, "model": _identity(run, config.model), "labels": labels}


def read_by_targets(run: Run) -> Any:
    """Return what decides the outcome of `targets`: who teaches, and which texts."""
    recipe = run.recipe
    others = [teacher.other(number) for number in range(len(recipe.teacher.others))]
    names = [*(["label"] if recipe.teacher.llm is not None else []), teacher.FIRST, *others]
    voices = [recipe.teacher.weight, *(other.weight for other in recipe.teacher.others)]
    return _common(run) | {
        "teachers": {name: run.files(name) for name in names},
        "weights": [*voices, recipe.teacher.llm and recipe.teacher.llm.weight],
        "recipe": [recipe.distill.augment, recipe.distill.unlabeled_share],
    }


def read_by_distill(run: Run) -> Any:
    """Return what decides the outcome of `distill`: the student as it starts, and how it is taught."""
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


def read_by_vocabulary(run: Run) -> Any:
    """Return what decides the outcome of `vocabulary`: the student, and which tokens it is to keep."""
    recipe = run.recipe
    return _common(run) | {
        "recipe": [recipe.vocabulary, _outcome(recipe.distill), _rounding(run), run.student_stages[-1]],
        "test": run.splits.fingerprints()["test"],
        "inputs": [_student(run, "vocabulary"), run.files("targets")],
    }


def read_by_prune(run: Run) -> Any:
    """Return what decides the outcome of `prune`: the student, its target, and what costs were measured before."""
    recipe = run.recipe
    speed = [recipe.quantize.candidates[0], recipe.evaluate.latency_texts, recipe.evaluate.latency_rounds]
    return _common(run) | {
        "recipe": [recipe.target, recipe.prune, _outcome(recipe.distill), _rounding(run), recipe.export, speed],
        "measurements": prune.recorded(run),
        "inputs": [_student(run, "prune"), run.files("teacher"), run.files("targets")],
    }


def read_by_export(run: Run) -> Any:
    """Return what decides the outcome of `export`: the models."""
    return [run.recipe.export, run.files("teacher"), _student(run)]


def read_by_calibrate(run: Run) -> Any:
    """Return what decides the outcome of `calibrate`: the models."""
    return _common(run) | {"recipe": run.recipe.calibrate, "models": run.files("export")}


def read_by_quantize(run: Run) -> Any:
    """Return what decides the outcome of `quantize`: the models, and what they must keep."""
    recipe = run.recipe
    return _common(run) | {
        "recipe": [recipe.quantize, recipe.gate, recipe.evaluate],
        "models": [run.files("export"), run.files("calibrate")],
    }


def read_by_baselines(run: Run) -> Any:
    """Return what decides the outcome of `baselines`: what an undistilled student would read, and the test split."""
    pruned = run.recipe.target is not None
    return read_by_distill(run) | {"test": run.splits.fingerprints()["test"], "pruned": pruned}


def read_by_evaluate(run: Run) -> Any:
    """Return what decides the outcome of `evaluate`: the models and the test split."""
    models = [
        run.files(name) for name in ("teacher", "export", "calibrate", "quantize", "baselines") if name in run.reports
    ]
    return _common(run) | {
        "test": run.splits.fingerprints()["test"],
        "slices": [run.recipe.data.columns.slice, [example.slice for example in run.splits.test]],
        "recipe": [run.recipe.evaluate, run.recipe.target],
        "models": models,
        "writes": evidence.EVIDENCE,  # a run that was finished before there was such a file is measured again
    }


def read_by_package(run: Run) -> Any:
    """Return what decides the outcome of `package`: everything."""
    everything = {name: run.files(name) for name in run.reports if name != "package"}
    return {
        "recipe": run.recipe.model_dump(mode="json", exclude={"tune"}),
        "data": run.splits.fingerprints(),
        "all": everything,
        "force": run.force,
    }


def _outcome(part: BaseModel) -> Any:
    """Return the keys of a part of the recipe that decide what comes out; how often it is saved does not."""
    return part.model_dump(mode="json", exclude={"checkpoint_seconds"})


def _identity(run: Run, reference: str) -> Any:
    return model_identity(reference, run.recipe_folder)
