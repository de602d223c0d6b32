"""Memory that the supervisor and its worker processes share: who is ready, and everybody's numbers.

The memory is anonymous and inherited by `fork`: no files, nothing to clean up. Each worker has a slot, and the
supervisor the last one; only its owner writes to a slot. A worker that takes the slot of one that died goes on from its
numbers, so that counters never fall.
"""

import json
import mmap
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TypeAlias

_STATES_BYTES = 4096
_KEYS_BYTES = 1 << 20
_NUMBERS = 1 << 16  # float64
_SLOT_BYTES = _KEYS_BYTES + 8 * _NUMBERS  # pages that are never written take no memory

Key: TypeAlias = tuple[str, ...]
Numbers: TypeAlias = "memoryview[float]"


class State(IntEnum):
    """What a worker is doing; a slot whose process is gone is ABSENT."""

    ABSENT = 0
    STARTING = 1
    READY = 2
    LEAVING = 3


class Page:
    """One slot's numbers: rows of float64, each with a key. Rows can be added, never removed."""

    def __init__(self, keys: memoryview, numbers: Numbers) -> None:
        self.numbers = numbers
        self._keys = keys  # the first 8 bytes hold the length of the text after them: a JSON list a line
        self._used = keys[:8].cast("Q")

    def rows(self) -> dict[Key, range]:
        """Return where each row lies in `numbers`."""
        rows, begin = {}, 0
        for line in bytes(self._keys[8 : 8 + self._used[0]]).splitlines():
            width, *key = json.loads(line)
            rows[tuple(key)] = range(begin, begin + width)
            begin += width
        return rows

    def add(self, key: Key, width: int) -> int:
        """Add a row of `width` zeros, unless there is one with this key, and return where it begins."""
        rows = self.rows()
        if key in rows:
            return rows[key].start
        begin = sum(map(len, rows.values()))
        line = json.dumps([width, *key]).encode() + b"\n"
        end = 8 + self._used[0] + len(line)
        if end > len(self._keys) or begin + width > len(self.numbers):
            raise RuntimeError(f"no room for metric {key} after {len(rows)} others")
        self._keys[end - len(line) : end] = line
        self._used[0] += len(line)  # last: from now on others read it
        return begin


class Board:
    """States and pages of `workers` processes and their supervisor. Create it before the first fork."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self._memory = memoryview(mmap.mmap(-1, _STATES_BYTES + (workers + 1) * _SLOT_BYTES))
        self._states = self._memory[:_STATES_BYTES].cast("q")  # the supervisor's entry says that all were ready once
        if workers >= len(self._states):
            raise ValueError(f"found {workers} workers, expected fewer than {len(self._states)}")

    def page(self, slot: int) -> Page:
        """Return the page of a worker, or of the supervisor in slot `workers`."""
        begin = _STATES_BYTES + slot * _SLOT_BYTES
        numbers: Numbers = self._memory[begin + _KEYS_BYTES : begin + _SLOT_BYTES].cast("d")
        return Page(self._memory[begin : begin + _KEYS_BYTES], numbers)

    def state(self, slot: int) -> State:
        """Return what a worker is doing."""
        return State(self._states[slot])

    def report(self, slot: int, state: State) -> None:
        """Say what a worker is doing."""
        self._states[slot] = state

    @property
    def opened(self) -> bool:
        """Whether all workers have been ready at the same time once; from then on each answers for itself."""
        return self.workers == 1 or bool(self._states[self.workers])

    def open(self) -> None:
        """Say that all workers are ready."""
        self._states[self.workers] = 1


@dataclass(frozen=True)
class Seat:
    """A worker's place at a board. The default is that of a process without a supervisor, alone at its own."""

    board: Board = field(default_factory=Board)
    slot: int = 0
    folder: Path | None = None
    """Where workers leave each other word; None where there is none."""

    def report(self, state: State) -> None:
        """Say what this worker is doing."""
        self.board.report(self.slot, state)
