"""Progress of a file: a bar with the time left on a terminal, a line now and then in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_LOG_EVERY_SECONDS = 15.0

Update = Callable[[int, int], None]
"""Called with the units done so far and the rows done so far."""


@contextmanager
def shown(console: Console, total: int | None, rows_before: int) -> Iterator[Update]:
    """Show work of `total` units (None: unknown); `rows_before` rows were done by an interrupted run."""
    began = last = time.monotonic()

    def rate(rows: int) -> str:
        return f"{rows:,} rows, {(rows - rows_before) / max(time.monotonic() - began, 1e-3):,.0f} a second"

    if console.is_terminal:
        columns = (
            BarColumn(bar_width=24),
            TaskProgressColumn(show_speed=False),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=total, note="")
            yield lambda done, rows: bar.update(task, completed=done, note=rate(rows))
        return

    def update(done: int, rows: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LOG_EVERY_SECONDS:
            last = now
            share = f"{100 * done / total:.0f} %, " if total else ""
            console.print(f"{share}{rate(rows)}", soft_wrap=True)

    yield update
