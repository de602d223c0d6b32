from hypothesis import given
from hypothesis import strategies as st

from service.engine.queue import BatchQueue, Entry, EntryState, Refusal


def queue(**changes: int) -> BatchQueue[int]:
    bounds = {"capacity_entries": 10, "capacity_tokens": 100, "max_batch_size": 4, "max_batch_tokens": 20}
    return BatchQueue(**(bounds | changes))


def admit(target: BatchQueue[int], *tokens: int) -> list[Entry[int]]:
    entries = [Entry(number, count) for number, count in enumerate(tokens)]
    assert target.reserve(len(entries)) is None
    assert target.admit(entries) is None
    return entries


def test_batches_are_first_in_first_out():
    target = queue()
    entries = admit(target, 2, 2, 2, 2, 2, 2)
    assert target.next_batch() == entries[:4]
    assert target.next_batch() == entries[4:]
    assert target.next_batch() == []


def test_padding_counts_towards_the_tokens_of_a_batch():
    target = queue(max_batch_tokens=20)
    entries = admit(target, 2, 2, 10, 1)  # 3 rows of 10 would be 30
    assert target.next_batch() == entries[:2]
    assert target.next_batch() == entries[2:]


def test_the_oldest_goes_however_long_it_is():
    target = queue(max_batch_tokens=20)
    entries = admit(target, 50, 1)
    assert target.next_batch() == entries[:1]


def test_a_request_is_admitted_whole_or_not_at_all():
    target = queue(capacity_entries=5, capacity_tokens=20)
    admit(target, 4, 4, 4)
    assert target.reserve(3) is Refusal.ENTRIES_NOW
    assert target.reserve(2) is None
    refused = [Entry(0, 1), Entry(1, 8)]
    assert target.admit(refused) is Refusal.TOKENS_NOW
    assert [entry.state for entry in refused] == [EntryState.NEW, EntryState.NEW]
    assert (target.waiting_entries, target.waiting_tokens, target.reserved_entries) == (3, 12, 0)


def test_reservations_count_towards_the_bound():
    target = queue(capacity_entries=5)
    assert target.reserve(3) is None
    assert target.reserve(3) is Refusal.ENTRIES_NOW
    target.release(3)
    assert target.reserve(3) is None


def test_a_request_larger_than_the_empty_queue_is_told_that_waiting_does_not_help():
    target = queue(capacity_entries=5, capacity_tokens=20)
    assert target.reserve(6) is Refusal.ENTRIES_EVER
    assert target.reserve(1) is None
    assert target.admit([Entry(0, 21)]) is Refusal.TOKENS_EVER


def test_dropped_entries_free_their_places_and_never_run():
    target = queue()
    entries = admit(target, 5, 5, 5)
    target.drop(entries[:2])
    assert (target.waiting_entries, target.waiting_tokens) == (1, 5)
    assert target.next_batch() == entries[2:]
    target.drop(entries)  # too late for the last, harmless for the others
    assert [entry.state for entry in entries] == [EntryState.DROPPED, EntryState.DROPPED, EntryState.RUNNING]
    target.finish(entries[2:])
    assert entries[2].state is EntryState.DONE


def test_drain_estimate_is_tokens_over_rate_between_1_and_60_seconds():
    target = queue(capacity_tokens=10_000)
    assert target.drain_estimate_s(100.0) == 1
    admit(target, 250)
    assert target.drain_estimate_s(100.0) == 3
    assert target.drain_estimate_s(1.0) == 60
    assert target.drain_estimate_s(None) == 1


@given(
    requests=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=8), max_size=12),
    capacity=st.integers(1, 20),
    capacity_tokens=st.integers(1, 200),
    size=st.integers(1, 6),
    tokens=st.integers(1, 60),
    drops=st.sets(st.integers(0, 11)),
)
def test_every_admitted_entry_leaves_once_in_order_and_within_the_bounds(
    requests, capacity, capacity_tokens, size, tokens, drops
):
    target = queue(
        capacity_entries=capacity, capacity_tokens=capacity_tokens, max_batch_size=size, max_batch_tokens=tokens
    )
    expected: list[Entry[int]] = []
    for number, lengths in enumerate(requests):
        entries = [Entry(number, length) for length in lengths]
        if target.reserve(len(entries)) is not None or target.admit(entries) is not None:
            continue
        assert target.waiting_entries <= capacity
        assert target.waiting_tokens <= capacity_tokens
        if number in drops:
            target.drop(entries)
        else:
            expected += entries
    out: list[Entry[int]] = []
    while batch := target.next_batch():
        assert len(batch) <= size
        assert len(batch) == 1 or max(entry.tokens for entry in batch) * len(batch) <= tokens
        out += batch
    assert out == expected
    assert (target.waiting_entries, target.waiting_tokens, target.reserved_entries) == (0, 0, 0)
