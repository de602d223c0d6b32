"""Plain text: one text a line."""

from collections.abc import Sequence
from typing import Any

from bulk.decisions import Columns
from bulk.errors import FormatError
from bulk.inputs import text_problem
from bulk.line_source import LineSource, as_field
from bulk.lines import Lines
from bulk.rows import Row, TextColumns

_SPACES = str.maketrans("\t\r\n", "   ")  # within a label


class PlainSource(LineSource):
    """Every line is a text. The output has the added columns, then the text, with tabs between them and no header."""

    def __init__(self, lines: Lines, texts: TextColumns, columns: Columns) -> None:
        """Raise FormatError when the model compares two texts."""
        super().__init__(lines, texts, columns)
        if texts.text_pair is not None:
            raise FormatError(
                f"{lines.name}: plain text has one text a line, but the model compares two; "
                "use csv, tsv, jsonl or parquet with a column for each"
            )

    def header(self) -> bytes:
        """Return nothing: there is no header."""
        return b""

    def next_row(self) -> Row | None:
        """Return the next row; None at the end."""
        line = self._next_line()
        if line is None or isinstance(line, Row):
            return line
        problem = text_problem(line.text)
        return Row(line.number, line.raw, None if problem else line.text, problem)

    def _with_values(self, raw: bytes, values: Sequence[Any]) -> bytes:
        fields = (as_field(value, column.kind) for value, column in zip(values, self._columns.added, strict=True))
        return b"\t".join([*(field.translate(_SPACES).encode() for field in fields), raw]) + b"\n"
