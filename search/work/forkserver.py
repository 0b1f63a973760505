"""The fork server of training processes, which has imported the modules that they need."""

from __future__ import annotations

from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Final

#: File that exists if an NVIDIA driver is loaded. On a GPU, trainings are threads of the worker instead.
NVIDIA: Final = Path("/proc/driver/nvidia/version")


def forkserver_context() -> ForkServerContext:
    """Return the multiprocessing context in which training processes are started."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["search.work.forkserver_preload"])
    return context


def start_forkserver() -> None:
    """Start the server, which imports torch and the trainer while this process sets up other things."""
    if not NVIDIA.exists():
        forkserver_context()
        forkserver.ensure_running()
