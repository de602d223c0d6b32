import pytest

from service.engine.queue import BatchQueue, Entry, EntryState, Priority, Refusal

BULK = Priority.BULK


def queue(**changes: object) -> BatchQueue[Entry]:
    """A small queue that puts any lengths together."""
    bounds = {
        "capacity_entries": 10,
        "capacity_tokens": 100,
        "max_batch_size": 4,
        "max_batch_tokens": 20,
        "max_padding_tokens": 100,
        "bulk_aging_s": 10.0,
    }
    return BatchQueue(**(bounds | changes))


def admit(target: BatchQueue[Entry], *tokens: int, now_s: float = 0.0, **options: object) -> list[Entry]:
    entries = [Entry(count, **options) for count in tokens]
    assert target.reserve(len(entries)) is None
    assert target.admit(entries, now_s) is None
    return entries


def batch(target: BatchQueue[Entry], now_s: float = 0.0) -> list[Entry]:
    formed = target.next_batch(now_s)
    assert formed.expired == []
    return formed.entries


def test_entries_of_one_length_go_in_the_order_they_came():
    target = queue()
    entries = admit(target, 2, 2, 2, 2, 2, 2)
    assert batch(target) == entries[:4]
    assert batch(target) == entries[4:]
    assert batch(target) == []


def test_padding_counts_towards_the_tokens_of_a_batch():
    target = queue(max_batch_tokens=20)
    entries = admit(target, 10, 2, 11)  # 2 rows of 10 fit, 2 of 11 do not
    assert batch(target) == entries[:2]
    assert batch(target) == entries[2:]


def test_the_oldest_goes_however_long_it_is():
    target = queue(max_batch_tokens=20)
    entries = admit(target, 50, 1)
    assert batch(target) == entries[:1]


def test_the_batch_is_filled_with_the_nearest_in_length_not_the_oldest():
    target = queue(max_batch_size=3, max_batch_tokens=100)
    oldest, short, _, near, same = admit(target, 10, 2, 30, 11, 10)
    assert batch(target) == [oldest, same, near]
    assert batch(target)[0] is short


@pytest.mark.parametrize(("lengths", "together"), [((10, 14), 2), ((10, 15), 1), ((14, 10), 2), ((10, 10, 13), 2)])
def test_no_entry_adds_more_padding_than_allowed(lengths, together):
    """The last would make the two before it 3 tokens longer each."""
    target = queue(max_padding_tokens=4, max_batch_tokens=100)
    entries = admit(target, *lengths)
    assert batch(target) == entries[:together]


def test_interactive_goes_before_bulk_and_bulk_fills_the_rest():
    target = queue(max_batch_size=2)
    bulk = admit(target, 2, 2, 2, priority=BULK)
    interactive = admit(target, 2, now_s=1.0)
    assert batch(target, 1.0) == [interactive[0], bulk[0]]
    assert batch(target, 1.0) == bulk[1:]


def test_bulk_overtakes_interactive_that_came_later_than_the_aging():
    target = queue(max_batch_size=1, bulk_aging_s=10.0)
    (bulk,) = admit(target, 2, now_s=0.0, priority=BULK)
    (sooner,) = admit(target, 2, now_s=9.0)
    (later,) = admit(target, 2, now_s=11.0)
    assert [batch(target, 12.0)[0] for _ in range(3)] == [sooner, bulk, later]


def test_a_request_is_admitted_whole_or_not_at_all():
    target = queue(capacity_entries=5, capacity_tokens=20)
    admit(target, 4, 4, 4)
    assert target.reserve(3) is Refusal.ENTRIES_NOW
    assert target.reserve(2) is None
    refused = [Entry(1), Entry(8)]
    assert target.admit(refused, 0.0) is Refusal.TOKENS_NOW
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
    assert target.admit([Entry(21)], 0.0) is Refusal.TOKENS_EVER


def test_dropped_entries_free_their_places_and_never_run():
    target = queue()
    entries = admit(target, 5, 5, 5)
    assert target.drop(entries[:2]) == 2
    assert (target.waiting_entries, target.waiting_tokens) == (1, 5)
    assert batch(target) == entries[2:]
    assert target.drop(entries) == 0  # too late for the last, harmless for the others
    assert [entry.state for entry in entries] == [EntryState.DROPPED, EntryState.DROPPED, EntryState.TAKEN]


def test_entries_past_their_deadline_are_handed_back_and_never_run():
    target = queue()
    (late,) = admit(target, 2, deadline_s=5.0)
    (also_late,) = admit(target, 2, now_s=1.0, deadline_s=5.0)
    (in_time,) = admit(target, 2, now_s=1.0, deadline_s=5.1)
    formed = target.next_batch(5.0)
    assert formed.entries == [in_time]
    assert formed.expired == [late, also_late]
    assert {late.state, also_late.state} == {EntryState.EXPIRED}
    assert (target.waiting_entries, target.waiting_tokens) == (0, 0)


def test_a_batch_waits_for_more_only_when_told_to_and_never_when_full():
    target = queue(max_delay_s=2.0)
    first = admit(target, 2, now_s=10.0)
    assert target.next_batch(10.5) == ([], [], 12.0)
    more = admit(target, 2, 2, now_s=11.0)
    assert target.next_batch(11.9) == ([], [], 12.0)
    assert target.waiting_entries == 3
    assert batch(target, 12.0) == first + more
    assert batch(target, 12.0) == []
    full = admit(target, 2, 2, 2, 2, now_s=20.0)
    assert batch(target, 20.0) == full
    long = admit(target, 11, now_s=30.0)  # no second one as long would fit
    assert batch(target, 30.0) == long


def test_the_delay_counts_from_the_entry_that_waits_longest_of_both_priorities():
    target = queue(max_delay_s=2.0)
    admit(target, 2, now_s=10.0, priority=BULK)
    admit(target, 2, now_s=11.0)
    assert target.next_batch(11.5).ask_again_s == 12.0


def test_ahead_of_time_only_a_batch_that_gains_little_by_waiting():
    target = queue(max_padding_tokens=2, max_batch_tokens=100)  # so a call costs as much as 2 tokens
    entries = admit(target, 2, 2, 2)
    assert target.next_batch(0.0, ahead=True) == ([], [], None)
    entries += admit(target, 2)
    assert target.next_batch(0.0, ahead=True).entries == entries
    long = admit(target, 8)
    assert target.next_batch(0.0, ahead=True).entries == long


def test_drain_estimate_is_tokens_over_rate_between_1_and_60_seconds():
    target = queue(capacity_tokens=10_000)
    assert target.drain_estimate_s(100.0) == 1
    admit(target, 250)
    assert target.drain_estimate_s(100.0) == 3
    assert target.drain_estimate_s(1.0) == 60
    assert target.drain_estimate_s(None) == 1
