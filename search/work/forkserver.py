"""The server that training processes are forked from: it has imported what they need."""

from __future__ import annotations

from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Final

#: There where an NVIDIA driver is loaded. On a GPU trainings share batches, in threads of the worker.
NVIDIA: Final = Path("/proc/driver/nvidia/version")


def forkserver_context() -> ForkServerContext:
    """How processes that train are started."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["search.work.forkserver_preload"])
    return context


def start_forkserver() -> None:
    """Start the server, which imports torch and the trainer beside this process while it sets up."""
    if not NVIDIA.exists():
        forkserver_context()
        forkserver.ensure_running()
