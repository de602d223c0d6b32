"""What all kinds of text files share: rows are read from lines, and the output is those rows with something added."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from bulk.decisions import Columns, Kind
from bulk.lines import Lines, RowTooLongError, not_utf8, too_long, without_end
from bulk.rows import Position, Row, TextColumns
from service.engine.postprocess import FloatArray


class Line(NamedTuple):
    """A line without its end: as bytes, and decoded."""

    number: int
    raw: bytes
    text: str


class LineSource(ABC):
    """A `rows.Source` of lines. What a row holds is not parsed and written again: its bytes are kept."""

    def __init__(self, lines: Lines, texts: TextColumns, columns: Columns) -> None:
        self._lines = lines
        self._texts = texts
        self._columns = columns

    @abstractmethod
    def header(self) -> bytes:
        """Return what the output begins with."""

    @abstractmethod
    def next_row(self) -> Row | None:
        """Return the next row; None at the end."""

    def _next_line(self) -> Line | Row | None:
        """Return the next line, where a line is a row: as a bad row when it cannot be read, None at the end."""
        number = self._lines.next_number
        try:
            if not self._lines.take():
                return None
        except RowTooLongError:
            self._lines.commit_first()
            return Row(number, b"", None, too_long("a line"))
        raw = without_end(self._lines.commit())
        try:
            return Line(number, raw, raw.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            return Row(number, raw, None, not_utf8(error))

    @abstractmethod
    def _with_values(self, raw: bytes, values: Sequence[Any]) -> bytes:
        """Return a row's bytes with the values of the added columns, and a line end."""

    def skip_to(self, position: Position) -> None:
        """Go on where an interrupted run was; raises ResumeError when it read another file."""
        self._lines.skip_to(position)

    def position(self) -> Position:
        """Return the place right after the row that was returned last."""
        return self._lines.position()

    def render(self, rows: Sequence[Row], scores: FloatArray) -> bytes:
        """Return what the output gets for these rows; a bad one gets nothing."""
        good = [index for index, row in enumerate(rows) if row.problem is None]
        values = zip(*self._columns.values(scores[good]), strict=True)
        return b"".join(self._with_values(rows[index].raw, of_row) for index, of_row in zip(good, values, strict=True))


def as_field(value: Any, kind: Kind) -> str:
    """Return a value as one field: a list is joined with `|`, and written as JSON where an element has one."""
    if kind is Kind.TEXT:
        return str(value)
    if kind is Kind.NUMBER:
        return repr(value)
    if kind is Kind.FLAG:
        return "true" if value else "false"
    elements = value if kind is Kind.TEXTS else [repr(element) for element in value]
    if any("|" in element for element in elements):
        return json.dumps(elements, ensure_ascii=False)
    return "|".join(elements)
