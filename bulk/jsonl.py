"""JSON Lines: one object a line."""

import json
from collections.abc import Sequence
from typing import Any

from bulk.decisions import Columns
from bulk.errors import FormatError
from bulk.line_source import LineSource
from bulk.lines import Lines
from bulk.rows import Row, TextColumns, taken_names


class JsonLinesSource(LineSource):
    """Blank lines are passed over. The output keeps each object as it stands and adds keys at its end."""

    def __init__(self, lines: Lines, texts: TextColumns, columns: Columns) -> None:
        super().__init__(lines, texts, columns)
        self._keys = [f", {json.dumps(column.name, ensure_ascii=False)}: ".encode() for column in columns.added]
        self._names = {column.name for column in columns.added}
        self._first = True

    def header(self) -> bytes:
        """Return nothing: there is no header."""
        return b""

    def next_row(self) -> Row | None:
        """Return the next row, None at the end; raises FormatError when the first has a key that would be added."""
        while True:
            line = self._next_line()
            if line is None or isinstance(line, Row):
                return line
            if line.raw.strip():
                return self._row(*line)

    def _row(self, number: int, raw: bytes, text: str) -> Row:
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            return Row(number, raw, None, f"not JSON: {error}")
        if not isinstance(fields, dict):
            return Row(number, raw, None, f"found a JSON {type(fields).__name__}, expected an object")
        taken = self._names & fields.keys()
        if taken:
            problem = taken_names(taken)
            if self._first:  # then it is likely in all
                raise FormatError(f"{self._lines.name}:{number}: {problem}")
            return Row(number, raw, None, problem)
        self._first = False
        return self._texts.read(number, raw, fields)

    def _with_values(self, raw: bytes, values: Sequence[Any]) -> bytes:
        added = (
            key + json.dumps(value, ensure_ascii=False).encode() for key, value in zip(self._keys, values, strict=True)
        )
        return raw.rstrip().removesuffix(b"}").rstrip() + b"".join(added) + b"}\n"
