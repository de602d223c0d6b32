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
from compress.examples import Example
from compress.overlap import find_overlap
from compress.recipe import Columns, Data
from compress.tasks import TaskSpec

SUFFIXES = (".jsonl", ".csv", ".parquet")
_RARE = "(rare)"


@dataclass(frozen=True)
class Splits:
    """The examples of one run."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    unlabeled: list[Example]
    labels: list[str]
    """The model's output ids are indices into it."""

    def fingerprints(self) -> dict[str, SplitFingerprint]:
        """Return rows and SHA-256 of each split's content, for the lineage."""
        result = {}
        for name in ("train", "validation", "test", "unlabeled"):
            examples: list[Example] = getattr(self, name)
            content = json.dumps([[e.text, e.text_pair, e.target] for e in examples], ensure_ascii=False)
            digest = hashlib.sha256(content.encode()).hexdigest()
            result[name] = SplitFingerprint(rows=len(examples), sha256=digest)
        return result

    def overlap(self) -> dict[str, int]:
        """Return how many rows of one split stand in another, too."""
        pairs = (("test", "train"), ("test", "validation"), ("validation", "train"))
        return {
            f"{own} in {other}": find_overlap(getattr(self, own), getattr(self, other)).rows for own, other in pairs
        }


def load_splits(data: Data, seed: int, spec: TaskSpec) -> Splits:
    """Read every split the recipe names, as the task wants its rows; raises DataError."""
    if data.file is not None:
        rows = read_examples(data.file, data.columns, spec, labeled=True)
        labeled = list(stratified_split(rows, data.split.validation, data.split.test, seed, spec))
    else:
        paths = [_find(data, name) for name in ("train", "validation", "test")]
        labeled = [read_examples(path, data.columns, spec, labeled=True) for path in paths]
    unlabeled_path = data.unlabeled or (_find_in(data.folder, "unlabeled") if data.folder else None)
    unlabeled = read_examples(unlabeled_path, data.columns, spec, labeled=False) if unlabeled_path else []
    if data.limit is not None:
        *labeled, unlabeled = (_sample(rows, data.limit, seed) for rows in (*labeled, unlabeled))
    train, validation, test = spec.prepare(labeled, data)
    labels = spec.label_names(train)
    _check_labels(spec, train, (validation, test), data.min_rows_per_label)
    return Splits(train, validation, test, unlabeled, labels)


def read_examples(path: Path, columns: Columns, spec: TaskSpec, *, labeled: bool) -> list[Example]:
    """Read one file; raises DataError naming the file and line of the first row that is not usable."""
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    examples = [spec.read(row, columns, source, labeled=labeled) for source, row in reader(path)]
    if not examples:
        raise DataError(f"{path}: no rows")
    return examples


def stratified_split(
    rows: list[Example], validation: float, test: float, seed: int, spec: TaskSpec
) -> tuple[list[Example], list[Example], list[Example]]:
    """Split rows into train, validation and test with the same mix of labels, the same way for the same seed.

    Where texts have several labels, combinations of fewer than three rows are split together.
    """
    strata: dict[str, list[Example]] = defaultdict(list)
    for row in rows:
        strata[spec.stratum(row)].append(row)
    combined = any(len(spec.labels_of(row)) != 1 for row in rows)
    if combined:
        for name in [name for name, group in strata.items() if len(group) < 3]:
            strata[_RARE] += strata.pop(name)
    random_source = random.Random(seed)  # noqa: S311 - not for secrets
    splits: tuple[list[Example], list[Example], list[Example]] = ([], [], [])
    for name in sorted(strata):
        group = strata[name]
        if len(group) < 3 and not combined:
            raise DataError(f"{group[0].source}: label {name!r} has {len(group)} rows; a split needs at least 3")
        random_source.shuffle(group)
        for_validation = min(max(1, round(len(group) * validation)), len(group) - 1)
        for_test = min(max(1, round(len(group) * test)), len(group) - for_validation)
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


def _check_labels(spec: TaskSpec, train: list[Example], others: tuple[list[Example], ...], minimum: int) -> None:
    counts = Counter(label for example in train for label in spec.labels_of(example))
    for example in (example for split in others for example in split):
        unknown = next((label for label in spec.labels_of(example) if label not in counts), None)
        if unknown is not None:
            raise DataError(f"{example.source}: label {unknown!r} is not among the training labels {sorted(counts)}")
    label, rows = min(counts.items(), key=lambda item: item[1])
    if rows < minimum:
        first = next(example for example in train if label in spec.labels_of(example))
        raise DataError(
            f"{first.source}: label {label!r} has {rows} rows, the first of them here; expected at least {minimum}; "
            "add rows, merge the label, or lower data.min_rows_per_label"
        )


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
