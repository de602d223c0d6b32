"""Decides which entries are admitted and which go together; no clock, no lock, no device, no event loop.

A request passes in two steps, because tokenization lies between them: `reserve` takes places by number of entries,
`admit` turns the reservation into waiting entries once their tokens are known, all or none.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

T = TypeVar("T")


class EntryState(StrEnum):
    """NEW → WAITING → RUNNING → DONE, or WAITING → DROPPED."""

    NEW = "new"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    DROPPED = "dropped"


class Refusal(StrEnum):
    """Why a request is not admitted."""

    ENTRIES_NOW = "entries-now"  # too many entries wait at the moment
    TOKENS_NOW = "tokens-now"  # too many tokens wait at the moment
    ENTRIES_EVER = "entries-ever"  # more entries than the queue holds when empty
    TOKENS_EVER = "tokens-ever"  # more tokens than the queue holds when empty


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    """One input of one request; `item` is the caller's and never looked at here."""

    item: T
    tokens: int
    state: EntryState = EntryState.NEW


class BatchQueue(Generic[T]):
    """First in, first out, bounded by entries and by tokens.

    `capacity_entries` and `capacity_tokens` bound what waits; `max_batch_size` (rows) and `max_batch_tokens`
    (longest × rows, padding included) bound what goes together. The oldest entry always goes, however long.
    """

    def __init__(
        self, *, capacity_entries: int, capacity_tokens: int, max_batch_size: int, max_batch_tokens: int
    ) -> None:
        self._capacity_entries = capacity_entries
        self._capacity_tokens = capacity_tokens
        self._max_batch_size = max_batch_size
        self._max_batch_tokens = max_batch_tokens
        self._waiting: dict[int, Entry[T]] = {}  # id(entry) -> entry, oldest first; removal anywhere is O(1)
        self._reserved = 0
        self._tokens = 0

    @property
    def waiting_entries(self) -> int:
        """Number of entries that wait for a batch."""
        return len(self._waiting)

    @property
    def reserved_entries(self) -> int:
        """Number of places taken by requests in tokenization."""
        return self._reserved

    @property
    def waiting_tokens(self) -> int:
        """Number of tokens that wait for a batch, without padding."""
        return self._tokens

    def reserve(self, count: int) -> Refusal | None:
        """Take `count` places, or none of them and say why."""
        if count > self._capacity_entries:
            return Refusal.ENTRIES_EVER
        if len(self._waiting) + self._reserved + count > self._capacity_entries:
            return Refusal.ENTRIES_NOW
        self._reserved += count
        return None

    def release(self, count: int) -> None:
        """Give back `count` reserved places."""
        assert 0 <= count <= self._reserved, "released more places than were reserved"  # noqa: S101
        self._reserved -= count

    def admit(self, entries: Sequence[Entry[T]]) -> Refusal | None:
        """Let reserved entries wait, all or none; their reservation ends either way."""
        self.release(len(entries))
        tokens = sum(entry.tokens for entry in entries)
        if tokens > self._capacity_tokens:
            return Refusal.TOKENS_EVER
        if self._tokens + tokens > self._capacity_tokens:
            return Refusal.TOKENS_NOW
        for entry in entries:
            entry.state = EntryState.WAITING
            self._waiting[id(entry)] = entry
        self._tokens += tokens
        return None

    def next_batch(self) -> list[Entry[T]]:
        """Take the oldest entries that fit together, in order; empty when nothing waits."""
        batch: list[Entry[T]] = []
        longest = 0
        for entry in self._waiting.values():
            longest = max(longest, entry.tokens)
            rows = len(batch) + 1
            if rows > self._max_batch_size or (batch and longest * rows > self._max_batch_tokens):
                break
            batch.append(entry)
        for entry in batch:
            self._remove(entry, EntryState.RUNNING)
        return batch

    def finish(self, entries: Iterable[Entry[T]]) -> None:
        """Mark a batch as run, whatever came of it."""
        for entry in entries:
            entry.state = EntryState.DONE

    def drop(self, entries: Iterable[Entry[T]]) -> None:
        """Forget those of `entries` that still wait: nobody wants them any more."""
        for entry in entries:
            if entry.state is EntryState.WAITING:
                self._remove(entry, EntryState.DROPPED)

    def drain_estimate_s(self, tokens_per_s: float | None) -> int:
        """Return whole seconds, 1 to 60, until what waits is gone at the measured rate (None: not measured yet)."""
        if not tokens_per_s:
            return 1
        return max(1, min(60, math.ceil(self._tokens / tokens_per_s)))

    def _remove(self, entry: Entry[T], state: EntryState) -> None:
        del self._waiting[id(entry)]
        self._tokens -= entry.tokens
        entry.state = state
