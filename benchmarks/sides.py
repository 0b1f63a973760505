"""Run both sides of a comparison in turns on the same machine."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

SideTask = Callable[[], Any]
"""A ``functools.partial`` of a module's function, because another process must find it."""


def take_turns(tasks: Mapping[str, SideTask], repeats: int, threads: int) -> dict[str, list[Any]]:
    """Run each task ``repeats`` times, in turns, so that all meet the same conditions of the machine.

    The order is reversed from turn to turn. Each run has a process of its own with ``threads`` threads, so
    that its memory is its own and the other tasks leave nothing in it.
    """
    results: dict[str, list[Any]] = {name: [] for name in tasks}
    with ProcessPoolExecutor(
        max_workers=1,
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(threads,),
        max_tasks_per_child=1,
    ) as pool:
        for turn in range(repeats):
            for name in list(tasks)[:: 1 if turn % 2 == 0 else -1]:
                results[name].append(pool.submit(tasks[name]).result())
    return results


def peak_memory() -> int:
    """Largest resident memory of this process so far, bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # The kernel's resource usage would include the process that this one was forked from.
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 2**10
