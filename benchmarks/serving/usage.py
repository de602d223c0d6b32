"""CPU time and memory of a process and everything below it, read from /proc."""

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
SAMPLE_S = 1.0
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """Memory of a process tree, in bytes."""

    pss_bytes: int
    """Proportional set size: pages that several processes share are counted once in all."""
    rss_bytes: int
    """Resident set size: such pages count once for each process."""


def tree(root: int, proc: Path = PROC) -> set[int]:
    """Return `root` and its descendants, without those that ended."""
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if entry.name.isdigit() and (stat := _read(entry / "stat")) is not None:
            children.setdefault(parent(stat), []).append(int(entry.name))
    found, waiting = set(), [root]
    while waiting:
        pid = waiting.pop()
        if (proc / str(pid)).exists():
            found.add(pid)
        waiting += children.get(pid, [])
    return found


def cpu_seconds(root: int, proc: Path = PROC) -> float:
    """Return the seconds, user and system, that the tree has had; children that ended count with their parent."""
    stats = (_read(proc / str(pid) / "stat") for pid in tree(root, proc))
    return sum(cpu_ticks(stat) for stat in stats if stat is not None) / _TICKS_PER_SECOND


def memory(root: int, proc: Path = PROC) -> Memory:
    """Return what the tree holds now."""
    pss = rss = 0
    for pid in tree(root, proc):
        rollup = _read(proc / str(pid) / "smaps_rollup")
        if rollup:
            pss += rollup_bytes(rollup, "Pss")
            rss += rollup_bytes(rollup, "Rss")
    return Memory(pss, rss)


def parent(stat: str) -> int:
    """Return the parent's id from a line of /proc/PID/stat; the command's name in it may hold spaces and brackets."""
    return int(stat.rpartition(")")[2].split()[1])


def cpu_ticks(stat: str) -> int:
    """Return user and system time, of the process and of its children that ended, from a line of /proc/PID/stat."""
    return sum(map(int, stat.rpartition(")")[2].split()[11:15]))


def rollup_bytes(rollup: str, field: str) -> int:
    """Return a field of /proc/PID/smaps_rollup, such as `Pss`, in bytes."""
    line = next(line for line in rollup.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # it ended meanwhile


@contextlib.contextmanager
def sampled_memory(pid: int) -> Iterator[list[int]]:
    """Give a list that fills with the service's memory in bytes while the body runs."""
    samples = [memory(pid).pss_bytes]
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            samples.append(memory(pid).pss_bytes)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
