"""The gate's decisions, each limit alone, and what it says of them."""

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from bundle.manifest import BatchInvariance, Interval
from compress.gate import Measured, SliceDrop, check_gate, failures_table, reasons
from compress.recipe import Gate


def between(low: float, value: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)


EQUAL = BatchInvariance(texts=10, batchings=4, max_difference=0.0, bit_equal=True)
MOVED = BatchInvariance(texts=10, batchings=4, max_difference=0.0123, bit_equal=False)
NONE = between(0, 0, 0)
GOOD = Measured(
    variant="int8",
    dtype="int8",
    metric="micro-F1",
    quality_drop=between(-0.01, 0.02, 0.05),
    recall_drops={"LOC": between(0, 0.01, 0.02), "PER": between(0.02, 0.06, 0.1)},
    slice_drops={"length: long": SliceDrop(30, between(0.01, 0.04, 0.07)), "tiny": SliceDrop(29, between(0, 0.5, 1))},
    label_flips=between(0.005, 0.01, 0.015),
    batch_invariance=EQUAL,
    calibration_error=0.03,
    onnx_bytes=17_700_000,
    latency_ms=2.5,
)
ALL: dict[str, Any] = {
    "max_recall_drop": 0.06,
    "max_slice_drop": 0.04,
    "max_label_flips": 0.01,
    "max_calibration_error": 0.03,
    "max_size_mb": 17.7,
    "max_latency_ms": 2.5,
}


def failing(gate: Gate, measured: Measured) -> list[tuple[str, str]]:
    return [(check.limit_name, check.name) for check in check_gate(gate, measured) if not check.passed]


def test_values_at_their_limits_pass() -> None:
    checks = check_gate(Gate(max_quality_drop=0.02, **ALL), GOOD)
    assert [check.limit_name for check in checks] == [
        "max_quality_drop",
        "max_recall_drop",
        "max_recall_drop",
        "max_slice_drop",
        "max_label_flips",
        "max_calibration_error",
        "max_size_mb",
        "max_latency_ms",
        "batch_invariance",
    ]
    assert all(check.passed and check.missed_by == 0 for check in checks)
    assert reasons(checks) == []


def test_rounding_in_binary_does_not_fail_a_variant() -> None:
    assert 0.9 - 0.87 > 0.03
    assert failing(Gate(max_quality_drop=0.03), dataclasses.replace(GOOD, quality_drop=between(0, 0.9 - 0.87, 1))) == []


@pytest.mark.parametrize(
    ("limit", "value", "name", "missed_by"),
    [
        ("max_quality_drop", 0.015, "micro-F1 drop", 0.005),
        ("max_recall_drop", 0.05, "recall drop of PER", 0.01),
        ("max_slice_drop", 0.03, "micro-F1 drop on length: long", 0.01),
        ("max_label_flips", 0.004, "decisions flipped", 0.006),
        ("max_calibration_error", 0.01, "calibration error", 0.02),
        ("max_size_mb", 10.0, "file size", 7.7),
        ("max_latency_ms", 2.0, "latency of one text", 0.5),
    ],
)
def test_each_limit_alone(limit: str, value: float, name: str, missed_by: float) -> None:
    checks = check_gate(Gate.model_validate({"max_quality_drop": 0.02, **ALL, limit: value}), GOOD)
    [failed] = [check for check in checks if not check.passed]
    assert (failed.limit_name, failed.variant, failed.name, failed.limit) == (limit, "int8", name, value)
    assert failed.missed_by == pytest.approx(missed_by)
    [reason] = reasons(checks)
    assert name in reason
    assert f"gate.{limit} allows {value:g}" in reason


def test_limits_that_are_not_set_are_not_checked() -> None:
    checks = check_gate(Gate(max_label_flips=None, batch_invariance=False), GOOD)
    assert [check.limit_name for check in checks] == ["max_quality_drop"]


def test_what_could_not_be_measured_is_not_judged() -> None:
    unlabeled = dataclasses.replace(
        GOOD, quality_drop=None, recall_drops={}, slice_drops={}, calibration_error=None, latency_ms=None
    )
    checks = check_gate(Gate(**ALL), unlabeled)
    assert [check.limit_name for check in checks] == ["max_label_flips", "max_size_mb", "batch_invariance"]


def test_the_bound_decides_where_there_is_an_interval() -> None:
    gate = Gate(max_quality_drop=0.04, **(ALL | {"max_recall_drop": 0.08, "max_slice_drop": 0.07}), decide_by="bound")
    checks = check_gate(gate, GOOD)
    assert {check.name: check.missed_by for check in checks if not check.passed} == {
        "micro-F1 drop": pytest.approx(0.01),
        "recall drop of PER": pytest.approx(0.02),
        "decisions flipped": pytest.approx(0.005),
    }
    assert reasons(checks)[0] == (
        "micro-F1 drop is 0.02 [-0.01, 0.05], whose upper end counts, and gate.max_quality_drop allows 0.04: "
        "0.01 too much"
    )


def test_only_int8_must_not_depend_on_batch_mates() -> None:
    moved = dataclasses.replace(GOOD, batch_invariance=MOVED)
    assert failing(Gate(), moved) == [("batch_invariance", "change of logits among batch mates")]
    assert reasons(check_gate(Gate(), moved)) == [
        "change of logits among batch mates is 0.0123; gate.batch_invariance allows no change"
    ]
    unlike_by_nothing = dataclasses.replace(
        MOVED and GOOD, batch_invariance=MOVED.model_copy(update={"max_difference": 0.0})
    )
    assert len(failing(Gate(), unlike_by_nothing)) == 1
    assert failing(Gate(batch_invariance=False), moved) == []
    assert failing(Gate(), dataclasses.replace(moved, variant="fp32", dtype="float32")) == []
    with pytest.raises(ValueError, match="variant int8: int8 without a measured batch invariance"):
        check_gate(Gate(), dataclasses.replace(GOOD, batch_invariance=None))


def test_many_failures_of_one_limit_are_told_worst_first_and_counted() -> None:
    drops = {f"label {i}": between(0, i / 100, 1) for i in range(20)}
    checks = check_gate(Gate(max_recall_drop=0.095), dataclasses.replace(GOOD, recall_drops=drops))
    told = reasons(checks)
    assert [reason.split(" is ")[0] for reason in told[:5]] == [f"recall drop of label {i}" for i in range(19, 14, -1)]
    assert told[5:] == ["5 more beyond gate.max_recall_drop"]


def test_the_table_fits_80_columns_and_cuts_nothing() -> None:
    long = "a label whose name is as long as a sentence and holds [brackets] as well, for users do such things"
    worse = dataclasses.replace(
        GOOD, recall_drops={long: between(0.1, 0.2, 0.3)}, batch_invariance=MOVED, onnx_bytes=1_234_567_890
    )
    gate = Gate(max_quality_drop=0.01, **(ALL | {"max_latency_ms": 0.1}))
    checks = [*check_gate(gate, worse), *check_gate(gate, dataclasses.replace(worse, variant="a-name-of-16-chr"))]
    out = io.StringIO()
    Console(file=out, width=80).print(failures_table(checks))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in out.getvalue()
    squeezed = "".join(out.getvalue().split())
    for cell in ("a-name-of-16-chr", "[0.1, 0.3]", "0.0123", "1235 MB", "17.7 MB", "1217 MB", "2.4 ms", "0.14"):
        assert cell.replace(" ", "") in squeezed
    words = [word for line in lines for word in line.split()]
    assert "[brackets]" in words
