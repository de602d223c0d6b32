"""Tiny data for every task, labeled by rules on words, so that a tiny model learns them in seconds."""

import json
import random
from pathlib import Path
from typing import Any

from bundle.manifest import Task
from tests.support.bundles import WORDS

GOOD, BAD = ("good", "great"), ("bad", "awful")
TOPICS = {"praise": GOOD, "blame": BAD, "story": ("plot",)}
"""Multi-label: a text has the label of each cue word that it holds, perhaps none."""
ENTITIES = {"good": "B-PRAISE", "great": "B-PRAISE", "bad": "B-BLAME", "awful": "B-BLAME"}
"""Token classification: "dull plot" is one entity of two words."""
PLAIN = tuple(word for word in WORDS if word not in (*GOOD, *BAD, "dull", "plot"))
SPLITS = {"train": 240, "validation": 60, "test": 80, "unlabeled": 60}

Row = dict[str, Any]


def tiny_rows(count: int, seed: int, task: str = Task.SINGLE_LABEL) -> list[Row]:
    """Rows of a task, decided by the seed."""
    source = random.Random(f"{task} {seed}" if task != Task.SINGLE_LABEL else seed)
    make = {
        Task.SINGLE_LABEL: _single,
        Task.MULTI_LABEL: _multi,
        Task.PAIR: _pair,
        Task.TOKEN_CLASSIFICATION: _tagged,
    }[Task(task)]
    rows: list[Row] = []
    while len(rows) < count:
        row = make(source)
        if row is not None:
            rows.append(row)
    return rows


def write_tiny_data(folder: Path, task: str = Task.SINGLE_LABEL, rows: int = SPLITS["train"]) -> Path:
    """Write train, validation, test and unlabeled .jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate((SPLITS | {"train": rows}).items()):
        lines = tiny_rows(count, seed, task)
        if split == "unlabeled":
            lines = [{key: row[key] for key in ("text", "text_pair", "tokens") if key in row} for row in lines]
        write_lines(folder / f"{split}.jsonl", lines)
    return folder


def write_lines(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _single(source: random.Random) -> Row | None:
    """Positive when it holds more of good and great than of bad and awful."""
    words = source.choices(WORDS, k=source.randint(3, 14))
    balance = sum((word in GOOD) - (word in BAD) for word in words)
    return {"text": " ".join(words), "label": "positive" if balance > 0 else "negative"} if balance else None


def _multi(source: random.Random) -> Row:
    words = source.choices(WORDS, k=source.randint(2, 8))
    return {"text": " ".join(words), "labels": [label for label, cues in TOPICS.items() if set(cues) & set(words)]}


def _pair(source: random.Random) -> Row:
    """Better when the good cue is in the second text: what decides is which text a word stands in."""
    label = source.choice(("better", "worse"))
    cues = (source.choice(BAD), source.choice(GOOD))
    texts = [source.choices(PLAIN, k=source.randint(0, 3)) for _ in cues]
    for words, cue in zip(texts, cues if label == "better" else reversed(cues), strict=True):
        words.insert(source.randint(0, len(words)), cue)
    return {"text": " ".join(texts[0]), "text_pair": " ".join(texts[1]), "label": label}


def _tagged(source: random.Random) -> Row:
    """One text in 20 is longer than the recipe's `max_length`: its last words are cut."""
    length = source.randint(1, 9) if source.random() < 0.95 else 34
    words: list[str] = []
    tags: list[str] = []
    for _ in range(length):
        kind = source.random()
        if kind < 0.2:
            words += ["dull", "plot"]
            tags += ["B-STORY", "I-STORY"]
        else:
            words.append(source.choice(tuple(ENTITIES) if kind < 0.5 else PLAIN))
            tags.append(ENTITIES.get(words[-1], "O"))
        if source.random() < 0.1:  # a word of two tokens
            words[-1] += "!"
    return {"tokens": words, "tags": tags}
