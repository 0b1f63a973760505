"""Cores and memory that this process may use, within the limits (cgroups) of a container or a job."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def usable_cores(root: Path = ROOT) -> int:
    """Return the number of cores that this process may use, by its affinity and its CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups(root):
        quota, period = (_read_words(group / "cpu.max") or ["max", ""])[:2]
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return cores


def free_gib(root: Path = ROOT) -> float:
    """Return the memory that is available without swapping, GiB; infinite without ``/proc``."""
    words = _read_words(root / "proc" / "meminfo")
    free = int(words[words.index("MemAvailable:") + 1]) / 2**20 if words else math.inf
    for group in _groups(root):
        (limit,) = _read_words(group / "memory.max") or ["max"]
        if limit != "max":
            statistics = _read_words(group / "memory.stat")
            # The kernel reclaims inactive pages of the file cache before it refuses memory.
            cache = int(statistics[statistics.index("inactive_file") + 1])
            (current,) = _read_words(group / "memory.current")
            free = min(free, (int(limit) - int(current) + cache) / 2**30)
    return max(0.0, free)


def _groups(root: Path) -> Iterator[Path]:
    """Yield the control group (version 2) of this process and its parents."""
    (name,) = [
        word[3:] for word in _read_words(root / "proc" / "self" / "cgroup") if word.startswith("0::")
    ] or ["/"]
    top = root / "sys" / "fs" / "cgroup"
    folder = top / name.strip("/")
    yield folder
    while folder != top:
        folder = folder.parent
        yield folder


def _read_words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
