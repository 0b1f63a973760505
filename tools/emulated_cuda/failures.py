"""Failures of a card on demand, with the errors that torch raises for them.

In the same process, from a test::

    with injected("out_of_memory", at=3):       # the third allocation from here on
        ...

In a child process, by the environment: ``EMULATED_CUDA_FAIL=out_of_memory:120,ecc@replay:7`` means the 120th
allocation and the seventh replay of a graph. With ``EMULATED_CUDA_FAIL_ONCE=<file>`` only the process that
creates the file fails, so that the process which replaces it succeeds.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import torch

Event = Literal["allocation", "pinned", "operation", "product", "instantiate", "replay", "wait"]
"""Counted events: allocation of device memory or of pinned memory, operation outside of a graph, matrix
product among those, instantiation and replay of a graph, and wait of the host."""

_ADVICE: Final = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below "
    "might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)


class CudaCheckError(AssertionError):
    """The program would be wrong on a card, possibly without any error there."""


def cuda_error(code: int, text: str) -> torch.AcceleratorError:
    """The error that torch raises for an error of the CUDA runtime."""
    error = torch.AcceleratorError(f"CUDA error: {text}{_ADVICE}")
    error.error_code = code  # type: ignore[attr-defined]
    return error


def out_of_memory(size: int, index: int, total: int, free: int) -> torch.OutOfMemoryError:
    """The error that torch's allocator raises."""
    return torch.OutOfMemoryError(
        f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB. GPU {index} has a total capacity of "
        f"{total / 2**30:.2f} GiB of which {free / 2**20:.2f} MiB is free."
    )


#: For each kind of failure, its default event and its error.
KINDS: Final[dict[str, tuple[Event, Callable[[], Exception]]]] = {
    "out_of_memory": ("allocation", lambda: out_of_memory(2 << 20, 0, 140 << 30, 0)),
    "pinned_memory": ("pinned", lambda: cuda_error(2, "out of memory")),
    "graph_instantiation": ("instantiate", lambda: cuda_error(2, "out of memory")),
    "cublas": (
        "product",
        lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ),
    "illegal_memory_access": (
        "operation",
        lambda: cuda_error(700, "an illegal memory access was encountered"),
    ),
    "ecc": ("operation", lambda: cuda_error(214, "uncorrectable ECC error encountered")),
}

#: After one of these failures the process can no longer use its cards.
DEVICE_FAULTS: Final = ("illegal_memory_access", "ecc")


@dataclass
class _Failure:
    kind: str
    event: Event
    left: int
    marker: Path | None

    def happens(self) -> bool:
        self.left -= 1
        if self.left != 0:
            return False
        if self.marker is not None:
            try:
                self.marker.touch(exist_ok=False)
            except FileExistsError:
                return False
        return True


_planned: list[_Failure] = []
_fault: str | None = None
_lock = threading.Lock()


def inject(kind: str, at: int = 1, event: Event | None = None, once: Path | None = None) -> None:
    """Make a failure happen at the ``at``-th event from now on.

    Parameters
    ----------
    kind : one of :data:`KINDS`
    event : event to count, if not the default one of the kind
    once : a marker file, so that the failure happens in only one process
    """
    if kind not in KINDS or (event is not None and event not in get_args(Event)):
        raise ValueError(f"no such failure: {kind}@{event}; there are {', '.join(KINDS)}")
    _planned.append(_Failure(kind, event or KINDS[kind][0], at, once))


@contextmanager
def injected(kind: str, at: int = 1, event: Event | None = None) -> Iterator[None]:
    """Inject a failure for the block, and clear all failures and device faults at its end."""
    inject(kind, at, event)
    try:
        yield
    finally:
        clear()


def inject_from_environment() -> None:
    """Inject the failures that the environment asks for."""
    marker = os.environ.get("EMULATED_CUDA_FAIL_ONCE")
    for asked in filter(None, os.environ.get("EMULATED_CUDA_FAIL", "").split(",")):
        what, _, at = asked.partition(":")
        kind, _, event = what.partition("@")
        inject(kind, int(at or 1), event or None, Path(marker) if marker else None)  # type: ignore[arg-type]


def clear() -> None:
    """Clear all injected failures and any device fault."""
    global _fault
    _planned.clear()
    _fault = None


def check(event: Event | None = None) -> None:
    """Raise a failure that is due at an event, or that of an earlier device fault at any call."""
    global _fault
    if _fault is not None:
        raise KINDS[_fault][1]()
    if event is None or not _planned:
        return
    with _lock:
        due = [failure for failure in _planned if failure.event == event and failure.happens()]
        if not due:
            return
        if due[0].kind in DEVICE_FAULTS:
            _fault = due[0].kind
    raise KINDS[due[0].kind][1]()
