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

from compress.errors import DataError
from compress.recipe import Columns, Data

SUFFIXES = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Example:
    """One text and, unless it is unlabeled, its label."""

    text: str
    label: str | None
    source: str
    """File and line (or row), for messages."""


@dataclass(frozen=True)
class Splits:
    """The examples of one run."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    unlabeled: list[Example]
    labels: list[str]
    """Sorted; the model's output ids are indices into it."""

    def fingerprints(self) -> dict[str, Any]:
        """Return rows and SHA-256 of each split's content, for the lineage."""
        result = {}
        for name in ("train", "validation", "test", "unlabeled"):
            examples: list[Example] = getattr(self, name)
            content = json.dumps([[e.text, e.label] for e in examples], ensure_ascii=False)
            result[name] = {"rows": len(examples), "sha256": hashlib.sha256(content.encode()).hexdigest()}
        return result


def load_splits(data: Data, seed: int) -> Splits:
    """Read every split the recipe names; raises DataError."""
    if data.file is not None:
        rows = read_examples(data.file, data.columns, labeled=True)
        train, validation, test = stratified_split(rows, data.split.validation, data.split.test, seed)
    else:
        paths = {name: _find(data, name) for name in ("train", "validation", "test")}
        train, validation, test = (read_examples(path, data.columns, labeled=True) for path in paths.values())
    unlabeled_path = data.unlabeled or (_find_in(data.folder, "unlabeled") if data.folder else None)
    unlabeled = read_examples(unlabeled_path, data.columns, labeled=False) if unlabeled_path else []
    if data.limit is not None:
        train, validation, test, unlabeled = (
            _sample(rows, data.limit, seed) for rows in (train, validation, test, unlabeled)
        )
    return Splits(train, validation, test, unlabeled, _check_labels(train, validation, test, data.min_rows_per_label))


def read_examples(path: Path, columns: Columns, *, labeled: bool) -> list[Example]:
    """Read one file; raises DataError naming the file and line of the first row that is not usable."""
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    examples = []
    for source, row in reader(path):
        text = _value(row, columns.text, source)
        if not text.strip():
            raise DataError(f"{source}: column {columns.text!r} is empty; expected a text")
        label = _value(row, columns.label, source, numbers=True) if labeled else None
        if labeled and not label:
            raise DataError(f"{source}: column {columns.label!r} is empty; expected a label")
        examples.append(Example(text, label, source))
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
        raise DataError(
            f"train: label {label!r} has {rows} rows, expected at least {minimum}; add rows, merge the label, "
            "or lower data.min_rows_per_label"
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


def _value(row: dict[str, Any], column: str, source: str, *, numbers: bool = False) -> str:
    if column not in row:
        raise DataError(f"{source}: no column {column!r}; found {', '.join(map(str, row)) or 'none'}")
    value = row[column]
    if numbers and isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{source}: column {column!r} holds {value!r}; expected text")
    return value


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
        except ValueError as error:
            raise DataError(f"{source}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{source}: expected a JSON object, found {type(row).__name__}")
        yield source, row


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_decode(path), newline=""), strict=True)
    columns = reader.fieldnames or []
    first_line = reader.line_num + 1  # a quoted field may span lines; a row is named by its first
    try:
        for row in reader:
            source = f"{path}:{first_line}"
            if None in row or None in row.values():
                raise DataError(f"{source}: expected {len(columns)} fields as in the header row")
            yield source, row
            first_line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{first_line}: not CSV: {error}") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that pyarrow can read: {error}") from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}: row {number}", row
