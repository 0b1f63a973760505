"""Slots: how many trials a worker trains at once, and the threads in which it does."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import torch

from search.work.stopping import StopRequest

GIB_A_TRAINING = 1.0
"""What a training is reckoned at, GiB: a batch of 8,192 structures of 18 atoms with what its
gradient needs. The features themselves are shared by all trainings of a process."""

GPU_SLOTS = 8
"""How many trainings share the batches of a GPU."""


def automatic_slots(device: torch.device, threads: int) -> int:
    """How many trainings of so many CPU threads each keep this machine busy.

    On the CPU: the cores that this process may use, divided by ``threads``; on a GPU, where trainings go
    through the data together: ``GPU_SLOTS``. At most one for each ``GIB_A_TRAINING`` of free memory.
    """
    if device.type == "cuda":
        wanted, free = GPU_SLOTS, torch.cuda.mem_get_info(device)[0] / 2**30
    else:
        wanted, free = _cores() // threads, _free_gib()
    return max(1, int(min(wanted, free / GIB_A_TRAINING)))


def work_in_slots(count: int, work: Callable[[], None], stop: StopRequest) -> None:
    """Call ``work`` in ``count`` threads at once, and wait until it has returned in all of them.

    The first error asks all to stop, and is raised when they have. A KeyboardInterrupt, which only the
    main thread receives, is raised in each of them.
    """
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def guarded() -> None:
        fault = None
        try:
            work()
        except BaseException as error:
            fault = error
            stop.ask()
        ended.put(fault)

    slots = [Thread(target=guarded, name=f"slot-{number}") for number in range(1, count + 1)]
    try:
        for slot in slots:
            slot.start()
        # Not by join: Python 3.11 takes a thread for ended when a signal interrupts that.
        faults = [ended.get() for _ in slots]
    except BaseException as error:
        stop.ask()
        begun = [slot for slot in slots if slot.ident is not None]
        if isinstance(error, KeyboardInterrupt):
            for slot in begun:
                _interrupt(slot)
        for slot in begun:
            slot.join()
        raise
    for slot in slots:
        slot.join()
    if found := [fault for fault in faults if fault is not None]:
        raise found[0]


def _interrupt(slot: Thread) -> None:
    """Raise a KeyboardInterrupt in a thread, as soon as it is not within a call of a library."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(slot.ident or 0), ctypes.py_object(KeyboardInterrupt)
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _free_gib() -> float:
    """Memory that can be had without swapping; no limit is known where there is no ``/proc``."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    (kib,) = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return kib / 2**20
