"""Answers that were paid for, kept on disk: one line each, written before it is used."""

import fcntl
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from compress.errors import LlmError


def key_of(endpoint: str, body: dict[str, Any], turn: int) -> str:
    """Return the SHA-256 of a request; `turn` counts requests with the same body."""
    text = json.dumps([endpoint, body, turn], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class AnswerCache:
    """A JSON Lines file of answers by the key of their request; a context manager, which one process holds at a time.

    A line is on the disk when `put` returns. What a kill left of a last line is cut off when the file is opened: that
    answer never counted. In memory is only where each line lies: the alternatives of one answer's tokens take 100 kB
    there. Raises LlmError when the file is something else, or is held by another process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}  # offset and length of a line
        path.parent.mkdir(parents=True, exist_ok=True)
        # a buffer would keep what a full disk did not take, and write it behind the next line, or when it is closed
        self._file = path.open("a+b", buffering=0)
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
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the answer to a request, or None."""
        if key not in self._places:
            return None
        offset, length = self._places[key]
        answer: dict[str, Any] = json.loads(os.pread(self._file.fileno(), length, offset))["answer"]
        return answer

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Keep an answer; raises OSError when the disk is full, and leaves no half of a line then."""
        text = json.dumps({"key": key, "answer": answer}, ensure_ascii=False) + "\n"
        line = text.encode("utf-8", "backslashreplace")
        file = self._file.fileno()
        end = os.fstat(file).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(file, line[written:])
            os.fsync(file)
        except OSError as error:
            os.ftruncate(file, end)
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._places[key] = end, len(line)

    def _read(self) -> None:
        end = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    row = json.loads(line)
                    key, _ = row["key"], row["answer"]
                    self._places[key] = end, len(line)
                except (ValueError, KeyError, TypeError) as error:
                    raise LlmError(
                        f"{self._path}:{number}: not an answer that was kept here; name another cache, or remove the "
                        "file"
                    ) from error
                end += len(line)
        os.ftruncate(self._file.fileno(), end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
