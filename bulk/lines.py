"""The lines of a file as bytes, with what is needed to go on where an interrupted run was."""

import hashlib
import zlib
from collections import deque
from typing import BinaryIO

from bulk.errors import FormatError, ResumeError
from bulk.rows import Position

MAX_ROW_BYTES = 1 << 22
"""A row of more bytes is a bad one: memory stays bounded whatever a file holds."""

_PIECE_BYTES = 1 << 16


class RowTooLongError(Exception):
    """The lines taken for one row are more than MAX_ROW_BYTES."""


class Lines:
    r"""Lines end with \n and nothing else. They are taken one by one for a row, then committed together.

    What was taken and is not committed with the row is given out again.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self.name = name
        self._offset = 0
        self._number = 0
        self._hash = hashlib.sha256()
        self._taken: list[bytes] = []
        self._taken_bytes = 0
        self._returned: deque[bytes] = deque()

    @property
    def next_number(self) -> int:
        """Number of the first line that is not committed."""
        return self._number + 1

    def position(self) -> Position:
        """Return the place after the last line that was committed."""
        return Position(self._offset, self._number, self._hash.hexdigest())

    def take(self) -> bytes:
        """Return the next line with its end, empty at the end of the file; raises RowTooLongError and FormatError."""
        line = self._returned.popleft() if self._returned else self._read(MAX_ROW_BYTES)
        if line:
            self._taken.append(line)
            self._taken_bytes += len(line)
            if self._taken_bytes >= MAX_ROW_BYTES:
                raise RowTooLongError
        return line

    def commit(self) -> bytes:
        """Be done with all lines that were taken, and return them."""
        raw = self._taken[0] if len(self._taken) == 1 else b"".join(self._taken)
        self._number += len(self._taken)
        self._count(raw)
        self._taken, self._taken_bytes = [], 0
        return raw

    def commit_first(self) -> None:
        """Be done with the first of the lines that were taken, however long it is, and give the others out again."""
        first, *others = self._taken
        self._taken, self._taken_bytes = [], 0
        self._returned.extendleft(reversed(others))
        self._number += 1
        self._count(first)
        while not first.endswith(b"\n"):  # only a line that was too long, or the file's last, has no end
            first = self._returned.popleft() if self._returned else self._read(_PIECE_BYTES)
            if not first:
                return
            self._count(first)

    def skip_to(self, position: Position) -> None:
        """Read on to `position`; raises ResumeError unless everything before it is as it was."""
        while self._offset < position.offset:
            piece = self._file.read(min(_PIECE_BYTES, position.offset - self._offset))
            if not piece:
                break
            self._count(piece)
        self._number = position.number
        if self.position() != position:
            raise ResumeError(
                f"{self.name}: found other bytes than the interrupted run read in its first {position.number} lines; "
                "put the file back, or give --restart to begin anew"
            )

    def _count(self, raw: bytes) -> None:
        self._offset += len(raw)
        self._hash.update(raw)

    def _read(self, limit: int) -> bytes:
        try:
            return self._file.readline(limit)
        except (EOFError, zlib.error, OSError) as error:  # gzip.BadGzipFile is an OSError
            raise FormatError(f"{self.name}: cannot be read on after line {self._number}: {error}") from error


def without_end(line: bytes) -> bytes:
    r"""Return a line without its \n or \r\n."""
    if line.endswith(b"\r\n"):
        return line[:-2]
    return line.removesuffix(b"\n")


def not_utf8(error: UnicodeDecodeError) -> str:
    """Say where bytes are no UTF-8."""
    return f"not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}); save the file as UTF-8"


def too_long(what: str) -> str:
    """Say that a line or row is too long."""
    return f"found {what} of more than {MAX_ROW_BYTES} bytes"
