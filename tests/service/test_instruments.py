import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from service.board import Board, State
from service.instruments import Instruments

BOUNDS = (0.5, 1, 2.5)
kinds = st.sampled_from(["counter", "gauge", "histogram"])
names = st.sampled_from(["a", 'b "quoted"\n', "é"])
amounts = st.floats(min_value=0, max_value=5)


def define(board: Board, slot: int) -> tuple[Instruments, dict]:
    instruments = Instruments(board, slot)
    families = {
        "counter": instruments.counter("x_total", "words", "name"),
        "gauge": instruments.gauge("y", "more words", "name"),
        "histogram": instruments.histogram("z_seconds", "seconds", BOUNDS, "name"),
    }
    return instruments, families


def text(*collectors: Instruments) -> bytes:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return generate_latest(registry)


@given(st.lists(st.tuples(kinds, names, amounts)))
def test_the_text_is_what_prometheus_client_writes_for_its_own(updates):
    prometheus_client.disable_created_metrics()
    registry = CollectorRegistry()
    theirs = {
        "counter": prometheus_client.Counter("x_total", "words", ["name"], registry=registry),
        "gauge": prometheus_client.Gauge("y", "more words", ["name"], registry=registry),
        "histogram": prometheus_client.Histogram("z_seconds", "seconds", ["name"], registry=registry, buckets=BOUNDS),
    }
    instruments, ours = define(Board(), 0)
    for kind, name, amount in updates:
        for families in (ours, theirs):
            update = {"counter": "inc", "gauge": "set", "histogram": "observe"}[kind]
            getattr(families[kind].labels(name), update)(amount)
    assert text(instruments) == generate_latest(registry)


def values(instruments: Instruments) -> dict[str, float]:
    return {sample.name: sample.value for family in instruments.collect() for sample in family.samples}


def test_several_processes_are_summed_and_only_the_gauges_of_the_dead_go():
    board = Board(2)
    for slot, amount in ((0, 1), (1, 3)):
        _, families = define(board, slot)
        families["counter"].labels("a").inc(amount)
        families["gauge"].labels("a").set(amount)
        families["histogram"].labels("a").observe(amount)
        board.report(slot, State.READY)
    for slot in range(3):  # whoever is asked, the supervisor too
        shown = values(define(board, slot)[0])
        assert (shown["x_total"], shown["y"], shown["z_seconds_count"], shown["z_seconds_sum"]) == (4, 4, 2, 4)
    board.report(1, State.ABSENT)
    shown = values(define(board, 0)[0])
    assert (shown["x_total"], shown["y"], shown["z_seconds_count"]) == (4, 1, 2)


def test_a_process_goes_on_where_the_one_before_it_in_its_slot_stopped():
    board = Board(2)
    for _ in range(3):
        instruments, families = define(board, 1)
        families["counter"].labels("a").inc()
        families["counter"].labels("b").inc(10)
        assert families["gauge"].labels("a") is not None  # zero again
        assert values(instruments)["y"] == 0
        families["gauge"].labels("a").set(5)
    samples = [s for family in instruments.collect() for s in family.samples if s.name == "x_total"]
    assert [(s.labels["name"], s.value) for s in samples] == [("a", 3), ("b", 30)]


def test_the_least_can_be_shown_instead_of_the_sum():
    board = Board(2)
    for slot, value in ((0, 1), (1, 0)):
        instruments = Instruments(board, slot)
        instruments.gauge("ready", "words", merge=min).labels().set(value)
        board.report(slot, State.READY)
    assert values(instruments) == {"ready": 0}


def test_gauges_with_a_function_are_read_when_they_are_shown():
    instruments, families = define(Board(), 0)
    now = [1.0]
    families["gauge"].labels("a").set_function(lambda: now[0])
    now[0] = 7
    assert values(instruments)["y"] == 7


def test_a_wrong_number_of_labels_is_refused():
    _, families = define(Board(), 0)
    with pytest.raises(ValueError, match="x_total: found 2 values, expected name"):
        families["counter"].labels("a", "b")


def test_a_full_page_is_refused():
    page = Board().page(0)
    page.add(("big",), 65_535)
    with pytest.raises(RuntimeError, match="no room for metric"):
        page.add(("more",), 2)
