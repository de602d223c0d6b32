"""Texts of a file, or of the sample in here, and how long they are."""

import csv
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.dialects import Text
from loadtest.errors import WorkloadError

MOST_TEXTS = 20_000
"""Of a longer file so many texts are drawn at random, each with the same chance."""

_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".txt": "txt"}

_SENTENCES = (
    "A moving, beautifully acted film.",
    "Two hours I will not get back.",
    "The delivery came a week late and nobody answered my letters.",
    "Please cancel my subscription at the end of the month.",
    "The screen is bright, the battery lasts for two days, and the camera is better than I had expected at this price.",
    "I would not buy it again.",
    "After the last update the application closes whenever I open the settings, which it did not do before.",
    "Shares fell after the bank raised its rates for the third time this year.",
    "What a pleasant surprise!",
    "The room was clean and quiet, but breakfast was the same every morning and the coffee was cold.",
    "Where can I find the invoice for my order of last Tuesday?",
    "The plot is thin, the dialogue worse, and yet I laughed until the end.",
)
_SENTENCES_A_TEXT = (1, 1, 1, 1, 2, 1, 3, 1, 2, 5, 1, 2, 8, 1, 3, 12)
"""Most texts that people send are short, and a few are long."""


@dataclass(frozen=True)
class LengthMix:
    """How long texts are; of a pair both together."""

    texts: int
    characters_p10: int
    characters_p50: int
    characters_p90: int
    characters_max: int
    words_p50: int

    def __str__(self) -> str:
        return (
            f"{self.texts:,} texts of {self.characters_p50:,} characters ({self.words_p50:,} words) in the median; "
            f"10 % up to {self.characters_p10:,}, 90 % up to {self.characters_p90:,}, "
            f"the longest {self.characters_max:,}"
        )


def read_texts(path: Path, column: str, pair_column: str | None, seed: int) -> list[Text]:
    """Return the texts of a .jsonl, .csv or .txt file in random order; pairs where `pair_column` is given.

    Raises WorkloadError, which names the line, and OSError.
    """
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise WorkloadError(f"{path}: found the ending {path.suffix!r}; expected one of {', '.join(_KINDS)}")
    if kind == "txt" and pair_column is not None:
        raise WorkloadError(f"{path}: --pairs needs two columns, and plain text has none; expected .jsonl or .csv")
    draw = random.Random(seed)  # noqa: S311 - not for secrets
    texts: list[Text] = []
    for number, text in enumerate(_rows(path, kind, column, pair_column)):
        # reservoir sampling (Vitter 1985, algorithm R)
        if number < MOST_TEXTS:
            texts.append(text)
        elif (place := draw.randrange(number + 1)) < MOST_TEXTS:
            texts[place] = text
    if not texts:
        raise WorkloadError(f"{path}: found no texts, expected at least one")
    draw.shuffle(texts)
    return texts


def sample_texts(pairs: bool) -> list[Text]:
    """Return texts for those who have none at hand; they are no measure of anybody's traffic."""
    parts = iter(range(sum(_SENTENCES_A_TEXT)))
    texts = [
        " ".join(_SENTENCES[next(parts) * 5 % len(_SENTENCES)] for _ in range(count)) for count in _SENTENCES_A_TEXT
    ]
    return list(zip(texts, texts[1:] + texts[:1], strict=True)) if pairs else list(texts)


def batches(texts: Sequence[Text], size: int) -> list[list[Text]]:
    """Return batches of `size` texts, in order; the last is filled up from the start."""
    count = -(-len(texts) // size)
    return [[texts[(number * size + place) % len(texts)] for place in range(size)] for number in range(count)]


def length_mix(texts: Sequence[Text]) -> LengthMix:
    """Return how long the texts are."""
    joined = [one if isinstance(one, str) else " ".join(one) for one in texts]
    characters = sorted(map(len, joined))
    words = sorted(len(one.split()) for one in joined)

    def at(ordered: Sequence[int], share: float) -> int:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return LengthMix(
        len(texts), at(characters, 0.1), at(characters, 0.5), at(characters, 0.9), characters[-1], at(words, 0.5)
    )


def _rows(path: Path, kind: str, column: str, pair_column: str | None) -> Iterator[Text]:
    columns = [column] if pair_column is None else [column, pair_column]
    try:
        with path.open(encoding="utf-8-sig", newline="" if kind == "csv" else None) as lines:
            if kind == "txt":
                yield from (line.rstrip("\n") for line in lines if line.strip())
            elif kind == "csv":
                reader = csv.DictReader(lines)
                yield from ((_text(path, reader.line_num, row, columns)) for row in reader)
            else:
                yield from _objects(path, lines, columns)
    except UnicodeDecodeError as error:
        raise WorkloadError(f"{path}: found bytes that are no UTF-8 ({error.reason}), expected UTF-8") from error
    except csv.Error as error:
        raise WorkloadError(f"{path}: found no CSV ({error})") from error


def _objects(path: Path, lines: Iterable[str], columns: Sequence[str]) -> Iterator[Text]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise WorkloadError(f"{path}:{number}: found no JSON ({error}), expected an object a line") from error
        if not isinstance(row, dict):
            raise WorkloadError(f"{path}:{number}: found {type(row).__name__}, expected an object a line")
        yield _text(path, number, row, columns)


def _text(path: Path, line: int, row: dict[str, object], columns: Sequence[str]) -> Text:
    found = []
    for name in columns:
        value = row.get(name)
        if name not in row:
            keys = ", ".join(map(str, row)) or "none"
            raise WorkloadError(f"{path}:{line}: found the columns {keys}; expected {name!r} (--text-column)")
        if not isinstance(value, str) or not value.strip():
            raise WorkloadError(f"{path}:{line}: {name}: found {str(value)[:40]!r}, expected a text")
        found.append(value)
    return found[0] if len(found) == 1 else (found[0], found[1])
