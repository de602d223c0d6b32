"""Answers that were paid for, kept on disk: one line each, written before it is used."""

import fcntl
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from compress.errors import LlmError


def key_of(endpoint: str, body: dict[str, Any], turn: int) -> str:
    """Return the SHA-256 of a request; `turn` counts requests with the same body."""
    text = json.dumps([endpoint, body, turn], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class AnswerCache:
    """A JSON Lines file of answers by the key of their request; a context manager, which one process holds at a time.

    A line is on the disk when `put` returns. What a kill left of a last line is cut off when the file is opened: that
    answer never counted. Raises LlmError when the file is something else, or is held by another process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._answers: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError as error:
            self._file.close()
            raise LlmError(
                f"{path}: another run is writing answers there; wait for it, or name another cache"
            ) from error
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the answer to a request, or None."""
        return self._answers.get(key)

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Keep an answer; raises OSError when the disk is full, and leaves no half of a line then."""
        line = json.dumps({"key": key, "answer": answer}, ensure_ascii=False) + "\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(line.encode("utf-8", "backslashreplace"))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), end)
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._answers[key] = answer

    def _read(self) -> None:
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                self._answers[row["key"]] = row["answer"]
            except (ValueError, KeyError, TypeError) as error:
                raise LlmError(
                    f"{self._path}:{number}: not an answer that was kept here; name another cache, or remove the file"
                ) from error
            end += len(line)
        self._file.truncate(end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
