"""Threads in which a worker trains several trials at once."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

from search.work.stopping import StopRequest


def run_concurrently(count: int, work: Callable[[], None], stop: StopRequest) -> None:
    """Call ``work`` in ``count`` threads at once, and wait until it has returned in all of them.

    The first error asks all threads to stop, and is raised when they have. A KeyboardInterrupt, which only
    the main thread receives, is raised in each of them.
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

    threads = [Thread(target=guarded, name=f"slot-{number}") for number in range(1, count + 1)]
    try:
        for thread in threads:
            thread.start()
        # Not with join: if a signal interrupts join, Python 3.11 considers the thread ended.
        faults = [ended.get() for _ in threads]
    except BaseException as error:
        stop.ask()
        begun = [thread for thread in threads if thread.ident is not None]
        if isinstance(error, KeyboardInterrupt):
            for thread in begun:
                _interrupt(thread)
        for thread in begun:
            thread.join()
        raise
    for thread in threads:
        thread.join()
    if found := [fault for fault in faults if fault is not None]:
        raise found[0]


def _interrupt(thread: Thread) -> None:
    """Raise a KeyboardInterrupt in a thread as soon as it runs Python code, outside library calls."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyboardInterrupt)
    )
