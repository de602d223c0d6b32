"""Progress of long work: a bar with the time left on a terminal, a line now and then in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOG_EVERY_SECONDS = 15.0

Advance = Callable[[int, str], None]
"""Called with the units done since the last call and a short note such as the loss."""


@contextmanager
def track(console: Console, title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show work of `total` units, of which `done` were done before a restart."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(title, total=total, completed=done, note="")
            yield lambda units, note: progress.update(task, advance=units, note=note)
        return
    started = last = time.monotonic()
    count = done

    def advance(units: int, note: str) -> None:
        nonlocal count, last
        count += units
        now = time.monotonic()
        if now - last >= LOG_EVERY_SECONDS or count == total:
            last = now
            left = (total - count) * (now - started) / max(count - done, 1)
            line = f"  {title}: {count}/{total}, {now - started:.0f} s, about {left:.0f} s left"
            console.print(f"{line}; {note}" if note else line, soft_wrap=True)

    yield advance
