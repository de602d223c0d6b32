"""Stage: take the tokens that the data hardly use out of the student, and perhaps factorize what is left."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compress import distill, targets, teacher
from compress.batches import predict_all
from compress.distill import Lesson
from compress.errors import ModelError, RecipeError
from compress.examples import Example
from compress.factorize import factorize
from compress.recipe_target import Vocabulary
from compress.stage import CHECKPOINTS, Run
from compress.student import load_student
from compress.tasks import METRICS
from compress.tokens import kept_ids, rebuilt
from service.engine.tokenization import Tokenizer

_SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write `model/` and `tokenizer.json` with fewer tokens."""
    recipe, splits = run.recipe, run.splits
    config, source, length = _config(run), run.before("vocabulary"), recipe.data.max_length
    student = load_student(run, source / distill.MODEL)
    old = Tokenizer(source / distill.TOKENIZER, length)
    before = _score(run, student, old, splits.test)
    seen = count_tokens(old, targets.transfer_set(run, run.folder("targets")))
    ids = prune_tokenizer(source / distill.TOKENIZER, seen, config.min_count, folder / distill.TOKENIZER)
    cut_embeddings(student, run.team.shared(ids))
    new = Tokenizer(folder / distill.TOKENIZER, length)
    summary: dict[str, Any] = {
        "tokens": len(ids),
        "tokens_before": len(old.vocabulary()),
        "changed_encodings": {
            name: changed_share(old, new, getattr(splits, name)) for name in ("train", "validation", "test")
        },
    }
    if config.embedding_rank is not None:
        summary["variance_kept"] = factorize(student, config.embedding_rank)
    # reported, and nothing is chosen by it
    summary["test_score"] = {"before": before, "after": _score(run, student, new, splits.test)}
    _tell(run, summary)
    lesson = Lesson.of(run, new, run.team)
    if config.epochs:
        summary |= _teach(lesson, student, folder)
        summary["test_score"]["taught"] = _score(run, student, new, splits.test)
    if run.student_stages[-1] == "vocabulary":
        summary |= lesson.teach_rounding(student, folder)
    teacher.save_model(student, folder / distill.MODEL)
    return {"parameters": teacher.count_parameters(student), **summary}


def follow(run: Run, folder: Path) -> None:
    """Teach with the first process, which does all else; `folder` is this process's own."""
    config = _config(run)
    student = load_student(run, run.before("vocabulary") / distill.MODEL)
    cut_embeddings(student, run.team.shared([]))
    if config.embedding_rank is not None:
        factorize(student, config.embedding_rank)
    new = Tokenizer(run.folder("vocabulary") / distill.TOKENIZER, run.recipe.data.max_length)
    lesson = Lesson.of(run, new, run.team)
    if config.epochs:
        _teach(lesson, student, folder)
    if run.student_stages[-1] == "vocabulary":
        lesson.teach_rounding(student, folder)


def _config(run: Run) -> Vocabulary:
    if run.recipe.vocabulary is None:
        raise RecipeError("vocabulary: not given")
    return run.recipe.vocabulary


def _teach(lesson: Lesson, student: nn.Module, folder: Path) -> dict[str, Any]:
    """Teach a student its fewer tokens, in place; return the summary of the training."""
    recipe = lesson.run.recipe
    changed = recipe.distill.model_copy(update={"epochs": _config(lesson.run).epochs})
    place, seed = folder / CHECKPOINTS / "float", recipe.seed + 3
    return lesson.teach(student, changed, place, "distilling with fewer tokens", seed=seed)


def count_tokens(tokenizer: Tokenizer, examples: Sequence[Example]) -> Counter[int]:
    """Return how often each token stands in texts, cut to the model's length."""
    seen: Counter[int] = Counter()
    for encoding in tokenizer.encode([example.input for example in examples]):
        seen.update(encoding.ids)
    return seen


def prune_tokenizer(path: Path, seen: Counter[int], min_count: int, target: Path) -> list[int]:
    """Write to `target` the tokenizer of `path` with the tokens seen `min_count` times and those it needs besides.

    Returns the ids that stay, rising. Raises ModelError for kinds of tokenizers that cannot be rebuilt.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    ids = kept_ids(document, {index for index, count in seen.items() if count >= min_count})
    target.write_text(json.dumps(rebuilt(document, ids), ensure_ascii=False), encoding="utf-8")
    return ids


def cut_embeddings(model: nn.Module, ids: Sequence[int]) -> None:
    """Leave the rows of these ids in a model's word embeddings, in place; raises ModelError.

    Models that count positions from their padding token on need it to keep its id.
    """
    source: Any = model
    words, config = source.get_input_embeddings(), source.config
    if not isinstance(words, nn.Embedding):
        raise ModelError("the word embeddings are factorized already; prune the vocabulary of a model that is not")
    new_id = {old: new for new, old in enumerate(ids)}
    padding = words.padding_idx
    if (
        padding is not None
        and new_id.get(padding) != padding
        and config.model_type not in ("bert", "electra", "distilbert")
    ):
        raise ModelError(
            f"a {config.model_type} model counts positions from its padding token {padding}, which would get the id "
            f"{new_id.get(padding)}; leave out `vocabulary`"
        )
    fewer = nn.Embedding(len(ids), words.embedding_dim, padding_idx=None if padding is None else new_id.get(padding))
    with torch.no_grad():
        fewer.weight.copy_(words.weight[list(ids)])
    source.set_input_embeddings(fewer)
    changed = {
        name: new_id.get(index) for name in _SPECIAL_IDS if isinstance(index := getattr(config, name, None), int)
    }
    config.update({"vocab_size": len(ids), **changed})


def changed_share(old: Tokenizer, new: Tokenizer, examples: Sequence[Example]) -> float:
    """Return the share of texts that `new` does not cut into the same pieces as `old`."""
    inputs = [example.input for example in examples]
    pairs = zip(old.encode(inputs), new.encode(inputs), strict=True)
    same = [[old.token(i) for i in one.ids] == [new.token(i) for i in other.ids] for one, other in pairs]
    return 1 - float(np.mean(same))


def _score(run: Run, model: nn.Module, tokenizer: Tokenizer, examples: Sequence[Example]) -> float:
    spec, labels = run.spec, run.splits.labels
    encoded = spec.encode(tokenizer, examples, labels)
    decisions = spec.decide(predict_all(model, encoded, tokenizer.pad_id), None)
    return METRICS[spec.metric](spec.count(examples, encoded, decisions, labels))


def _tell(run: Run, summary: dict[str, Any]) -> None:
    shares, test = summary["changed_encodings"], summary["test_score"]
    run.console.print(
        f"  {summary['tokens']} of {summary['tokens_before']} tokens stay; test texts cut otherwise: "
        f"{shares['test']:.1%}; {run.spec.metric} on test {test['before']:.4f} -> {test['after']:.4f}, untaught",
        soft_wrap=True,
        markup=False,
    )
