"""Where a run's rows and errors go, and the checkpoints that let it go on after a kill."""

import contextlib
import gzip
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bulk.errors import OutputError
from bulk.files import Job, kind_of
from bulk.journal import Journal, Progress
from bulk.rows import Position
from bulk.spool import Spool, StandardOutput, hidden

CHECKPOINT_SECONDS = 5.0
"""So much work at most, and the windows in work, is done again after a kill."""

Convert = Callable[[Path, Path], None]
"""Makes the final file (second path) of what was spooled (first path)."""


class Output:
    """Rows and errors of one run; a context manager.

    Both grow under hidden names and get their own when all is done. Where `job` can be resumed, what was written and
    how far the input was read are recorded together every few seconds. Left early, it keeps that, or else everything
    is removed.
    """

    def __init__(self, job: Job, identity: Mapping[str, Any]) -> None:
        """Open the files; raises OutputError. `identity` is everything that the output depends on."""
        self._resumable = job.resumable
        self._compressed = job.out is not None and kind_of(job.out)[1]
        self._stack = contextlib.ExitStack()
        self._rows = self._spool(job.out)
        self._errors = self._spool(job.errors)
        self._journal = None if job.out is None else Journal(job.out, identity)
        self._progress = Progress()
        self._saved_s = 0.0
        self._unfinished = False

    def begin(self, header: bytes, beginning: Position, *, restart: bool) -> Progress:
        """Return how far an interrupted run was, its outputs cut to that; or begin anew, with `header`.

        Raises ResumeError where what lies there was another run's, unless `restart`.
        """
        if self._journal is not None:
            if restart:
                self._journal.remove()
            found = self._journal.load()
            # nothing there although something was written: killed between publishing it and forgetting the run
            if found is not None and self._rows is not None and (self._rows.size_bytes or not found.written_bytes):
                self._keep(found)
                return found
        self._keep(Progress())
        self._write(header, b"", Progress(beginning))
        self._save()
        return self._progress

    def append(self, rows: bytes, errors: bytes, progress: Progress) -> None:
        """Write what one window gave; `progress` is that after it, its bytes are filled in here. Raises OutputError."""
        self._write(rows, errors, progress)
        if time.monotonic() - self._saved_s >= CHECKPOINT_SECONDS:
            self._save()

    def publish(self, convert: Convert | None) -> None:
        """Give the outputs their names; `convert` makes the final rows of those that were appended."""
        self._save()
        if self._rows is not None:
            if convert is None:
                self._rows.publish()
            else:
                _convert(convert, self._rows)
        if self._errors is not None:
            self._errors.publish()
        if self._journal is not None:
            self._journal.remove()
        self._unfinished = False

    def _write(self, rows: bytes, errors: bytes, progress: Progress) -> None:
        data = gzip.compress(rows, mtime=0) if self._compressed else rows
        (self._rows or StandardOutput()).append(data)
        if self._errors is not None:
            self._errors.append(errors)
        # in one step: an interruption before it leaves what was recorded before this window
        self._progress = replace(
            progress,
            written_bytes=self._progress.written_bytes + len(data),
            errors_bytes=self._progress.errors_bytes + len(errors),
        )

    def _keep(self, progress: Progress) -> None:
        self._unfinished = True
        if self._rows is not None:
            self._rows.keep(progress.written_bytes)
        if self._errors is not None:
            self._errors.keep(progress.errors_bytes)
        self._progress = progress

    def _save(self) -> None:
        self._saved_s = time.monotonic()
        if self._resumable and self._journal is not None and self._rows is not None:
            self._rows.sync()
            if self._errors is not None:
                self._errors.sync()
            self._journal.save(self._progress)

    def _spool(self, target: Path | None) -> Spool | None:
        return None if target is None else self._stack.enter_context(contextlib.closing(Spool(target)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._stack:
            if not self._unfinished:
                return
            if self._resumable:
                with contextlib.suppress(OutputError):  # what was recorded before still holds
                    self._save()
                return
            for spool in (self._rows, self._errors):
                if spool is not None:
                    spool.discard()


def _convert(convert: Convert, spool: Spool) -> None:
    whole = hidden(spool.target, "whole")
    try:
        convert(spool.path, whole)
        whole.replace(spool.target)
    except OSError as error:
        whole.unlink(missing_ok=True)
        raise OutputError(f"{spool.target}: cannot be written: {error.strerror or error}") from error
    spool.discard()
