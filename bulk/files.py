"""Which kind of file is read, and how it is opened."""

import gzip
import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bulk.closing import Closing
from bulk.decisions import Columns
from bulk.delimited import DelimitedSource
from bulk.errors import BulkError, FormatError
from bulk.jsonl import JsonLinesSource
from bulk.lines import Lines
from bulk.plain import PlainSource
from bulk.rows import Source, TextColumns

KINDS = ("csv", "tsv", "jsonl", "parquet", "txt")

_ENDINGS = {f".{kind}": kind for kind in KINDS} | {".ndjson": "jsonl"}


def kind_of(path: Path) -> tuple[str | None, bool]:
    """Return the kind of file that a name's ending says, and whether it is compressed by gzip."""
    compressed = path.suffix == ".gz"
    return _ENDINGS.get((path.with_suffix("") if compressed else path).suffix.lower()), compressed


@dataclass(frozen=True)
class Job:
    """One file to classify, and where the results go."""

    file: Path | None
    """None is standard input."""
    kind: str
    """One of KINDS; that of the output, too."""
    out: Path | None
    """None is standard output."""
    errors: Path | None
    """Where bad rows are listed as JSON Lines."""
    texts: TextColumns
    prefix: str
    all_scores: bool
    restart: bool

    @property
    def name(self) -> str:
        """What messages call the input."""
        return "standard input" if self.file is None else str(self.file)

    @property
    def resumable(self) -> bool:
        """Whether an interrupted run can go on: it needs a file that can be read again, and one to go on writing."""
        return self.file is not None and self.out is not None

    def check(self) -> None:
        """Raise FormatError or BulkError when the files do not go together."""
        if self.file is not None and not self.file.is_file():
            found = "a folder" if self.file.is_dir() else "no such file"
            raise BulkError(f"{self.file}: {found}; to classify a text that stands in the command, use --text")
        if self.kind == "parquet" and self.file is None:
            raise FormatError("standard input cannot be Parquet, which is read from its end; name a file")
        if self.kind == "parquet" and self.out is None:
            raise FormatError("Parquet is not written to standard output; name a file with --out")
        if self.out is not None and kind_of(self.out)[0] != self.kind:
            raise FormatError(
                f"{self.out}: the output is {self.kind}, as the input; expected a name ending .{self.kind}"
            )
        for path in (self.file, self.out):
            if self.kind == "parquet" and path is not None and kind_of(path)[1]:
                raise FormatError(f"{path}: Parquet is compressed inside; expected a file without .gz")
        for path in (self.out, self.errors):
            if path is not None and self.file is not None and path.exists() and path.samefile(self.file):
                raise BulkError(f"{path}: is the input; name another file")
        if self.out is not None and self.errors is not None and self.out.resolve() == self.errors.resolve():
            raise BulkError(f"{self.out}: is named for rows and for errors; name two files")


class Input(Closing):
    """An opened file; a context manager."""

    def __init__(self, job: Job, columns: Columns) -> None:
        """Open it and read its header; raises FormatError."""
        self._raw: BinaryIO = sys.stdin.buffer if job.file is None else job.file.open("rb")
        self._owned = job.file is not None
        self.total = os.fstat(self._raw.fileno()).st_size if self._owned else None
        """Bytes, as they lie on disk, or rows in Parquet; None is unknown."""
        self.interactive = job.file is None and self._raw.isatty()
        """Whether somebody types, and waits for each answer."""
        self.convert: Callable[[Path, Path], None] | None = None
        """What makes the final output of what was written; None where that is it."""
        self._done: Callable[[], int] = self._raw.tell if self._owned else lambda: 0
        try:
            self.source = self._open(job, columns)
        except BaseException:
            self.close()
            raise

    @property
    def done(self) -> int:
        """How much of `total` is read."""
        return self._done()

    def _open(self, job: Job, columns: Columns) -> Source:
        if job.kind == "parquet":
            try:
                from bulk.parquet import ParquetSource  # the other kinds do without pyarrow
            except ModuleNotFoundError as error:
                raise BulkError("Parquet needs pyarrow: pip install 'limbeck[bulk]'") from error
            parquet = ParquetSource(self._raw, job.name, job.texts, columns)
            self.total, self._done = parquet.total_rows, lambda: parquet.position().number
            self.convert = parquet.convert
            return parquet
        stream = self._raw
        if job.file is not None and kind_of(job.file)[1]:
            stream = io.BufferedReader(gzip.GzipFile(fileobj=self._raw, mode="rb"))
        lines = Lines(stream, job.name)
        if job.kind == "jsonl":
            return JsonLinesSource(lines, job.texts, columns)
        if job.kind == "txt":
            return PlainSource(lines, job.texts, columns)
        return DelimitedSource(lines, job.texts, columns, delimiter="," if job.kind == "csv" else "\t")

    def close(self) -> None:
        """Close what was opened."""
        if self._owned:
            self._raw.close()
