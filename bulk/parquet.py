"""Parquet: texts are read by themselves; at the end the whole file is read again and written with columns added."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bulk.decisions import Columns, Kind
from bulk.errors import FormatError
from bulk.rows import Position, Row, TextColumns, taken_names
from service.engine.postprocess import FloatArray

_BATCH_ROWS = 2048
_ROW_GROUP_ROWS = 1 << 16
_ROW_GROUP_BYTES = 1 << 26  # wide rows make smaller groups: one is held in memory

_ARROW_TYPES = {
    Kind.TEXT: pa.string(),
    Kind.NUMBER: pa.float32(),
    Kind.FLAG: pa.bool_(),
    Kind.TEXTS: pa.list_(pa.string()),
    Kind.NUMBERS: pa.list_(pa.float32()),
}


class ParquetSource:
    """A `rows.Source` whose output, until `convert`, is the scores of every row as they lie in memory.

    A Parquet file cannot be cut and gone on with; an array of scores, NaN where a row is bad, can.
    """

    def __init__(self, file: BinaryIO, name: str, texts: TextColumns, columns: Columns) -> None:
        """Read the footer; raises FormatError unless the columns are there, and hold texts."""
        self._name = name
        self._texts = texts
        self._columns = columns
        try:
            self._parquet = pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise FormatError(f"{name}: not a Parquet file that pyarrow can read: {error}") from error
        self._check(self._parquet.schema_arrow)
        self._number = 0
        self._rows: Iterator[Row] = self._read(0)

    @property
    def total_rows(self) -> int:
        """Number of rows."""
        return int(self._parquet.metadata.num_rows)

    def header(self) -> bytes:
        """Return nothing: an array has no header."""
        return b""

    def skip_to(self, position: Position) -> None:
        """Go on after `position`; that the file is the same is known from its hash."""
        self._number = position.number
        self._rows = self._read(position.number)

    def next_row(self) -> Row | None:
        """Return the next row; None at the end."""
        row = next(self._rows, None)
        if row is not None:
            self._number = row.number
        return row

    def position(self) -> Position:
        """Return the place right after the row that was returned last."""
        return Position(self._number, self._number)

    def render(self, rows: Sequence[Row], scores: FloatArray) -> bytes:  # noqa: ARG002 - other kinds need the rows
        """Return the scores (R, C) as bytes."""
        return scores.tobytes()

    def convert(self, scores_path: Path, target: Path) -> None:
        """Write the rows that are not bad, with all their columns and those that are added, to `target`."""
        schema = self._parquet.schema_arrow
        for column in self._columns.added:
            schema = schema.append(pa.field(column.name, _ARROW_TYPES[column.kind]))
        with target.open("wb") as out, scores_path.open("rb") as scores_file:
            with pq.ParquetWriter(out, schema) as writer:
                for batch in self._batches(self._row_group_rows(), 0, None):
                    writer.write_table(self._with_columns(batch, scores_file, schema))
            os.fsync(out.fileno())

    def _row_group_rows(self) -> int:
        metadata = self._parquet.metadata
        size_bytes: int = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
        return max(1, min(_ROW_GROUP_ROWS, _ROW_GROUP_BYTES * self.total_rows // max(size_bytes, 1)))

    def _with_columns(self, batch: Any, scores_file: BinaryIO, schema: Any) -> Any:
        count = batch.num_rows * self._columns.labels
        scores = np.fromfile(scores_file, dtype=np.float32, count=count).reshape(batch.num_rows, self._columns.labels)
        good = ~np.isnan(scores).any(axis=1)
        arrays = pa.Table.from_batches([batch]).filter(pa.array(good)).columns
        for column, values in zip(self._columns.added, self._columns.values(scores[good]), strict=True):
            arrays.append(pa.chunked_array([pa.array(values, type=_ARROW_TYPES[column.kind])]))
        return pa.table(arrays, schema=schema)

    def _check(self, schema: Any) -> None:
        for name in self._texts.names:
            if name not in schema.names:
                raise FormatError(
                    f"{self._name}: no column {name!r}; found {', '.join(schema.names)}; "
                    "name the columns with --text-column and --text-pair-column"
                )
            kind = schema.field(name).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                raise FormatError(f"{self._name}: column {name!r} holds {kind}; expected string")
        taken = {column.name for column in self._columns.added} & set(schema.names)
        if taken:
            raise FormatError(f"{self._name}: {taken_names(taken)}")

    def _read(self, done: int) -> Iterator[Row]:
        number = done
        for batch in self._batches(_BATCH_ROWS, done, self._texts.names):
            columns = [_values(batch.column(name)) for name in self._texts.names]
            for values in zip(*columns, strict=True):
                number += 1
                yield self._texts.read(number, b"", dict(zip(self._texts.names, values, strict=True)))

    def _batches(self, size: int, done: int, names: list[str] | None) -> Iterator[Any]:
        """Yield record batches of the rows after the first `done`."""
        groups, metadata = list(range(self._parquet.num_row_groups)), self._parquet.metadata
        while groups and done >= metadata.row_group(groups[0]).num_rows:
            done -= metadata.row_group(groups.pop(0)).num_rows
        try:
            for batch in self._parquet.iter_batches(size, row_groups=groups, columns=names, use_threads=False):
                skipped = min(done, batch.num_rows)
                done -= skipped
                if batch.num_rows > skipped:
                    yield batch.slice(skipped)
        except (pa.ArrowException, OSError) as error:
            raise FormatError(f"{self._name}: cannot be read on: {error}") from error


def _values(column: Any) -> list[Any]:
    """Return strings, and bytes where something is not UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = [_decoded(value) for value in column.cast(pa.large_binary()).to_pylist()]
    return values


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return value
