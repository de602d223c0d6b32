"""Stage: the texts a student learns from, and what the teacher says of them, computed once and kept on disk."""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress import teacher
from compress.augment import augment, nearest_words
from compress.batches import autocast_dtype, best_device, predict
from compress.errors import ModelError
from compress.examples import Example
from compress.models import load_classifier
from compress.progress import track
from compress.rows import Encoded
from compress.stage import CHECKPOINTS, Run, read_json, write_atomic
from service.engine.tokenization import Tokenizer

AUGMENTED, LOGITS = "augmented.jsonl", "logits.npy"
_DONE = "done.json"
_FLUSH_SECONDS = 30.0


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write `augmented.jsonl` and `logits.npy`: (R, C) float32, a row for each row of the transfer set."""
    recipe, spec = run.recipe, run.spec
    source = run.folder("teacher")
    tokenizer = Tokenizer(source / teacher.TOKENIZER, recipe.data.max_length)
    model = load_classifier(str(source / teacher.MODEL), run.splits.labels, recipe.seed, spec, keep_head=True)
    if recipe.distill.augment.copies:
        _write_augmented(run, model, tokenizer, folder / AUGMENTED)
    else:
        (folder / AUGMENTED).write_text("", encoding="utf-8")
    examples = transfer_set(run, folder)
    encoded = spec.encode(tokenizer, examples, run.splits.labels)
    device = best_device()
    dtype = autocast_dtype("auto", device)
    scratch = folder / CHECKPOINTS
    scratch.mkdir(exist_ok=True)
    _cache_logits(run, scratch / LOGITS, encoded, model.to(device), tokenizer.pad_id, dtype)
    (scratch / LOGITS).replace(folder / LOGITS)
    return {
        "texts": len(examples),
        "augmented": len(examples) - len(run.splits.train) - len(_unlabeled(run)),
        "precision": str(dtype or torch.float32).removeprefix("torch."),
    }


def transfer_set(run: Run, folder: Path) -> list[Example]:
    """Return what the student learns from: training rows, unlabeled rows, augmented rows (from `folder`)."""
    augmented = []
    with (folder / AUGMENTED).open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            words = tuple(row["words"]) if row["words"] else None
            augmented.append(Example(row["text"], None, "augmented", text_pair=row["text_pair"], words=words))
    return [*run.splits.train, *_unlabeled(run), *augmented]


def _unlabeled(run: Run) -> list[Example]:
    share, rows = run.recipe.distill.unlabeled_share, run.splits.unlabeled
    if share == 1:
        return rows
    chosen = random.Random(run.recipe.seed).sample(range(len(rows)), round(share * len(rows)))  # noqa: S311 - not for secrets
    return [rows[index] for index in sorted(chosen)]


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


def _cache_logits(run: Run, path: Path, encoded: Encoded, model: Any, pad_id: int, dtype: torch.dtype | None) -> None:
    """Fill a memory-mapped array with the teacher's rows, longest texts first; a killed run goes on where it was."""
    done_path = path.parent / _DONE
    done = (read_json(done_path) or {}).get("texts", 0) if path.is_file() else 0
    shape = (int(encoded.first[-1]), len(run.splits.labels))
    if done:
        logits = np.lib.format.open_memmap(path, mode="r+")
        run.console.print(f"  teacher's logits: resuming at text {done} of {len(encoded.encodings)}")
    else:
        done_path.unlink(missing_ok=True)  # it speaks of an array that is gone
        logits = _reserved(path, shape)
    saved_at = time.monotonic()
    with track(run.console, "teacher's logits", len(encoded.encodings), done) as advance:
        for indices, rows in predict(model, encoded, pad_id, dtype=dtype, done=done):
            logits[encoded.rows_of(indices)] = rows
            done += len(indices)
            advance(len(indices), "")
            if time.monotonic() - saved_at >= _FLUSH_SECONDS:
                logits.flush()
                write_atomic(done_path, json.dumps({"texts": done}))
                saved_at = time.monotonic()
    logits.flush()
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
