"""Decides which entries are admitted and which go together; no clock, no lock, no device, no event loop.

A request passes in two steps, because tokenization lies between them: `reserve` takes places by number of entries,
`admit` turns the reservation into waiting entries once their tokens are known, all or none. Times are seconds on
whatever clock the caller passes as `now_s`, which must not go backwards.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

_LOOKAHEAD = 4  # batches of the oldest entries of each priority that are searched for ones of like length
_WORTH_AHEAD = 4  # times what a call costs whatever is in it: of such a batch it is at most a fifth


class Priority(StrEnum):
    """What a caller waits for, and what it does not; in the order in which a batch is filled."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


class EntryState(StrEnum):
    """NEW → WAITING → TAKEN (into a batch), or WAITING → EXPIRED or DROPPED."""

    NEW = "new"
    WAITING = "waiting"
    TAKEN = "taken"
    EXPIRED = "expired"
    DROPPED = "dropped"


class Refusal(StrEnum):
    """Why a request is not admitted."""

    ENTRIES_NOW = "entries-now"  # too many entries wait at the moment
    TOKENS_NOW = "tokens-now"  # too many tokens wait at the moment
    ENTRIES_EVER = "entries-ever"  # more entries than the queue holds when empty
    TOKENS_EVER = "tokens-ever"  # more tokens than the queue holds when empty


class Entry:
    """One input of one request; callers put what they need of it into a subclass."""

    __slots__ = ("admitted_s", "aged_s", "deadline_s", "priority", "state", "tokens")

    def __init__(self, tokens: int, priority: Priority = Priority.INTERACTIVE, deadline_s: float | None = None) -> None:
        self.tokens = tokens
        self.priority = priority
        self.deadline_s = deadline_s
        self.state = EntryState.NEW
        self.admitted_s = 0.0
        self.aged_s = 0.0  # its place in the order of age: later than `admitted_s` for bulk


E = TypeVar("E", bound=Entry)


class Formed(NamedTuple, Generic[E]):
    """What `next_batch` found."""

    entries: list[E]  # the batch; empty when nothing is to run now
    expired: list[E]  # past their deadline, taken out of the queue
    ask_again_s: float | None  # when a batch that waits for more entries is due


class BatchQueue(Generic[E]):
    """Waiting entries, bounded by entries and by tokens.

    `capacity_entries` and `capacity_tokens` bound what waits; `max_batch_size` (rows) and `max_batch_tokens`
    (longest × rows, padding included) bound what goes together. The oldest entry goes into the next batch, however
    long it is, where a bulk entry counts as `bulk_aging_s` younger than it is: it goes after every interactive entry
    that came up to so much later, and before the others. The batch is filled with entries of like length, each of
    which adds at most `max_padding_tokens` of padding: what a call costs whatever is in it, in tokens. With
    `max_delay_s` a batch that is not full waits until an entry has waited that long.
    """

    def __init__(
        self,
        *,
        capacity_entries: int,
        capacity_tokens: int,
        max_batch_size: int,
        max_batch_tokens: int,
        max_padding_tokens: int,
        bulk_aging_s: float,
        max_delay_s: float = 0.0,
    ) -> None:
        self._capacity_entries = capacity_entries
        self._capacity_tokens = capacity_tokens
        self._max_batch_size = max_batch_size
        self._max_batch_tokens = max_batch_tokens
        self._max_padding_tokens = max_padding_tokens
        self._aging_s = {Priority.INTERACTIVE: 0.0, Priority.BULK: bulk_aging_s}
        self._max_delay_s = max_delay_s
        # oldest first; removal anywhere is O(1), and so is finding the first
        self._waiting: dict[Priority, OrderedDict[E, None]] = {priority: OrderedDict() for priority in Priority}
        self._entries = 0
        self._reserved = 0
        self._tokens = 0

    @property
    def waiting_entries(self) -> int:
        """Number of entries that wait for a batch."""
        return self._entries

    @property
    def capacity_entries(self) -> int:
        """Most entries that may wait."""
        return self._capacity_entries

    def oldest_wait_s(self, now_s: float) -> float:
        """Return how long the entry has waited that has waited longest."""
        heads = [next(iter(waiting)) for waiting in self._waiting.values() if waiting]
        return max((now_s - head.admitted_s for head in heads), default=0.0)

    @property
    def reserved_entries(self) -> int:
        """Number of places taken by requests in tokenization."""
        return self._reserved

    @property
    def waiting_tokens(self) -> int:
        """Number of tokens that wait for a batch, without padding."""
        return self._tokens

    @property
    def full(self) -> bool:
        """Whether there is no room for a single entry more."""
        return self._entries + self._reserved >= self._capacity_entries or self._tokens >= self._capacity_tokens

    def reserve(self, count: int) -> Refusal | None:
        """Take `count` places, or none of them and say why."""
        if count > self._capacity_entries:
            return Refusal.ENTRIES_EVER
        if self._entries + self._reserved + count > self._capacity_entries:
            return Refusal.ENTRIES_NOW
        self._reserved += count
        return None

    def release(self, count: int) -> None:
        """Give back `count` reserved places."""
        assert 0 <= count <= self._reserved, "released more places than were reserved"  # noqa: S101
        self._reserved -= count

    def admit(self, entries: Sequence[E], now_s: float, reserved: int | None = None) -> Refusal | None:
        """Let reserved entries wait, all or none; their reservation ends either way.

        `reserved` is the number of places taken for them, where they turned out to be more.
        """
        self.release(len(entries) if reserved is None else reserved)
        if len(entries) > self._capacity_entries:
            return Refusal.ENTRIES_EVER
        if self._entries + self._reserved + len(entries) > self._capacity_entries:
            return Refusal.ENTRIES_NOW
        tokens = sum([entry.tokens for entry in entries])
        if tokens > self._capacity_tokens:
            return Refusal.TOKENS_EVER
        if self._tokens + tokens > self._capacity_tokens:
            return Refusal.TOKENS_NOW
        for entry in entries:
            entry.state = EntryState.WAITING
            entry.admitted_s = now_s
            entry.aged_s = now_s + self._aging_s[entry.priority]
            self._waiting[entry.priority][entry] = None
        self._entries += len(entries)
        self._tokens += tokens
        return None

    def next_batch(self, now_s: float, *, ahead: bool = False) -> Formed[E]:
        """Take the oldest entry and those that go well with it, unless they should wait for more.

        With `ahead` no session is free yet: only a batch that gains little from what may come until then. Entries
        past their deadline never go; those met on the way are handed back. When there is neither a batch nor anything
        expired, nothing is to be done before something changes, or until `ask_again_s`.
        """
        expired: list[E] = []
        oldest = self._oldest(now_s, expired)
        if oldest is None:
            return Formed([], expired, None)
        entries = self._fill(oldest, now_s, expired)
        longest = max([entry.tokens for entry in entries])
        rows = len(entries)
        if rows < self._max_batch_size and longest * (rows + 1) <= self._max_batch_tokens:  # not full
            if ahead and longest * rows < _WORTH_AHEAD * self._max_padding_tokens:
                return Formed([], expired, None)
            if self._max_delay_s:
                heads = [next(iter(waiting)) for waiting in self._waiting.values() if waiting]
                due_s = min(head.admitted_s for head in heads) + self._max_delay_s
                if now_s < due_s:
                    return Formed([], expired, due_s)
        for entry in entries:
            self._remove(entry, EntryState.TAKEN)
        return Formed(entries, expired, None)

    def drop(self, entries: Iterable[E]) -> int:
        """Forget those of `entries` that still wait, because nobody wants them any more; return how many."""
        dropped = 0
        for entry in entries:
            if entry.state is EntryState.WAITING:
                self._remove(entry, EntryState.DROPPED)
                dropped += 1
        return dropped

    def drain_estimate_s(self, tokens_per_s: float | None) -> int:
        """Return whole seconds, 1 to 60, until what waits is gone at the measured rate (None: not measured yet)."""
        if not tokens_per_s:
            return 1
        return max(1, min(60, math.ceil(self._tokens / tokens_per_s)))

    def _oldest(self, now_s: float, expired: list[E]) -> E | None:
        """Return the entry whose turn it is; moves those before it that are past their deadline to `expired`."""
        oldest: E | None = None
        for waiting in self._waiting.values():
            while waiting:
                head = next(iter(waiting))
                if head.deadline_s is None or now_s < head.deadline_s:
                    if oldest is None or head.aged_s < oldest.aged_s:
                        oldest = head
                    break
                self._expire(head, expired)
        return oldest

    def _fill(self, oldest: E, now_s: float, expired: list[E]) -> list[E]:
        """Return a batch of `oldest` and those nearest to it in length, interactive ones first."""
        entries = [oldest]
        longest = length = oldest.tokens
        size, budget, allowed = self._max_batch_size, self._max_batch_tokens, self._max_padding_tokens
        for waiting in self._waiting.values():
            near = list(islice(waiting, _LOOKAHEAD * size))
            if len(near) > 1:
                near.sort(key=lambda entry: abs(entry.tokens - length))  # stable: the older first among equals
            for entry in near:
                rows = len(entries)
                if rows == size or entry.tokens - length > allowed or length - entry.tokens > allowed:
                    break  # the others of this priority are further away
                if entry is oldest:
                    continue
                new_longest = entry.tokens if entry.tokens > longest else longest
                padded = new_longest * (rows + 1)
                if padded > budget or padded - longest * rows - entry.tokens > allowed:
                    continue
                if entry.deadline_s is not None and entry.deadline_s <= now_s:
                    self._expire(entry, expired)
                    continue
                entries.append(entry)
                longest = new_longest
        return entries

    def _expire(self, entry: E, expired: list[E]) -> None:
        self._remove(entry, EntryState.EXPIRED)
        expired.append(entry)

    def _remove(self, entry: E, state: EntryState) -> None:
        del self._waiting[entry.priority][entry]
        self._entries -= 1
        self._tokens -= entry.tokens
        entry.state = state
