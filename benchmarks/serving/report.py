"""From what was measured to Markdown."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.serving.catalog import LIMBECK
from benchmarks.serving.closed_loop import Measured
from benchmarks.serving.usage import Memory


@dataclass(frozen=True)
class Sample:
    """One turn of one server."""

    measured: Measured
    cpu_s: float
    """Of the server's whole process tree, during the turn."""
    memory: Memory

    @property
    def cpu_s_per_1000(self) -> float:
        """CPU seconds for 1,000 good answers; nan without any."""
        return 1000 * self.cpu_s / self.measured.answers if self.measured.answers else float("nan")


@dataclass(frozen=True)
class Try:
    """One setting, tried before the rounds: what it reached, or why it did not run."""

    setting: str
    measured: Measured | None
    reason: str | None


@dataclass(frozen=True)
class Outcome:
    """All that was measured of one server."""

    name: str
    setting: str | None
    """The fastest; None when none runs."""
    tries: list[Try]
    closed: dict[int, list[Sample]]
    """Connections -> rounds."""
    opened: dict[float, list[Sample]]
    """Share of Limbeck's peak -> rounds."""


def render(outcomes: Sequence[Outcome], shares: Sequence[float], main: int) -> str:
    """Return the tables of one model."""
    parts = [_main_table(outcomes, main), _levels_table(outcomes)]
    parts += [_open_table(outcomes, share) for share in shares]
    return "\n\n".join([*parts, _tries_table(outcomes)])


def spread(values: Sequence[float], digits: int) -> str:
    """Return `median [lowest–highest]`."""
    middle = f"{statistics.median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} [{min(values):,.{digits}f}–{max(values):,.{digits}f}]"


def ratios(own: Sequence[Sample], other: Sequence[Sample]) -> list[float]:
    """Return, round by round, how many times as many requests a second `own` answered; infinity over none."""
    pairs = [(mine.measured.per_second, theirs.measured.per_second) for mine, theirs in zip(own, other, strict=True)]
    return [mine / theirs if theirs else float("inf") for mine, theirs in pairs]


def _main_table(outcomes: Sequence[Outcome], main: int) -> str:
    lines = [
        f"Closed loop, {main} connections, one text a request. Limbeck ahead: the lowest of the rounds' ratios of "
        "requests/s (their median). Memory: the peak over all turns of the process tree's PSS (RSS).",
        "",
        "| server | setting | requests/s | Limbeck ahead | p50 ms | p99 ms | errors | CPU s per 1,000 | peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    reference = next(outcome for outcome in outcomes if outcome.name == LIMBECK).closed[main]
    for outcome in outcomes:
        if outcome.setting is None:
            reason = outcome.tries[-1].reason if outcome.tries else "no setting"
            lines.append(f"| {outcome.name} | – | not measured: {reason} | | | | | | |")
            continue
        rounds = outcome.closed[main]
        ahead = ratios(reference, rounds)
        everything = [sample for turns in (*outcome.closed.values(), *outcome.opened.values()) for sample in turns]
        pss, rss = (
            max(getattr(sample.memory, field) for sample in everything) / 1e6 for field in ("pss_bytes", "rss_bytes")
        )
        cells = [
            outcome.name,
            outcome.setting,
            spread([one.measured.per_second for one in rounds], 0),
            "" if outcome.name == LIMBECK else f"{min(ahead):.2f}× ({statistics.median(ahead):.2f}×)",
            spread([one.measured.p50_ms for one in rounds], 2),
            spread([one.measured.p99_ms for one in rounds], 2),
            str(sum(one.measured.errors for one in rounds)),
            spread([one.cpu_s_per_1000 for one in rounds], 2),
            f"{pss:.0f} ({rss:.0f})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _levels_table(outcomes: Sequence[Outcome]) -> str:
    levels = next(iter(outcomes)).closed
    lines = [
        "Closed loop, by connections: requests/s, p50 / p99 in ms, CPU seconds per 1,000 requests, errors where any.",
        "",
        f"| server | {' | '.join(str(level) for level in levels)} |",
        "|---" * (1 + len(levels)) + "|",
    ]
    for outcome in outcomes:
        if outcome.setting is not None:
            cells = [_brief(rounds) for rounds in outcome.closed.values()]
            lines.append(f"| {outcome.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _brief(rounds: Sequence[Sample]) -> str:
    def middle(values: Sequence[float], digits: int) -> str:
        return f"{statistics.median(values):,.{digits}f}"

    errors = sum(one.measured.errors for one in rounds)
    told = f"{middle([one.measured.per_second for one in rounds], 0)}/s, "
    told += (
        f"{middle([one.measured.p50_ms for one in rounds], 2)} / {middle([one.measured.p99_ms for one in rounds], 2)}"
    )
    told += f", {middle([one.cpu_s_per_1000 for one in rounds], 2)} s"
    return told + (f", {errors} errors" if errors else "")


def _open_table(outcomes: Sequence[Outcome], share: float) -> str:
    offered = [
        (sample.measured.answers + sample.measured.errors)
        for outcome in outcomes
        for sample in outcome.opened.get(share, [])
    ]
    lines = [
        f"Open loop, {share:.0%} of Limbeck's peak: {statistics.mean(offered):,.0f} requests a turn at Poisson times. "
        "Latency counts from the scheduled time. Errors: refused, broken, or without an answer a second after the end.",
        "",
        "| server | answered in time/s | p50 ms | p99 ms | errors | CPU s per 1,000 |",
        "|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        rounds = outcome.opened.get(share)
        if rounds:
            wrong = sum(one.measured.errors for one in rounds)
            asked = wrong + sum(one.measured.answers for one in rounds)
            cells = [
                outcome.name,
                spread([one.measured.per_second for one in rounds], 0),
                spread([one.measured.p50_ms for one in rounds], 1),
                spread([one.measured.p99_ms for one in rounds], 1),
                f"{wrong} ({wrong / asked:.1%})",
                spread([one.cpu_s_per_1000 for one in rounds], 2),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _tries_table(outcomes: Sequence[Outcome]) -> str:
    lines = [
        "Settings tried before the rounds; the first figure decides.",
        "",
        "| server | setting | requests/s | p99 ms |",
        "|---|---|---|---|",
    ]
    for outcome in outcomes:
        for one in outcome.tries:
            told = f"{one.measured.per_second:,.0f} | {one.measured.p99_ms:.2f}" if one.measured else f"{one.reason} | "
            lines.append(f"| {outcome.name} | {one.setting} | {told} |")
    return "\n".join(lines)
