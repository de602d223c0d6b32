"""What is printed of a load test and of a comparison."""

from rich.console import Console
from rich.table import Table

from loadtest.compare import Comparison, load
from loadtest.outcome import Figure, Outcome
from loadtest.result import Result, StepResult

_LOG_WIDTH = 130


def widened(console: Console) -> Console:
    """Return a console wide enough for a table where nobody's window bounds it."""
    if not console.is_terminal:
        console.width = max(console.width, _LOG_WIDTH)
    return console


def print_result(result: Result, console: Console) -> None:
    """Print the table of steps and what is to be known about it."""
    asking = result.asking
    per_request = "" if asking.texts_a_request == 1 else f", {asking.texts_a_request} texts a request"
    pairs = ", pairs" if asking.pairs else ""
    told = [f"{asking.url}, dialect {asking.dialect}{per_request}{pairs}", f"{asking.texts}: {asking.mix}"]
    for line in told:
        console.print(line, markup=False, soft_wrap=True)
    console.print(steps_table(result))
    for line in remarks(result):
        console.print(line, markup=False, soft_wrap=True)


def steps_table(result: Result) -> Table:
    """Return one row a step."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    verdicts = any(step.verdict for step in result.steps)
    columns = ["asked /s", "achieved /s", "p50 ms", "p90", "p99 [95 %]", "p99.9", "max", "errors", "samples"]
    for name in [*columns, *(["objective"] if verdicts else [])]:
        table.add_column(name, justify="left" if name == "objective" else "right", no_wrap=name != "objective")
    for step in result.steps:
        table.add_row(*cells(step), *([str(step.verdict.reason)] if step.verdict else []))
    return table


def cells(step: StepResult) -> list[str]:
    """Return the texts of a step's row, without its verdict."""
    outcome = step.outcome
    latency = outcome.latency_ms
    asked = f"{outcome.clients} clients" if outcome.rate_asked is None else f"{outcome.rate_asked:g}"
    return [
        asked,
        number(outcome.rate.value),
        number(latency["p50"].value),
        number(latency["p90"].value),
        f"{number(latency['p99'].value)} {interval(latency['p99'])}",
        number(latency["p99.9"].value),
        number(outcome.max_ms),
        f"{sum(outcome.errors.values()):,}",
        f"{outcome.samples:,}",
    ]


def remarks(result: Result) -> list[str]:
    """Return what the table does not say: errors by kind, the generator, the maximum and what follows from it."""
    outcome = result.main_step.outcome
    lines = [f"errors: {count:,} × {kind}" for kind, count in outcome.errors.items()]
    verdict = result.main_step.verdict
    if result.maximum is None and verdict is not None:
        lines.append(f"objective {result.objective}: {verdict}")
    if outcome.rate_asked is None:
        lines.append(
            "Closed loop: each client waits for its answer before it asks again, so a server that stalls is asked "
            "less, and these latencies hide the stall. Give --rate for what users would have seen."
        )
    elif outcome.generator_limited:
        lines.append(f"NOT A MEASUREMENT OF THE SERVER: {outcome.generator_note} (--processes, or another machine)")
    else:
        lines.append(
            f"sent on time: half within {number(outcome.lag_p50_ms)} ms of the schedule, 99 % within "
            f"{number(outcome.lag_p99_ms)} ms; {counted(outcome.processes, 'process', 'processes')}, "
            f"{outcome.cpu_share:.0%} of a CPU"
        )
    low_samples = [name for name, found in outcome.latency_ms.items() if found.value is not None and found.high is None]
    if low_samples:
        lines.append(f"{', '.join(low_samples)}: too few samples to bound it from above")
    return lines + maximum_lines(result)


def maximum_lines(result: Result) -> list[str]:
    """Return what a search found; empty without one."""
    found, capacity = result.maximum, result.capacity
    if found is None:
        return []
    if found.rate is None:
        why = "the load generator was the limit" if found.generator_limited else f"{found.failed_rate:g}/s failed"
        return [f"no rate held {result.objective}: {why}"]
    lines = [f"highest rate that held {result.objective}, twice: {found.rate:g} requests/s"]
    if result.asking.texts_a_request > 1:
        lines[0] += f", {found.rate * result.asking.texts_a_request:g} texts/s"
    if found.generator_limited:
        lines[0] += "; the load generator was the limit, so the server may hold more"
    else:
        lines[0] += f"; {found.failed_rate:g}/s failed"
    if capacity and capacity.replicas is not None:
        lines.append(f"replicas for {capacity.want_rate:g} requests/s at the objective: {capacity.replicas}")
    if capacity and capacity.price_per_million_texts is not None:
        at = "at the highest rate" if capacity.want_rate is None else f"at {capacity.want_rate:g} requests/s"
        lines.append(
            f"price of a million texts {at}, at {capacity.price_per_hour:g} an hour and replica: "
            f"{capacity.price_per_million_texts:.3g}"
        )
    return lines


def print_comparison(comparison: Comparison, names: tuple[str, str], console: Console) -> None:
    """Print both side by side."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", *names, "difference [95 %]", ""):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for row in comparison.rows:
        difference = Figure(row.difference, row.low, row.high)
        first, second = (f"{number(one.value)} {interval(one)}" for one in (row.first, row.second))
        told = "" if row.difference is None else f"{row.difference:+,.4g} {interval(difference)}"
        table.add_row(row.name, first, second, told, row.verdict)
    one, other = load(comparison.first), load(comparison.second)
    console.print(one if one == other else f"{one}; {other}", markup=False, soft_wrap=True)
    console.print(table)
    for note in comparison.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def number(value: float | None) -> str:
    """Return a number to three digits or more; a dash for none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.1g}"


def interval(figure: Figure) -> str:
    """Return an interval in square brackets; an open end is a question mark. Square brackets are escaped for rich."""
    ends = ["?" if end is None else number(end) for end in (figure.low, figure.high)]
    return f"\\[{'–'.join(ends)}]"


def counted(count: int, one: str, several: str) -> str:
    """Return the count with its noun."""
    return f"{count} {one if count == 1 else several}"


def step_line(step: StepResult) -> str:
    """Return one line about a step of a search, as it ends."""
    outcome: Outcome = step.outcome
    p99 = outcome.latency_ms["p99"]
    ends = ["?" if end is None else number(end) for end in (p99.low, p99.high)]
    return (
        f"{load(outcome)} for {outcome.seconds} s: p99 {number(p99.value)} ms [{'–'.join(ends)}], "
        f"{outcome.samples:,} samples: {step.verdict}"
    )
