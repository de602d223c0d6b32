"""CSV and TSV: a header row, then rows whose quoted fields may span lines."""

import csv
from collections.abc import Sequence
from typing import Any

from bulk.decisions import Columns
from bulk.errors import FormatError
from bulk.line_source import LineSource, as_field
from bulk.lines import MAX_ROW_BYTES, Lines, RowTooLongError, not_utf8, too_long, without_end
from bulk.rows import Row, TextColumns, taken_names


class DelimitedSource(LineSource):
    """Rows as RFC 4180 has them, with `delimiter` between fields; blank lines are passed over.

    A quote that is never closed would swallow all rows after it. So where quotes are wrong, only the first line is
    taken for the bad row, and reading goes on at the second.
    """

    def __init__(self, lines: Lines, texts: TextColumns, columns: Columns, *, delimiter: str) -> None:
        """Read the header row; raises FormatError when it does not have the columns, or has one that would be added."""
        super().__init__(lines, texts, columns)
        csv.field_size_limit(MAX_ROW_BYTES)  # of the whole process; rows are bounded by `Lines` instead
        self._delimiter = delimiter
        self._fed = _Fed(lines)
        self._reader = csv.reader(self._fed, delimiter=delimiter, strict=True)
        self._read_header()

    def header(self) -> bytes:
        """Return the header row with the names of the added columns."""
        return self._with_fields(self._raw_header, [column.name for column in self._columns.added])

    def next_row(self) -> Row | None:
        """Return the next row; None at the end."""
        while True:
            number = self._lines.next_number
            try:
                record = self._record()
            except RowTooLongError:
                self._lines.commit_first()
                return Row(number, b"", None, too_long("a row"))
            except csv.Error as error:
                self._lines.commit_first()
                return Row(number, b"", None, _csv_problem(error))
            if record is None:
                return None
            raw, fields = record
            if not fields:
                continue
            if self._fed.problem is not None:
                return Row(number, raw, None, self._fed.problem)
            if len(fields) != len(self._names):
                problem = f"found {len(fields)} fields, expected {len(self._names)} as in the header row"
                return Row(number, raw, None, problem)
            return self._texts.read(number, without_end(raw), dict(zip(self._names, fields, strict=True)))

    def _record(self) -> tuple[bytes, list[str]] | None:
        """Return the next record's bytes and fields; None at the end."""
        self._fed.problem = None
        fields = next(self._reader, None)
        return None if fields is None else (self._lines.commit(), fields)

    def _read_header(self) -> None:
        where = self._lines.name
        fields: list[str] = []
        try:
            while not fields:
                record = self._record()
                if record is None:
                    raise FormatError(f"{where}: the file is empty; expected a header row that names the columns")
                raw, fields = record
        except RowTooLongError as error:
            raise FormatError(f"{where}: header row: {too_long('a row')}") from error
        except csv.Error as error:
            raise FormatError(f"{where}: header row: {_csv_problem(error)}") from error
        if self._fed.problem is not None:
            raise FormatError(f"{where}: header row: {self._fed.problem}")
        self._names = fields
        self._raw_header = without_end(raw)
        self._end = raw[len(self._raw_header) :] or b"\n"
        missing = [name for name in self._texts.names if name not in fields]
        if missing:
            raise FormatError(
                f"{where}: no column {missing[0]!r}; found {', '.join(fields)}; "
                "name the columns with --text-column and --text-pair-column"
            )
        if len(set(fields)) != len(fields):
            raise FormatError(f"{where}: the header row names a column twice: {', '.join(fields)}")
        taken = {column.name for column in self._columns.added} & set(fields)
        if taken:
            raise FormatError(f"{where}: {taken_names(taken)}")

    def _with_values(self, raw: bytes, values: Sequence[Any]) -> bytes:
        added = self._columns.added
        return self._with_fields(raw, [as_field(v, column.kind) for v, column in zip(values, added, strict=True)])

    def _with_fields(self, raw: bytes, fields: Sequence[str]) -> bytes:
        joined = "".join(self._delimiter + self._quoted(field) for field in fields)
        return raw + joined.encode() + self._end

    def _quoted(self, field: str) -> str:
        if any(character in field for character in ('"', "\r", "\n", self._delimiter)):
            return '"' + field.replace('"', '""') + '"'
        return field


class _Fed:
    """Lines as text for csv.reader; the first bytes that are no UTF-8 since `problem` was None are told there."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._begun = False
        self.problem: str | None = None

    def __iter__(self) -> "_Fed":
        return self

    def __next__(self) -> str:
        line = self._lines.take()
        if not line:
            raise StopIteration
        encoding = "utf-8" if self._begun else "utf-8-sig"
        self._begun = True
        try:
            return line.decode(encoding)
        except UnicodeDecodeError as error:
            self.problem = self.problem or not_utf8(error)
            return line.decode("utf-8", errors="replace")  # quotes and delimiters are still in their places


def _csv_problem(error: csv.Error) -> str:
    message = str(error)
    if message == "unexpected end of data":
        return "not CSV: a quoted field begins that is never closed"
    return f"not CSV: {message.partition(' - ')[0]}"
