"""The queue's invariants, held against a plain model of what it must do, over random sequences of everything."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.engine.queue import BatchQueue, Entry, EntryState, Priority

# Whole seconds and few lengths: what meets its deadline exactly, or is as old or as long as another, is of interest.
ENTRIES = st.lists(
    st.tuples(st.integers(1, 12), st.sampled_from(Priority), st.none() | st.integers(1, 4)), min_size=1, max_size=6
)


class QueueMachine(RuleBasedStateMachine):
    """`waiting` is the model: every entry that waits, in the order in which they came."""

    @initialize(
        capacity=st.integers(3, 20),
        capacity_tokens=st.integers(10, 150),
        size=st.integers(1, 6),
        tokens=st.integers(1, 50),
        padding=st.integers(0, 12),
        aging_s=st.integers(0, 4),
        delay_s=st.sampled_from([0, 0, 1]),
    )
    def begin(self, capacity, capacity_tokens, size, tokens, padding, aging_s, delay_s):
        self.capacity, self.capacity_tokens, self.size, self.tokens = capacity, capacity_tokens, size, tokens
        self.padding, self.aging_s, self.delay_s = padding, aging_s, delay_s
        self.target: BatchQueue[Entry] = BatchQueue(
            capacity_entries=capacity,
            capacity_tokens=capacity_tokens,
            max_batch_size=size,
            max_batch_tokens=tokens,
            max_padding_tokens=padding,
            bulk_aging_s=aging_s,
            max_delay_s=delay_s,
        )
        self.now_s = 100
        self.waiting: list[tuple[Entry, float]] = []  # with when it came
        self.reserved = 0

    def aged(self, item):
        """What orders entries; of equals the one that came first goes first."""
        entry, came_s = item
        bulk = entry.priority is Priority.BULK
        return came_s + (self.aging_s if bulk else 0), bulk

    def wanted(self):
        return [item for item in self.waiting if item[0].deadline_s is None or self.now_s < item[0].deadline_s]

    def fits(self, count):
        return len(self.waiting) + self.reserved + count <= self.capacity

    @rule(count=st.integers(1, 8))
    def reserve(self, count):
        fits = self.fits(count)
        assert (self.target.reserve(count) is None) == fits
        self.reserved += count if fits else 0

    @precondition(lambda self: self.reserved)
    @rule()
    def release(self):
        self.target.release(1)
        self.reserved -= 1

    @rule(of_request=ENTRIES)
    def submit(self, of_request):
        entries = [
            Entry(length, priority, None if due_s is None else self.now_s + due_s)
            for length, priority, due_s in of_request
        ]
        fits = self.fits(len(entries))
        assert (self.target.reserve(len(entries)) is None) == fits
        if fits:
            tokens = sum(entry.tokens for entry in entries)
            admitted = sum(entry.tokens for entry, _ in self.waiting) + tokens <= self.capacity_tokens
            assert (self.target.admit(entries, self.now_s) is None) == admitted
            self.waiting += [(entry, self.now_s) for entry in entries if admitted]

    @rule(which=st.sets(st.integers(0, 19)))
    def cancel(self, which):
        gone = [entry for number, (entry, _) in enumerate(self.waiting) if number in which]
        assert self.target.drop(gone) == len(gone)
        self.waiting = [item for item in self.waiting if item[0] not in gone]

    @rule(seconds=st.integers(0, 3))
    def time_passes(self, seconds):
        self.now_s += seconds

    @rule(ahead=st.booleans())
    def next_batch(self, ahead):
        wanted = self.wanted()
        formed = self.target.next_batch(self.now_s, ahead=ahead)
        still_wanted = [entry for entry, _ in wanted]
        for entry in formed.entries:  # waiting, and neither cancelled nor past its deadline
            assert entry in still_wanted
            assert entry.state is EntryState.TAKEN
        for entry in formed.expired:
            assert entry in [entry for entry, _ in self.waiting]
            assert entry not in still_wanted
        assert len({*map(id, formed.entries)}) == len(formed.entries)
        if formed.entries:
            assert formed.entries[0] is min(wanted, key=self.aged)[0]  # `min` keeps the order they came in
            self.check_shape(formed.entries)
        elif not ahead and not formed.expired:
            self.check_nothing(formed.ask_again_s)
        gone = formed.entries + formed.expired
        self.waiting = [item for item in self.waiting if item[0] not in gone]

    def check_shape(self, entries):
        lengths = [entry.tokens for entry in entries]
        assert len(entries) <= self.size
        assert len(entries) == 1 or max(lengths) * len(entries) <= self.tokens
        for rows in range(2, len(lengths) + 1):
            padding = [max(lengths[:count]) * count - sum(lengths[:count]) for count in (rows - 1, rows)]
            assert padding[1] - padding[0] <= self.padding

    def check_nothing(self, ask_again_s):
        if not self.wanted():
            assert ask_again_s is None
            return
        oldest_s = min(came_s for _, came_s in self.wanted())
        assert self.delay_s
        assert self.now_s < ask_again_s <= oldest_s + self.delay_s + 1e-9

    @rule()
    def run_all(self):
        """Nobody waits for more batches than there are entries before it in the order of age."""
        self.now_s += self.delay_s
        order = [entry for entry, _ in sorted(self.wanted(), key=self.aged)]
        batches = 0
        while entries := self.target.next_batch(self.now_s).entries:
            assert all(batches <= order.index(entry) for entry in entries)
            batches += 1
        assert self.target.waiting_entries == 0
        self.waiting = []

    @invariant()
    def counts(self):
        if hasattr(self, "target"):
            assert self.target.waiting_entries == len(self.waiting) <= self.capacity
            assert self.target.waiting_tokens == sum(entry.tokens for entry, _ in self.waiting) <= self.capacity_tokens
            assert self.target.reserved_entries == self.reserved


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
