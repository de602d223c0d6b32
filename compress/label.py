"""Stage: what a language model behind an endpoint says of the unlabeled texts, each answer kept on disk."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import DataError, LlmError, RecipeError
from compress.examples import Example
from compress.llm_answers import NOTHING, default_prompt, filled, plain, to_logits
from compress.recipe_llm import Llm
from compress.rows import FloatArray, one_row_each
from compress.stage import Run

if TYPE_CHECKING:
    from compress.llm_requests import Tally

LOGITS = "logits.npy"
CACHE = "llm-answers.jsonl"
_DROPPED = ("refused", "unparsable", "rejected", "failed")


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write `logits.npy`: (N, C) float32, a row for each unlabeled text that the recipe uses, NaN without an answer."""
    from compress.llm_labeler import ask_all  # needs httpx, which nothing else of a run does

    config, spec, labels = run.recipe.teacher.llm, run.spec, run.splits.labels
    if config is None:
        raise RecipeError("teacher.llm is not given")
    if not run.unlabeled:
        raise DataError("teacher.llm labels unlabeled texts, of which there are none; give some with data.unlabeled")
    answers = _answers(config, labels, multi_label=spec.multi_label)
    template = config.prompt or default_prompt(multi_label=spec.multi_label, paired=spec.paired)
    chosen = _drawn(len(run.unlabeled), config.texts, run.recipe.seed)
    checked = _drawn(len(run.splits.validation), config.validation_texts, run.recipe.seed)
    checks = [run.splits.validation[index] for index in checked]
    asked = [*checks, *(run.unlabeled[index] for index in chosen)]
    prompts = [filled(template, example.text, example.text_pair, answers) for example in asked]

    cache = run.folder("label").parent / CACHE if config.cache is None else run.recipe_folder / config.cache
    found, tally, method = ask_all(
        config, run.recipe_folder, cache, prompts, answers, multi_label=spec.multi_label, console=run.console
    )
    rows = np.full((len(prompts), len(labels)), np.nan, dtype=np.float32)
    for index, prompt in enumerate(prompts):
        if prompt in found:
            rows[index] = to_logits(found[prompt], config.smoothing, multi_label=spec.multi_label)
    logits = np.full((len(run.unlabeled), len(labels)), np.nan, dtype=np.float32)
    logits[chosen] = rows[len(checks) :]
    summary = {
        "model": config.model,
        "method": method,
        "texts": len(chosen),
        "labeled": len(answered(logits)),
        **_counted(tally, config),
        "validation": _validated(run, checks, rows[: len(checks)]),
    }
    if not summary["labeled"]:
        told = ", ".join(f"{count} {kind}" for kind, count in tally.texts.items())
        last = f"; the last problem: {tally.problem}" if tally.problem else ""
        raise LlmError(
            f"{config.endpoint}: none of the texts got a label ({told}){last}; look at teacher.llm.prompt, answers and "
            "max_tokens"
        )
    np.save(folder / LOGITS, logits)
    _tell(run, summary, tally)
    return summary


def read_logits(run: Run) -> FloatArray:
    """Return what `run` wrote: (N, C) float32 for the rows of `run.unlabeled`, NaN without an answer."""
    logits: FloatArray = np.load(run.folder("label") / LOGITS)
    return logits


def answered(logits: FloatArray) -> list[int]:
    """Return the indices of the texts that got a label."""
    return [int(index) for index in np.flatnonzero(np.isfinite(logits).all(axis=1))]


def _answers(config: Llm, labels: Sequence[str], *, multi_label: bool) -> list[str]:
    """Return what the model is to answer for each label; raises RecipeError where answers cannot be told apart."""
    unknown = sorted(set(config.answers) - set(labels))
    if unknown:
        raise RecipeError(f"teacher.llm.answers: no label {unknown[0]!r}; expected some of {', '.join(labels)}")
    answers = [config.answers.get(label, label) for label in labels]
    read: dict[str, str] = {NOTHING: NOTHING} if multi_label else {}
    for label, answer in zip(labels, answers, strict=True):
        if not plain(answer) or plain(answer) in read:
            other = read.get(plain(answer), "")
            raise RecipeError(
                f"teacher.llm.answers: {answer!r}, for the label {label!r}, reads like {other!r} without case and the "
                "marks around it; name other words for it there"
            )
        read[plain(answer)] = answer
    return answers


def _drawn(number: int, most: int | None, seed: int) -> list[int]:
    """Return `most` of `number` indices, rising."""
    if most is None or most >= number:
        return list(range(number))
    return sorted(random.Random(seed).sample(range(number), most))  # noqa: S311 - not for secrets


def _counted(tally: "Tally", config: Llm) -> dict[str, Any]:
    cost = tally.cost(config)
    return {
        **{kind: tally.texts[kind] for kind in _DROPPED},
        "responses": tally.responses,
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "cost": cost,
        "cost_per_million_texts": None if cost is None else 1e6 * cost / tally.texts.total(),
    }


def _validated(run: Run, checks: Sequence[Example], rows: FloatArray) -> dict[str, Any] | None:
    """Return how often the model is right on labeled texts, by the task's metric; None where none was answered."""
    known = answered(rows)
    if not known:
        return None
    examples = [checks[index] for index in known]
    encoded = one_row_each([], run.spec.targets(examples, run.splits.labels))
    counts = run.spec.count(examples, encoded, run.spec.decide(rows[known], None), run.splits.labels)
    return {"texts": len(checks), "labeled": len(known), run.spec.metric: float(run.spec.measure(counts))}


def _tell(run: Run, summary: dict[str, Any], tally: "Tally") -> None:
    dropped = ", ".join(f"{summary[kind]} {kind}" for kind in _DROPPED if summary[kind])
    cost = "" if summary["cost"] is None else f", cost {summary['cost']:.4f}"
    lines = [
        f"{summary['labeled']} of {summary['texts']} unlabeled texts labeled; dropped: {dropped or 'none'}",
        f"{summary['responses']} responses ({tally.kept_before} kept from before), {summary['prompt_tokens']:,} "
        f"prompt and {summary['completion_tokens']:,} completion tokens{cost}",
    ]
    right, metric = summary["validation"], run.spec.metric
    if right is not None:
        lines.append(f"{right['labeled']} of {right['texts']} validation texts labeled: {metric} {right[metric]:.4f}")
    for line in lines:
        run.console.print(f"  {line}", markup=False, soft_wrap=True)
