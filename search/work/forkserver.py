"""The fork server of training processes, which has imported the modules that they need."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Final

#: File that exists if an NVIDIA driver is loaded. On a GPU, trainings are threads of the worker instead.
NVIDIA: Final = Path("/proc/driver/nvidia/version")

_main_is_hidden = Lock()


@contextmanager
def main_hidden() -> Iterator[None]:
    """Hide the main module from the processes that are started in the block, which would import it.

    They need nothing from it, and a program without ``if __name__ == "__main__"`` would run again in each.
    """
    with _main_is_hidden:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def forkserver_context() -> ForkServerContext:
    """Return the multiprocessing context in which training processes are started."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["search.work.forkserver_preload"])
    return context


def start_forkserver() -> None:
    """Start the server, which imports torch and the trainer while this process sets up other things."""
    if not NVIDIA.exists():
        forkserver_context()
        with main_hidden():
            forkserver.ensure_running()
