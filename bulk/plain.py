"""Plain text: one text a line."""

from collections.abc import Sequence
from typing import Any

from bulk.decisions import Columns
from bulk.errors import FormatError
from bulk.inputs import text_problem
from bulk.line_source import LineSource, as_field
from bulk.lines import Lines, RowTooLongError, not_utf8, too_long, without_end
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
        number = self._lines.next_number
        try:
            if not self._lines.take():
                return None
        except RowTooLongError:
            self._lines.commit_first()
            return Row(number, b"", None, too_long("a line"))
        raw = without_end(self._lines.commit())
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            return Row(number, raw, None, not_utf8(error))
        problem = text_problem(text)
        return Row(number, raw, None if problem else text, problem)

    def _with_values(self, raw: bytes, values: Sequence[Any]) -> bytes:
        fields = (as_field(value, column.kind) for value, column in zip(values, self._columns.added, strict=True))
        return b"\t".join([*(field.translate(_SPACES).encode() for field in fields), raw]) + b"\n"
