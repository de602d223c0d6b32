"""Stage: the cheap models a student must beat clearly to be worth its latency."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from bundle.manifest import BaselineMetrics
from compress import distill, teacher
from compress.baselines import Predictions, static_predict, tfidf_predict
from compress.batches import TrainingSet, predict_all
from compress.counts import Counts
from compress.errors import EvaluationError
from compress.measure import Answers
from compress.metrics import interval, paired_drop
from compress.models import load_classifier
from compress.rows import one_row_each
from compress.stage import CHECKPOINTS, Run, write_atomic
from compress.student import untaught_student
from compress.tasks import METRICS, TokenClassification
from compress.train import train
from service.engine.tokenization import Tokenizer

TFIDF = "TF-IDF + logistic regression"
STATIC = "static embeddings of the teacher + logistic regression"
UNDISTILLED = "the student without distillation"
_SUMMARY = "baselines.json"


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write `baselines.json`, and for each baseline what it gets right of the test split."""
    splits, task, seed = run.splits, run.recipe.task, run.recipe.seed
    arguments = (task, splits.train, splits.test, splits.labels)
    summary: dict[str, Any] = {}

    def keep(name: str, counts: Counts, size_bytes: int, milliseconds: float | None, **more: Any) -> None:
        number = len(summary)
        np.savez(folder / f"{number}.npz", **{key: value for key, value in vars(counts).items() if key != "names"})
        score = METRICS[run.spec.metric](counts)
        facts = {"size_bytes": size_bytes, "milliseconds_per_text": milliseconds, "names": counts.names}
        summary[name] = facts | more
        run.console.print(f"  {name}: {METRICS[run.spec.metric].name} {score:.4f}", soft_wrap=True)

    found = tfidf_predict(*arguments, seed)
    keep(TFIDF, _counts(run, found), found.size_bytes, found.latency_ms)
    source = run.folder("teacher")
    model = load_classifier(str(source / teacher.MODEL), splits.labels, seed, run.spec, keep_head=True)
    found = static_predict(*arguments, model, source / teacher.TOKENIZER, seed)
    keep(STATIC, _counts(run, found), found.size_bytes, found.latency_ms)
    if run.recipe.target is None:  # else the student has no shape of its own before it is taught
        counts, size_bytes, history = _undistilled(run, folder)
        keep(UNDISTILLED, counts, size_bytes, None, history=history)
    write_atomic(folder / _SUMMARY, json.dumps(summary, indent=2))
    return summary


def follow(run: Run, folder: Path) -> None:
    """Train with the first process, which does all else; `folder` is this process's own."""
    if run.recipe.target is None:
        _undistilled(run, folder)


def judge(run: Run, folder: Path, student: Answers) -> list[BaselineMetrics]:
    """Return each baseline's score, and how far the student is above it."""
    main, config = METRICS[run.spec.metric], run.recipe.evaluate
    result = []
    if student.counts is None:
        raise EvaluationError("the test split has rows without a label; expected a label for each")
    for number, (name, facts) in enumerate(json.loads((folder / _SUMMARY).read_text(encoding="utf-8")).items()):
        with np.load(folder / f"{number}.npz") as arrays:
            counts = Counts(names=tuple(facts["names"]), **arrays)
        result.append(
            BaselineMetrics(
                name=name,
                score=interval(main, counts, config.bootstrap_samples, run.recipe.seed),
                # a drop from the student to the baseline is the student's gain
                student_gain=paired_drop(main, student.counts, counts, config.bootstrap_samples, run.recipe.seed),
                size_bytes=facts["size_bytes"],
                milliseconds_per_text=facts["milliseconds_per_text"],
            )
        )
    return result


def _counts(run: Run, found: Predictions) -> Counts:
    spec, splits = run.spec, run.splits
    if isinstance(spec, TokenClassification):
        return spec.count_tag_lists(splits.test, list(found.decisions))
    targets = spec.targets(splits.test, splits.labels)
    return spec.count(splits.test, one_row_each([], targets), np.asarray(found.decisions), splits.labels)


def _undistilled(run: Run, folder: Path) -> tuple[Counts, int, list[float]]:
    recipe, splits, spec = run.recipe, run.splits, run.spec
    tokenizer = Tokenizer(run.folder("distill") / distill.TOKENIZER, recipe.data.max_length)
    model = untaught_student(run)
    trained = train(
        model,
        TrainingSet(spec.encode(tokenizer, splits.train, splits.labels)),
        teacher.hard_loss(spec),
        teacher.validation_score(spec, tokenizer, splits.validation, splits.labels),
        recipe.distill,
        pad_id=tokenizer.pad_id,
        seed=recipe.seed + 1,
        folder=folder / CHECKPOINTS,
        console=run.console,
        title="training without distillation",
        metric=spec.metric,
        team=run.team,
        events_folder=run.events_folder,
    )
    encoded = spec.encode(tokenizer, splits.test, splits.labels)
    decisions = spec.decide(predict_all(model, encoded, tokenizer.pad_id), None)
    counts = spec.count(splits.test, encoded, decisions, splits.labels)
    return counts, 4 * teacher.count_parameters(model), trained["history"]
