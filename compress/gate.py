"""Decides whether a variant kept enough to be shipped: the recipe's limits against what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from bundle.manifest import BatchInvariance, Interval
from compress.recipe import Gate

_SLACK = 1e-9  # 0.9 - 0.87 is a little more than 0.03 in binary
_SHOWN = 5  # failures of one limit that are told one by one


@dataclass(frozen=True)
class SliceDrop:
    """How far the main metric of one slice is below the teacher's there."""

    texts: int
    drop: Interval


@dataclass(frozen=True)
class Measured:
    """What was measured of one variant on the test split; drops are below the teacher's, paired.

    None: it could not be measured (data without labels, a variant that this machine can't time).
    """

    variant: str
    dtype: str
    """float32, float16 or int8."""
    metric: str
    """Name of the task's main metric."""
    quality_drop: Interval | None
    recall_drops: Mapping[str, Interval]
    slice_drops: Mapping[str, SliceDrop]
    label_flips: Interval
    """Share of decisions that differ from the FP32 student's; 0 for itself."""
    batch_invariance: BatchInvariance | None
    """Must be there for int8."""
    calibration_error: float | None
    onnx_bytes: int
    latency_ms: float | None
    """Of one text."""


@dataclass(frozen=True)
class Check:
    """One limit of the gate held against one measured value."""

    limit_name: str
    """The recipe's key, without `gate.`."""
    variant: str
    name: str
    """What was measured, in words."""
    found: float
    limit: float
    unit: str = ""
    low: float | None = None
    """The 95 % interval of `found`; None where there is none."""
    high: float | None = None
    by_bound: bool = False
    """The upper end of the interval is what must hold."""
    broken: bool = False
    """A promise without degrees was not kept, whatever `found` is."""

    @property
    def missed_by(self) -> float:
        """By how much the limit is exceeded; 0 where it holds."""
        judged = self.high if self.by_bound and self.high is not None else self.found
        return judged - self.limit if judged > self.limit + _SLACK else 0.0

    @property
    def passed(self) -> bool:
        """Whether the limit holds."""
        return not self.broken and self.missed_by == 0.0


def check_gate(gate: Gate, measured: Measured) -> list[Check]:
    """Return a check for each limit that is set and was measured: one for each label and each slice of enough texts.

    With `gate.decide_by: bound` the upper end of a paired interval must hold, where a value has one. Raises ValueError
    for an int8 variant whose batch invariance is required and was not measured.
    """

    drop = f"{measured.metric} drop"
    rows: list[tuple[str, str, float | Interval | None, str]] = [
        ("max_quality_drop", drop, measured.quality_drop, ""),
        *(("max_recall_drop", f"recall drop of {name}", found, "") for name, found in measured.recall_drops.items()),
        *(
            ("max_slice_drop", f"{drop} on {name}", part.drop, "")
            for name, part in measured.slice_drops.items()
            if part.texts >= gate.min_slice_texts
        ),
        ("max_label_flips", "decisions flipped", measured.label_flips, ""),
        ("max_calibration_error", "calibration error", measured.calibration_error, ""),
        ("max_size_mb", "file size", measured.onnx_bytes / 1e6, "MB"),
        ("max_latency_ms", "latency of one text", measured.latency_ms, "ms"),
    ]
    checks = [
        _check(gate, measured.variant, limit_name, name, found, unit)
        for limit_name, name, found, unit in rows
        if found is not None and getattr(gate, limit_name) is not None
    ]
    if gate.batch_invariance and measured.dtype == "int8":
        checks.append(_invariance(measured))
    return checks


def reasons(checks: Sequence[Check]) -> list[str]:
    """Return for each limit that does not hold what was found, what is allowed, and the difference."""
    told = []
    for shown, more in _failures(checks):
        told += [_reason(check) for check in shown]
        if more:
            told.append(f"{more} more beyond gate.{shown[0].limit_name}")
    return told


def failures_table(checks: Sequence[Check]) -> Table:
    """Return a table, for 80 columns, of the limits that do not hold and by how much; `checks` of any variants."""
    table = Table(title="What did not pass the gate", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("variant", overflow="fold")
    table.add_column("measured", overflow="fold")
    for heading in ("found\n[95 %]", "allowed", "too much by"):
        table.add_column(heading, justify="right", no_wrap=True)
    for shown, more in _failures(checks):
        for check in shown:
            found = "\n".join([_number(check.found, check.unit), *_ends(check)])
            excess = "" if check.broken else _number(check.missed_by, check.unit)
            cells = (check.variant, check.name, found, _number(check.limit, check.unit), excess)
            table.add_row(*(escape(cell) for cell in cells))
        if more:
            table.add_row("", f"… and {more} more beyond {shown[0].limit_name}", "", "", "")
    return table


def _check(gate: Gate, variant: str, limit_name: str, name: str, found: float | Interval, unit: str) -> Check:
    limit = float(getattr(gate, limit_name))
    if not isinstance(found, Interval):
        return Check(limit_name, variant, name, found, limit, unit)
    by_bound = gate.decide_by == "bound"
    return Check(limit_name, variant, name, found.value, limit, unit, found.low, found.high, by_bound)


def _invariance(measured: Measured) -> Check:
    found = measured.batch_invariance
    if found is None:
        raise ValueError(f"variant {measured.variant}: int8 without a measured batch invariance")
    return Check(
        "batch_invariance",
        measured.variant,
        "change of logits among batch mates",
        found.max_difference,
        0.0,
        broken=not found.bit_equal,
    )


def _failures(checks: Sequence[Check]) -> list[tuple[list[Check], int]]:
    """Return, for each variant and limit that fails, its worst checks and the number of the others."""
    failed = [check for check in checks if not check.passed]
    groups = [list(group) for _, group in groupby(failed, key=lambda check: (check.variant, check.limit_name))]
    worst_first = [sorted(group, key=lambda check: -check.missed_by) for group in groups]
    return [(group[:_SHOWN], len(group[_SHOWN:])) for group in worst_first]


def _reason(check: Check) -> str:
    if check.broken:
        return f"{check.name} is {_number(check.found, '')}; gate.{check.limit_name} allows no change"
    found = " ".join([_number(check.found, check.unit), *_ends(check)])
    end = ", whose upper end counts," if check.by_bound else ""
    return (
        f"{check.name} is {found}{end} and gate.{check.limit_name} allows {_number(check.limit, check.unit)}: "
        f"{_number(check.missed_by, check.unit)} too much"
    )


def _ends(check: Check) -> list[str]:
    return [] if check.low is None or check.high is None else [f"[{check.low:.4g}, {check.high:.4g}]"]


def _number(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".rstrip()
