"""From files to examples: JSONL, CSV and Parquet, with errors that name file and line."""

import csv
import hashlib
import io
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bundle.manifest import SplitFingerprint
from compress.errors import DataError
from compress.recipe import Columns, Data
from service.engine.tokenization import TextInput

SUFFIXES = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Example:
    """One text or pair of texts and, unless it is unlabeled, its label."""

    text: str
    label: str | None
    source: str
    """File and line (or row), for messages."""
    text_pair: str | None = None

    @property
    def input(self) -> TextInput:
        """What a tokenizer is given."""
        return self.text if self.text_pair is None else (self.text, self.text_pair)


@dataclass(frozen=True)
class Splits:
    """The examples of one run."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    unlabeled: list[Example]
    labels: list[str]
    """Sorted; the model's output ids are indices into it."""

    def fingerprints(self) -> dict[str, SplitFingerprint]:
        """Return rows and SHA-256 of each split's content, for the lineage."""
        result = {}
        for name in ("train", "validation", "test", "unlabeled"):
            examples: list[Example] = getattr(self, name)
            content = json.dumps([[e.text, e.text_pair, e.label] for e in examples], ensure_ascii=False)
            digest = hashlib.sha256(content.encode()).hexdigest()
            result[name] = SplitFingerprint(rows=len(examples), sha256=digest)
        return result


def load_splits(data: Data, seed: int, *, paired: bool = False) -> Splits:
    """Read every split the recipe names, `paired` with the second text of each row; raises DataError."""
    if data.file is not None:
        rows = read_examples(data.file, data.columns, labeled=True, paired=paired)
        train, validation, test = stratified_split(rows, data.split.validation, data.split.test, seed)
    else:
        paths = {name: _find(data, name) for name in ("train", "validation", "test")}
        train, validation, test = (
            read_examples(path, data.columns, labeled=True, paired=paired) for path in paths.values()
        )
    unlabeled_path = data.unlabeled or (_find_in(data.folder, "unlabeled") if data.folder else None)
    unlabeled = read_examples(unlabeled_path, data.columns, labeled=False, paired=paired) if unlabeled_path else []
    if data.limit is not None:
        train, validation, test, unlabeled = (
            _sample(rows, data.limit, seed) for rows in (train, validation, test, unlabeled)
        )
    return Splits(train, validation, test, unlabeled, _check_labels(train, validation, test, data.min_rows_per_label))


def read_examples(path: Path, columns: Columns, *, labeled: bool, paired: bool = False) -> list[Example]:
    """Read one file; raises DataError naming the file and line of the first row that is not usable."""
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    examples = []
    for source, row in reader(path):
        text = _text(row, columns.text, source)
        text_pair = _text(row, columns.text_pair, source) if paired else None
        label = _label(row, columns.label, source) if labeled else None
        examples.append(Example(text, label, source, text_pair))
    if not examples:
        raise DataError(f"{path}: no rows")
    return examples


def stratified_split(
    rows: list[Example], validation: float, test: float, seed: int
) -> tuple[list[Example], list[Example], list[Example]]:
    """Split rows into train, validation and test with the same mix of labels, the same way for the same seed."""
    by_label: dict[str, list[Example]] = defaultdict(list)
    for row in rows:
        by_label[str(row.label)].append(row)
    random_source = random.Random(seed)  # noqa: S311 - not for secrets
    splits: tuple[list[Example], list[Example], list[Example]] = ([], [], [])
    for label in sorted(by_label):
        group = by_label[label]
        if len(group) < 3:
            raise DataError(f"{group[0].source}: label {label!r} has {len(group)} rows; a split needs at least 3")
        random_source.shuffle(group)
        for_validation = max(1, round(len(group) * validation))
        for_test = max(1, round(len(group) * test))
        splits[1].extend(group[:for_validation])
        splits[2].extend(group[for_validation : for_validation + for_test])
        splits[0].extend(group[for_validation + for_test :])
    for split in splits:
        random_source.shuffle(split)
    return splits


def _sample(rows: list[Example], limit: int, seed: int) -> list[Example]:
    if len(rows) <= limit:
        return rows
    chosen = random.Random(seed).sample(range(len(rows)), limit)  # noqa: S311 - not for secrets
    return [rows[index] for index in sorted(chosen)]


def _check_labels(train: list[Example], validation: list[Example], test: list[Example], minimum: int) -> list[str]:
    counts = Counter(str(example.label) for example in train)
    if len(counts) < 2:
        raise DataError(f"train has the label {', '.join(counts)} only; expected at least two labels")
    for split in (validation, test):
        for example in split:
            if example.label not in counts:
                raise DataError(
                    f"{example.source}: label {example.label!r} is not among the training labels {sorted(counts)}"
                )
    label, rows = min(counts.items(), key=lambda item: item[1])
    if rows < minimum:
        first = next(example for example in train if example.label == label)
        raise DataError(
            f"{first.source}: label {label!r} has {rows} rows, the first of them here; expected at least {minimum}; "
            "add rows, merge the label, or lower data.min_rows_per_label"
        )
    return sorted(counts)


def _find(data: Data, name: str) -> Path:
    path: Path | None = getattr(data, name)
    if path is None and data.folder is not None:
        path = _find_in(data.folder, name)
    if path is None:
        raise DataError(f"{data.folder}: no {name} file; expected {name} with one of {', '.join(SUFFIXES)}")
    return path


def _find_in(folder: Path, name: str) -> Path | None:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found = [folder / f"{name}{suffix}" for suffix in SUFFIXES if (folder / f"{name}{suffix}").is_file()]
    if len(found) > 1:
        raise DataError(f"{folder}: found {', '.join(path.name for path in found)}; expected one {name} file")
    return found[0] if found else None


def _text(row: dict[str, Any], column: str, source: str) -> str:
    value = _value(row, column, source)
    if not isinstance(value, str):
        raise DataError(f"{source}: column {column!r} holds {value!r}; expected text")
    if not value.strip():
        raise DataError(f"{source}: column {column!r} is empty; expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can escape one half of a surrogate pair
        raise DataError(f"{source}: column {column!r} holds half a character at {error.start}") from error
    return value


def _label(row: dict[str, Any], column: str, source: str) -> str:
    value = _value(row, column, source)
    if type(value) is int:
        return str(value)
    return _text(row, column, source).strip()


def _value(row: dict[str, Any], column: str, source: str) -> Any:
    if column not in row:
        raise DataError(f"{source}: no column {column!r}; found {', '.join(map(str, row)) or 'none'}")
    return row[column]


def _decode(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 (byte {raw[error.start]:#04x}); save the file as UTF-8") from error


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # split on \n alone: str.splitlines would also cut at U+2028 and friends, which JSON allows inside strings
    for number, line in enumerate(_decode(path).split("\n"), start=1):
        if not line.strip():
            continue
        source = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{source}: expected a JSON object, found {type(row).__name__}")
        yield source, row


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(_decode(path), newline=""), strict=True)
    header: list[str] | None = None
    first_line = 1  # a quoted field may span lines; a row is named by its first
    try:
        for fields in reader:
            source, first_line = f"{path}:{first_line}", reader.line_num + 1
            if not fields:  # a blank line
                continue
            if header is None:
                header = fields
                if len(set(header)) != len(header):
                    raise DataError(f"{source}: the header row names a column twice: {', '.join(header)}")
            elif len(fields) != len(header):
                raise DataError(f"{source}: found {len(fields)} fields, expected {len(header)} as in the header row")
            else:
                yield source, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}:{first_line}: not CSV: {error}") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # ValueError: bytes that are not UTF-8
        raise DataError(f"{path}: not a Parquet file that pyarrow can read: {error}") from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}: row {number}", row
