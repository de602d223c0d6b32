"""Stage: the texts a student learns from, and what the teacher says of them, computed once and kept on disk."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress import label, teacher
from compress.augment import augment, nearest_words
from compress.batches import autocast_dtype, best_device, predict, predict_all
from compress.ensemble import Average
from compress.errors import ModelError
from compress.examples import Example
from compress.models import load_classifier
from compress.progress import track
from compress.rows import Encoded, FloatArray
from compress.stage import CHECKPOINTS, Run, read_json, write_atomic
from service.engine.tokenization import Tokenizer

AUGMENTED, LOGITS = "augmented.jsonl", "logits.npy"
_DONE = "done.json"
_FLUSH_SECONDS = 30.0


@dataclass(frozen=True)
class _Speaker:
    """A teacher that gives logits, and what they weigh."""

    name: str
    weight: float
    tokenizer: Tokenizer
    model: Any


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write `augmented.jsonl` and `logits.npy`: (R, C) float32, a row for each row of the transfer set.

    Where several teach, a row is the average of their logits by weight, over those that say anything of it.
    """
    speakers = _speakers(run)
    first = next(speakers)
    if run.recipe.distill.augment.copies:
        _write_augmented(run, first.model, first.tokenizer, folder / AUGMENTED)
    else:
        (folder / AUGMENTED).write_text("", encoding="utf-8")
    examples = transfer_set(run, folder)
    llm = run.recipe.teacher.llm
    scratch = folder / CHECKPOINTS
    together: dict[str, Any] = {}
    if run.recipe.teacher.others or (llm is not None and llm.weight > 0):
        together = _write_average(run, chain([first], speakers), examples, folder)
    else:
        _write_logits(run, first, examples, scratch)
        (scratch / LOGITS).replace(folder / LOGITS)
    return {
        "texts": len(examples),
        "augmented": len(examples) - len(run.splits.train) - len(run.unlabeled),
        "precision": str(autocast_dtype("auto", best_device()) or torch.float32).removeprefix("torch."),
        **together,
    }


def transfer_set(run: Run, folder: Path) -> list[Example]:
    """Return what the student learns from: training rows, unlabeled rows, augmented rows (from `folder`)."""
    augmented = []
    with (folder / AUGMENTED).open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            words = tuple(row["words"]) if row["words"] else None
            augmented.append(Example(row["text"], None, "augmented", text_pair=row["text_pair"], words=words))
    return [*run.splits.train, *run.unlabeled, *augmented]


def _speakers(run: Run) -> Iterator[_Speaker]:
    """Yield the teachers, the first one first, each loaded when it is its turn."""
    config = run.recipe.teacher
    named = [(teacher.FIRST, config.weight)]
    named += [(teacher.other(number), other.weight) for number, other in enumerate(config.others)]
    for name, weight in named:
        source = run.folder(name)
        tokenizer = Tokenizer(source / teacher.TOKENIZER, run.recipe.data.max_length)
        path = str(source / teacher.MODEL)
        model = load_classifier(path, run.splits.labels, run.recipe.seed, run.spec, keep_head=True)
        yield _Speaker(name, weight, tokenizer, model)


def _write_average(
    run: Run, speakers: Iterable[_Speaker], examples: list[Example], folder: Path
) -> dict[str, dict[str, float]]:
    """Write the average of all teachers; return what each is worth on validation, and what they are together."""
    splits, spec = run.splits, run.spec
    scores: dict[str, float] = {}

    def score(name: str, rows: FloatArray, encoded: Encoded) -> None:
        counts = spec.count(splits.validation, encoded, spec.decide(rows, None), splits.labels)
        scores[name] = float(spec.measure(counts))

    averages: list[tuple[Encoded, Average]] = []
    for speaker in speakers:
        scratch = folder / CHECKPOINTS / speaker.name
        taught = _write_logits(run, speaker, examples, scratch)
        checked = spec.encode(speaker.tokenizer, splits.validation, splits.labels)
        said = (np.load(scratch / LOGITS, mmap_mode="r"), predict_all(speaker.model, checked, speaker.tokenizer.pad_id))
        if not averages:
            averages = [(encoded, Average(encoded, len(splits.labels))) for encoded in (taught, checked)]
        for (_, average), rows, own in zip(averages, said, (taught, checked), strict=True):
            average.add(rows, speaker.weight, own)
        score(speaker.name, said[1], checked)
    (_, average), (reference, of_validation) = averages
    if len(scores) > 1:
        score("together", of_validation.logits(), reference)
    run.console.print(f"  {spec.metric} on validation: " + ", ".join(f"{n} {v:.4f}" for n, v in scores.items()))
    llm = run.recipe.teacher.llm
    if llm is not None and llm.weight:
        labeled = label.read_logits(run)
        known = np.array(label.answered(labeled), dtype=np.int64)
        average.add_rows(len(splits.train) + known, labeled[known], llm.weight)
    np.save(folder / LOGITS, average.logits())
    return {"validation": scores}


def _write_logits(run: Run, speaker: _Speaker, examples: list[Example], scratch: Path) -> Encoded:
    """Write `logits.npy` of one teacher to `scratch` and return the rows it has."""
    encoded = run.spec.encode(speaker.tokenizer, examples, run.splits.labels)
    device = best_device()
    scratch.mkdir(parents=True, exist_ok=True)
    dtype = autocast_dtype("auto", device)
    model = speaker.model.to(device)
    _cache_logits(run, scratch / LOGITS, encoded, model, speaker.tokenizer.pad_id, dtype, f"{speaker.name}'s logits")
    return encoded


def _write_augmented(run: Run, model: Any, tokenizer: Tokenizer, path: Path) -> None:
    config, train = run.recipe.distill.augment, run.splits.train
    per_word = run.spec.row == "word"
    inputs: list[Any] = [list(e.words or ()) if per_word else e.input for e in train]
    embeddings = model.get_input_embeddings().weight.detach().float().numpy()
    variants = augment(
        inputs,
        config.copies,
        crop=config.crop,
        dropout=config.word_dropout,
        swap=config.span_swap,
        replacement=config.nearest_words,
        neighbors=nearest_words(inputs, embeddings, tokenizer.vocabulary(), config.neighbors),
        seed=run.recipe.seed,
    )
    lines = []
    for variant in variants:
        words = variant if per_word else None
        text, pair = variant if isinstance(variant, tuple) else (" ".join(variant) if per_word else variant, None)
        lines.append(json.dumps({"text": text, "text_pair": pair, "words": words}, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def _cache_logits(
    run: Run, path: Path, encoded: Encoded, model: Any, pad_id: int, dtype: torch.dtype | None, title: str
) -> None:
    """Fill a memory-mapped array with the teacher's rows, longest texts first; a killed run goes on where it was."""
    done_path = path.parent / _DONE
    done = (read_json(done_path) or {}).get("texts", 0) if path.is_file() else 0
    shape = (int(encoded.first[-1]), len(run.splits.labels))
    if done:
        logits = np.lib.format.open_memmap(path, mode="r+")
        run.console.print(f"  {title}: resuming at text {done} of {len(encoded.encodings)}")
    else:
        done_path.unlink(missing_ok=True)  # it speaks of an array that is gone
        logits = _reserved(path, shape)
    saved_at = time.monotonic()
    with track(run.console, title, len(encoded.encodings), done) as advance:
        for indices, rows in predict(model, encoded, pad_id, dtype=dtype, done=done):
            logits[encoded.rows_of(indices)] = rows
            done += len(indices)
            advance(len(indices), "")
            if time.monotonic() - saved_at >= _FLUSH_SECONDS:
                logits.flush()
                write_atomic(done_path, json.dumps({"texts": done}))
                saved_at = time.monotonic()
    logits.flush()
    write_atomic(done_path, json.dumps({"texts": done}))
    if not np.isfinite(logits).all():
        raise ModelError("the teacher gives logits that are not finite; expected a teacher that was trained well")


def _reserved(path: Path, shape: tuple[int, int]) -> Any:
    """Return a new memory-mapped array whose place on the disk is taken: a page for which none is left is a SIGBUS."""
    logits = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    try:
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        path.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error
    return logits
