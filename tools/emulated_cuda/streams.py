"""Streams, events and waits of the host.

Everything is done at once, in the order of the program. Vector clocks find what real streams may do in
another order: a stream that uses memory which another stream has written must have waited for that stream.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import torch

from tools.emulated_cuda import failures
from tools.emulated_cuda.cards import CARDS, LOCK, Allocation
from tools.emulated_cuda.failures import CudaCheckError, cuda_error

#: Number of waits of the host, by kind.
WAITS: Final[Counter[str]] = Counter()

NOT_PERMITTED: Final = "operation not permitted when stream is capturing"


class Queue:
    """A stream, which several ``torch.cuda.Stream`` objects may share.

    Attributes
    ----------
    graph : the graph into which it is being captured
    work : number of its last operation
    seen : for other streams, the number of the last operation that has ended before the next one here begins
    """

    def __init__(self, index: int, number: int) -> None:
        self.index, self.number = index, number
        self.graph: Any = None
        self.work = 0
        self.seen: dict[Queue, int] = {}

    def see(self, seen: dict[Queue, int]) -> None:
        for queue, work in seen.items():
            self.seen[queue] = max(work, self.seen.get(queue, 0))

    def now(self) -> dict[Queue, int]:
        return {**self.seen, self: self.work}

    def launch(self, read: Iterable[Allocation], written: Iterable[Allocation]) -> None:
        """Start an operation, and check that the stream has waited for others that use its memory."""
        with LOCK:
            self.see(_host.seen)
            self.work += 1
            # Captured operations have not run yet, so a graph has its own records of accesses.
            for memory in read:
                access = memory if self.graph is None else self.graph.access(memory)
                self._check(access.written)
                access.read[self] = self.work
            for memory in written:
                access = memory if self.graph is None else self.graph.access(memory)
                for other in (access.written, *access.read.items()):
                    self._check(other)
                access.written, access.read = (self, self.work), {}

    def _check(self, other: tuple[Queue, int] | None) -> None:
        if other is not None and other[0] is not self and self.seen.get(other[0], 0) < other[1]:
            raise CudaCheckError("memory is used that another stream uses, without a wait for its event")


_queues: dict[tuple[int, int], Queue] = {}
_host: Final = Queue(-1, -1)
#: Number of streams that torch has for each priority and card, and hands out in turn.
POOL: Final = 32
_handed_out: Final[Counter[tuple[int, int]]] = Counter()
_local: Final = threading.local()
_sync_mode = 0
CAPTURES: Final[list[Any]] = []


def queue(index: int, number: int = 0) -> Queue:
    """A stream of a card; the default stream has the number 0."""
    with LOCK:
        if (index, number) not in _queues:
            _queues[index, number] = Queue(index, number)
        return _queues[index, number]


def _current() -> dict[int, Queue]:
    """The current streams of this thread, by card."""
    if not hasattr(_local, "streams"):
        _local.streams = {}
    streams: dict[int, Queue] = _local.streams
    return streams


def current_queue(index: int) -> Queue:
    """The current stream of a card, in this thread."""
    return _current().get(index) or queue(index)


def set_stream(stream_id: int, device_index: int, device_type: int) -> None:
    torch.cuda._maybe_exchange_device(device_index)
    _current()[device_index] = queue(device_index, stream_id)


def capturing() -> Any:
    """The graph that a current stream of this thread is captured into; None if there is none."""
    return next((graph for q in _current().values() if (graph := q.graph) is not None), None)


def set_sync_mode(mode: int) -> None:
    global _sync_mode
    _sync_mode = mode


def get_sync_mode() -> int:
    return _sync_mode


def refuse_in_capture(what: str) -> None:
    """Raise an error if a capture forbids this operation now."""
    graph = capturing()
    if graph is not None:
        graph.invalid = True
        raise cuda_error(900, f"{NOT_PERMITTED} ({what})")
    if any(graph.mode == "global" for graph in CAPTURES):
        raise cuda_error(900, f"{NOT_PERMITTED} (another thread captures in the global mode; {what})")


def wait(what: str, over: dict[Queue, int], *, debugged: bool = True) -> None:
    """Make the host wait.

    Parameters
    ----------
    over : the operations that have ended afterwards
    debugged : whether ``torch.cuda.set_sync_debug_mode`` applies to it
    """
    failures.check("wait")
    refuse_in_capture(what)
    WAITS[what] += 1
    if debugged and _sync_mode == 2:
        raise RuntimeError(f"called a synchronizing CUDA operation ({what})")
    if debugged and _sync_mode == 1:
        warnings.warn(f"called a synchronizing CUDA operation ({what})", stacklevel=2)
    with LOCK:
        _host.see(over)


def synchronize_device() -> None:
    index = torch.cuda.current_device()
    CARDS[index].context = True
    over = {q: q.work for q in list(_queues.values()) if q.index == index}
    wait("torch.cuda.synchronize", over, debugged=False)


class StreamBase:
    """Base class of ``torch.cuda.Stream``."""

    stream_id: int
    device_index: int

    def __new__(
        cls,
        priority: int = 0,
        stream_id: int = 0,
        device_index: int | None = None,
        device_type: int = 1,
        stream_ptr: int = 0,
    ) -> StreamBase:
        self = object.__new__(cls)
        if device_index is None:
            failures.check()
            device_index = torch.cuda.current_device()
            with LOCK:
                number = _handed_out[device_index, priority]
                _handed_out[device_index, priority] += 1
            stream_id = 1 + number % POOL + POOL * (priority < 0)
            CARDS[device_index].context = True
        self.stream_id, self.device_index = stream_id, device_index
        queue(device_index, stream_id)
        return self

    @property
    def queue(self) -> Queue:
        return queue(self.device_index, self.stream_id)

    device_type = 1
    device = property(lambda self: torch.device("cuda", self.device_index))
    cuda_stream = property(lambda self: self.stream_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StreamBase) and self.queue is other.queue

    def __hash__(self) -> int:
        return hash(self.queue)

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        wait("Stream.synchronize", self.queue.now())


class EventBase:
    """Base class of ``torch.cuda.Event``."""

    def __new__(cls, enable_timing: bool = False, blocking: bool = False, **_: bool) -> EventBase:
        self = object.__new__(cls)
        self._blocking, self._seen, self._graph = blocking, {}, None
        return self

    _blocking: bool
    _seen: dict[Queue, int]
    _graph: Any
    cuda_event = 0

    def record(self, stream: StreamBase) -> None:
        failures.check()
        CARDS[stream.device_index].context = True
        self._seen, self._graph = stream.queue.now(), stream.queue.graph

    def wait(self, stream: StreamBase) -> None:
        failures.check()
        queue = stream.queue
        graph = self._graph if self._graph in CAPTURES else None
        if queue.graph is not None and self._seen and graph is not queue.graph:
            queue.graph.invalid = True
            raise cuda_error(905, "dependency created on uncaptured work in another stream")
        if graph is not None and queue.graph is None:
            graph.join(queue)
        queue.see(self._seen)

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        what = "Event.synchronize" if self._blocking else "Event.synchronize, which spins"
        wait(what, self._seen, debugged=False)

    def elapsed_time(self, end_event: EventBase) -> float:
        return 0.0
