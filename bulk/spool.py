"""Where output grows, hidden beside its target, until it is whole."""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from bulk.errors import OutputError, ResumeError


def hidden(target: Path, ending: str) -> Path:
    """Return the name that something of `target` has beside it."""
    return target.with_name(f".{target.name}.{ending}")


class Spool:
    """A file beside `target` that appears under that name only when it is published.

    Nobody else can open it meanwhile. What is appended is not buffered: a killed process loses none of it.
    """

    def __init__(self, target: Path) -> None:
        """Open it, with what an interrupted run left; raises OutputError."""
        self.target = target
        self.path = hidden(target, "partial")
        self._published = False
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OutputError(f"{target}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise OutputError(f"{target}: another run is writing it; wait for its end, or name another file") from error

    @property
    def size_bytes(self) -> int:
        """How much is in it."""
        return os.fstat(self._descriptor).st_size

    def keep(self, length_bytes: int) -> None:
        """Cut off everything after `length_bytes`; raises ResumeError when there is less."""
        if self.size_bytes < length_bytes:
            raise ResumeError(
                f"{self.path}: found {self.size_bytes} bytes, expected the {length_bytes} that the interrupted run had "
                "written; give --restart to begin anew"
            )
        os.ftruncate(self._descriptor, length_bytes)
        os.lseek(self._descriptor, length_bytes, os.SEEK_SET)

    def append(self, data: bytes) -> None:
        """Write at the end; raises OutputError."""
        view = memoryview(data)
        with self._translated():
            while view:
                view = view[os.write(self._descriptor, view) :]

    def sync(self) -> None:
        """Return once what was appended would survive a loss of power; raises OutputError."""
        with self._translated():
            os.fsync(self._descriptor)

    def publish(self) -> None:
        """Give it the target's name, in the place of a file that has it; raises OutputError."""
        self.sync()
        with self._translated():
            self.path.replace(self.target)
        self._published = True

    def discard(self) -> None:
        """Remove it."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others open it; when nothing is in it, it is removed."""
        if not self._published and not self.size_bytes:
            self.discard()
        os.close(self._descriptor)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self.target}: cannot be written: {error.strerror}") from error


class StandardOutput:
    """Standard output as a place for rows."""

    def append(self, data: bytes) -> None:
        """Write at once; raises BrokenPipeError when nobody reads any more."""
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
