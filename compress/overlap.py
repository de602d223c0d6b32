"""Texts that stand in two splits: a model may have seen what it is tested on."""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Key = tuple[str, str | None]
_EXAMPLES = 5


class Row(Protocol):
    """What is read of a row of data."""

    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def text_pair(self) -> str | None: ...  # noqa: D102
    @property
    def target(self) -> str | tuple[str, ...] | None: ...  # noqa: D102
    @property
    def source(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Shared:
    """A row and the first one elsewhere with the same text."""

    text: str
    text_pair: str | None
    source: str
    other_source: str


@dataclass(frozen=True)
class Overlap:
    """Rows of one split whose text stands in another split, too."""

    rows: int
    other_target: int
    """Those of them that have another target there, in at least one place; unlabeled rows are not counted."""
    examples: tuple[Shared, ...]
    """The first few."""


def find_overlap(rows: Sequence[Row], others: Sequence[Row]) -> Overlap:
    """Return which of `rows` stand in `others`, by their normalised text; a pair is the same when both texts are.

    Normalised: Unicode NFKC, case folded, white space collapsed.
    """
    there: dict[Key, list[Row]] = defaultdict(list)
    for other in others:
        there[_key(other)].append(other)
    found, other_target = [], 0
    for row in rows:
        matches = there.get(_key(row))
        if matches is None:
            continue
        found.append((row, matches[0]))
        targets = {match.target for match in matches} - {None}
        other_target += row.target is not None and not targets <= {row.target}
    examples = tuple(Shared(row.text, row.text_pair, row.source, other.source) for row, other in found[:_EXAMPLES])
    return Overlap(len(found), other_target, examples)


def normalise(text: str) -> str:
    """Return a text as it is compared: NFKC, case folded, white space collapsed."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # folding can undo the normal form: NFKC again, as Unicode 3.13 has it (X.toNFKC_Casefold)
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def _key(row: Row) -> Key:
    return normalise(row.text), None if row.text_pair is None else normalise(row.text_pair)
