"""One row of data, and how its fields are read from a row of a file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.errors import DataError
from service.engine.tokenization import TextInput

Target = str | tuple[str, ...] | None
"""A label; the labels of a text (multi-label); the tags of its words (token classification); None: unlabeled."""

LABEL_SEPARATOR = "|"
"""Between the labels of one CSV field."""


@dataclass(frozen=True, slots=True)
class Example:
    """One text or pair of texts and, unless it is unlabeled, what it is."""

    text: str
    target: Target
    source: str
    """File and line (or row), for messages."""
    text_pair: str | None = None
    words: tuple[str, ...] | None = None
    """For token classification; `text` is the words with a space between them."""
    slice: str | None = None
    """The value of the column that `data.columns.slice` names."""

    @property
    def input(self) -> TextInput:
        """What a tokenizer is given."""
        return self.text if self.text_pair is None else (self.text, self.text_pair)


def text_field(row: Mapping[str, Any], column: str, source: str) -> str:
    """Return a text that is not empty; raises DataError."""
    return _checked_text(_value(row, column, source), column, source)


def label_field(row: Mapping[str, Any], column: str, source: str) -> str:
    """Return a label; whole numbers are taken as text. Raises DataError."""
    value = _value(row, column, source)
    return str(value) if type(value) is int else _checked_text(value, column, source).strip()


def labels_field(row: Mapping[str, Any], column: str, source: str) -> tuple[str, ...]:
    """Return the labels of a text, sorted, none twice, perhaps none at all; raises DataError.

    In CSV they are a JSON list, or stand in one field with `|` between them.
    """
    values = _list(row, column, source, LABEL_SEPARATOR)
    names = [str(value) if type(value) is int else _checked_text(value, column, source).strip() for value in values]
    return tuple(sorted(set(names)))


def slice_field(row: Mapping[str, Any], column: str | None, source: str) -> str | None:
    """Return the value of the column for slices; None where no column is named, or the field is null or empty.

    Raises DataError when the row has no such column.
    """
    value = None if column is None else _value(row, column, source)
    return None if value is None or not str(value).strip() else str(value).strip()


def words_field(row: Mapping[str, Any], column: str, source: str) -> tuple[str, ...]:
    """Return words or tags, none empty, at least one; in CSV with spaces between them. Raises DataError."""
    words = tuple(_checked_text(value, column, source) for value in _list(row, column, source, None))
    if not words:
        raise DataError(f"{source}: column {column!r} is empty; expected at least one word")
    spaced = next((word for word in words if len(word.split()) != 1 or word != word.strip()), None)
    if spaced is not None:
        raise DataError(f"{source}: column {column!r} holds {spaced!r}; expected words without white space")
    return words


def _list(row: Mapping[str, Any], column: str, source: str, separator: str | None) -> list[Any]:
    value = _value(row, column, source)
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return [part for part in value.split(separator) if part.strip()]
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"{source}: column {column!r} starts with [ but is not a JSON list: {error}") from error
    if not isinstance(value, list):
        raise DataError(f"{source}: column {column!r} holds {value!r}; expected a list")
    return value


def _checked_text(value: Any, column: str, source: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{source}: column {column!r} holds {value!r}; expected text")
    if not value.strip():
        raise DataError(f"{source}: column {column!r} is empty; expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can escape one half of a surrogate pair
        raise DataError(f"{source}: column {column!r} holds half a character at {error.start}") from error
    return value


def _value(row: Mapping[str, Any], column: str, source: str) -> Any:
    if column not in row:
        raise DataError(f"{source}: no column {column!r}; found {', '.join(map(str, row)) or 'none'}")
    return row[column]
