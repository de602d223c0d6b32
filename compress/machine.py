"""What a figure was measured on."""

import os
import platform
from pathlib import Path


def describe_machine() -> str:
    """Return processor, usable cores and the instruction sets that INT8 speed depends on."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines():
            key, _, value = line.partition(":")
            fields[key.strip()] = value.strip()
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = set(fields.get("flags", "").split())
    units = [unit for unit in ("avx2", "avx512_vnni", "avx_vnni", "amx_int8") if unit in flags]
    return f"{name}, {usable_cores()} cores ({', '.join(units) or 'no vector units listed'})"


def usable_cores() -> int:
    """Return the number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> float:
    """Return the load average of the last minute."""
    return os.getloadavg()[0]
