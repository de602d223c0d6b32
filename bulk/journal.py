"""What an interrupted run had done: a small file beside its output, replaced as a whole."""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bulk.errors import OutputError, ResumeError
from bulk.rows import Position
from bulk.spool import hidden


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: what it read, and what it wrote of that."""

    position: Position = field(default_factory=Position)
    written_bytes: int = 0
    errors_bytes: int = 0
    done_rows: int = 0
    bad_rows: int = 0


class Journal:
    """The progress of the run that writes `target`; `run` is everything that its output depends on."""

    def __init__(self, target: Path, run: Mapping[str, Any]) -> None:
        self._path = hidden(target, "progress")
        self._run = dict(run)

    def load(self) -> Progress | None:
        """Return what an interrupted run had done, None without one; raises ResumeError when it was another run."""
        try:
            document = json.loads(self._path.read_bytes())
            run, position = document["run"], Position(**document["progress"].pop("position"))
            progress = Progress(position, **document["progress"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResumeError(f"{self._path}: not the progress of a run; give --restart to begin anew") from error
        for name in [name for name in {**run, **self._run} if run.get(name) != self._run.get(name)]:
            raise ResumeError(
                f"{self._path}: an interrupted run had done {progress.position.number} lines or rows of this output, "
                f"but with another {name}: found {run.get(name)!r}, expected {self._run.get(name)!r}; "
                "give its options again to go on, or --restart to begin anew"
            )
        return progress

    def save(self, progress: Progress) -> None:
        """Record progress; the record before holds until the new one is whole. Raises OutputError."""
        written = self._path.with_name(self._path.name + ".new")
        try:
            with written.open("w", encoding="utf-8") as file:
                json.dump({"run": self._run, "progress": asdict(progress)}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            written.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                written.unlink()
            raise OutputError(f"{self._path}: cannot be written: {error.strerror}") from error

    def remove(self) -> None:
        """Forget the run."""
        self._path.unlink(missing_ok=True)
