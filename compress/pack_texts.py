"""The texts that `limbeck pack` runs a model on: the user's labeled rows, or samples without labels."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from bundle import Task
from bundle.manifest import SplitFingerprint
from compress import tags
from compress.data import Splits, read_examples, stratified_split
from compress.errors import DataError
from compress.examples import Example
from compress.overlap import find_overlap
from compress.recipe import Columns, Data, Recipe
from compress.sample_texts import SAMPLE_TEXTS
from compress.tasks import TaskSpec

SEED: int = Recipe.model_fields["seed"].default
_FEWEST_ROWS = 3  # of which one is for validation


@dataclass(frozen=True)
class Texts:
    """What the models are run on: the user's rows, or sample texts without labels, which then are both splits."""

    validation: list[Example]
    test: list[Example]
    given: bool

    def mates(self, number: int) -> list[Example]:
        """Return at least `number` texts, where there are so many, whose scores must not depend on one another."""
        everything = [*self.test, *self.validation] if self.given else self.test
        return everything[: max(number, len(self.test))]

    def fingerprints(self, labels: list[str]) -> dict[str, SplitFingerprint]:
        """Return what the user gave, for the lineage."""
        found = Splits([], self.validation, self.test, [], labels).fingerprints()
        return {name: found[name] for name in ("validation", "test")} if self.given else {}

    def overlap(self) -> dict[str, int]:
        """Return how many test rows stand among the validation rows, too."""
        return {"test in validation": find_overlap(self.test, self.validation).rows} if self.given else {}


def find_texts(spec: TaskSpec, labels: Sequence[str], data: Path | None) -> Texts:
    """Return the rows of `data`, or the sample texts where it is None; raises DataError."""
    if data is None:
        examples = sample_examples(spec)
        return Texts(examples, examples, given=False)
    return Texts(*split(_read(data, spec, labels), SEED, spec), given=True)


def split(rows: list[Example], seed: int, spec: TaskSpec) -> tuple[list[Example], list[Example]]:
    """Return a third of the rows for validation and the rest for testing, stratified where a label has three rows.

    Raises DataError when there are fewer than three rows.
    """
    if len(rows) < _FEWEST_ROWS:
        raise DataError(
            f"{rows[0].source}: {len(rows)} rows in all; expected at least {_FEWEST_ROWS}, a third to choose"
        )
    counts = Counter(map(spec.stratum, rows))
    common = [row for row in rows if counts[spec.stratum(row)] >= _FEWEST_ROWS]
    rare = [row for row in rows if counts[spec.stratum(row)] < _FEWEST_ROWS]
    validation: list[Example] = []
    test: list[Example] = []
    if common:
        left, validation, test = stratified_split(common, 1 / 3, 1 / 3, seed, spec)
        test = [*test, *left]
    Random(seed).shuffle(rare)  # noqa: S311 - not for secrets
    third = len(rare) // 3
    return [*validation, *rare[:third]], [*test, *rare[third:]]


def sample_examples(spec: TaskSpec) -> list[Example]:
    """Return the sample texts as the task reads them; where it reads pairs, each with the next."""
    neighbors = pairwise([*SAMPLE_TEXTS, SAMPLE_TEXTS[0]])
    rows = [{"text": text, "text_pair": pair} for text, pair in neighbors]
    return [spec.read(row, Columns(), f"sample text {n}", labeled=False) for n, row in enumerate(rows, start=1)]


def scheme_of(labels: Sequence[str]) -> str:
    """Return the scheme in which a model with these labels writes tags."""
    if any(label.startswith(("S-", "E-")) for label in labels):
        return "BIOES"
    types = {label.removeprefix("I-") for label in labels if label.startswith("I-")}
    return "IOB2" if all(f"B-{name}" in labels for name in types) else "IOB1"


@dataclass(frozen=True)
class _ColumnNames(TaskSpec):
    """Reads of each row which columns it fills."""

    def read(self, row: Mapping[str, Any], columns: Columns, source: str, *, labeled: bool) -> Example:  # noqa: ARG002
        return Example("", tuple(name for name, value in row.items() if value not in (None, "")), source)


def holds_pairs(path: Path) -> bool:
    """Return whether a row of a file has a second text; raises DataError."""
    rows = read_examples(path, Columns(), _ColumnNames(Task.SINGLE_LABEL), labeled=False)
    return any(Columns().text_pair in (row.target or ()) for row in rows)


def _read(path: Path, spec: TaskSpec, labels: Sequence[str]) -> list[Example]:
    """Return labeled examples whose labels are all among the model's; raises DataError."""
    (examples,) = spec.prepare([read_examples(path, Columns(), spec, labeled=True)], Data(file=path))
    if spec.task is Task.TOKEN_CLASSIFICATION:
        examples = [_in_scheme(example, scheme_of(labels)) for example in examples]
    for example in examples:
        found = example.target if isinstance(example.target, tuple) else (str(example.target),)
        unknown = next((label for label in found if label not in labels), None)
        if unknown is not None:
            raise DataError(
                f"{example.source}: label {unknown!r} is not among the model's {list(labels)}; rename the model's with "
                "--labels a,b,…, in this order, or the data's"
            )
    return examples


def _in_scheme(example: Example, scheme: str) -> Example:
    return replace(example, target=tuple(tags.to_scheme(list(example.target or ()), "IOB2", scheme)))
