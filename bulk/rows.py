"""Rows of a file, where they stand, and what every kind of file does with them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bulk.inputs import text_problem
from service.engine.postprocess import FloatArray
from service.engine.tokenization import TextInput


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file: what to classify, or what is wrong with it."""

    number: int
    """The line it begins on, or in Parquet its number; counted from 1."""
    raw: bytes
    """The row as it stands in the file, without its line end; empty in Parquet."""
    input: TextInput | None
    problem: str | None = None
    """Why it cannot be classified; `input` is None then."""

    @property
    def size(self) -> int:
        """How much memory it takes, in bytes and characters."""
        texts = (self.input,) if isinstance(self.input, str) else self.input or ()
        return len(self.raw) + sum(map(len, texts))


@dataclass(frozen=True, slots=True)
class Position:
    """How far a file is read."""

    offset: int = 0
    """Bytes (of the uncompressed file), or in Parquet rows."""
    number: int = 0
    """Lines or rows."""
    digest: str = ""
    """SHA-256 of all bytes before `offset`; empty in Parquet, where the whole file is hashed at the start."""


class Source(Protocol):
    """A file that is read row by row, and how its rows look with columns added."""

    def header(self) -> bytes:
        """Return what the output begins with."""

    def skip_to(self, position: Position) -> None:
        """Go on where an interrupted run was; raises ResumeError when it read another file."""

    def next_row(self) -> Row | None:
        """Return the next row; None at the end."""

    def position(self) -> Position:
        """Return the place right after the row that was returned last."""

    def render(self, rows: Sequence[Row], scores: FloatArray) -> bytes:
        """Return what the output gets for these rows; `scores` (R, C) has one for each, NaN where a row is bad."""


@dataclass(frozen=True)
class TextColumns:
    """The columns that hold what is classified; `text_pair` is None unless the model compares two texts."""

    text: str
    text_pair: str | None

    @property
    def names(self) -> list[str]:
        """The columns that a row must have."""
        return [self.text] if self.text_pair is None else [self.text, self.text_pair]

    def read(self, number: int, raw: bytes, fields: Mapping[str, Any]) -> Row:
        """Return the row that has these fields."""
        texts = []
        for name in self.names:
            if name not in fields:
                return Row(number, raw, None, f"no column {name!r}; found {', '.join(fields) or 'none'}")
            problem = text_problem(fields[name])
            if problem is not None:
                return Row(number, raw, None, f"column {name!r}: {problem}")
            texts.append(fields[name])
        return Row(number, raw, texts[0] if len(texts) == 1 else (texts[0], texts[1]))


def taken_names(names: Collection[str]) -> str:
    """Say that columns that would be added are there already."""
    first = sorted(names)[0]
    return (
        f"there is a column {first!r} already; give --prefix, such as --prefix predicted_, which calls the new one "
        f"{'predicted_' + first!r}"
    )
