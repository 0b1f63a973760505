"""CUDA graphs: a capture executes nothing, and a replay repeats its operations on the same memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

import torch
from torch import Tensor

from tools.emulated_cuda import failures
from tools.emulated_cuda.cards import CARDS, LOCK, Access, Allocation, Pool, find_allocation
from tools.emulated_cuda.failures import CudaCheckError, cuda_error
from tools.emulated_cuda.streams import CAPTURES, NOT_PERMITTED, Queue, current_queue
from tools.emulated_cuda.traffic import COUNTS, Counts

#: Number of captures by their number of operations, and number of replays.
CAPTURED: Final[Counter[int]] = Counter()
REPLAYS: Final[Counter[str]] = Counter()

_pools: Final[WeakValueDictionary[tuple[int, int], Pool]] = WeakValueDictionary()


@dataclass
class _Operation:
    """A captured operation.

    Attributes
    ----------
    run : runs it on the memory that it was captured with
    fresh : the tensors that it creates, in memory of the graph
    """

    name: str
    run: Callable[[], list[Tensor]]
    fresh: list[Tensor]


class GraphBase:
    """Base class of ``torch.cuda.CUDAGraph``.

    Attributes
    ----------
    counts : operations and bytes of a replay
    mode : the capture error mode
    invalid : whether the capture has met something that cannot be captured
    """

    _keep_graph: bool
    _generators: list[Any]

    def __new__(cls, keep_graph: bool = False) -> GraphBase:
        self = object.__new__(cls)
        self._forget()
        self._keep_graph = keep_graph
        self._generators = []
        return self

    def _forget(self) -> None:
        self.counts = Counts()
        self.invalid = self._ready = False
        self.mode = ""
        self.memory: Pool | None = None
        self._operations: list[_Operation] = []
        self._read: dict[int, ref[Allocation]] = {}
        self._written: dict[int, ref[Allocation]] = {}
        self._own: dict[int, Tensor] = {}
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._queues: list[Queue] = []
        self._accesses: WeakKeyDictionary[Allocation, Access] = WeakKeyDictionary()

    def register_generator_state(self, generator: torch.Generator) -> None:
        self._generators.append(generator)

    def has_generator(self, generator: Any) -> bool:
        """Whether a generator was registered."""
        return any(known._cdata == generator._cdata for known in self._generators)

    def capture_begin(self, pool: tuple[int, int] | None = None, capture_error_mode: str = "global") -> None:
        failures.check()
        index = torch.cuda.current_device()
        queue = current_queue(index)
        if queue.number == 0:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        if CAPTURES and capture_error_mode == "global":
            raise cuda_error(900, f"{NOT_PERMITTED} (two captures)")
        self._forget()
        self.mode = capture_error_mode
        self.memory = (_pools.get(pool) if pool is not None else None) or Pool(CARDS[index])
        _pools[self.memory.handle] = self.memory
        self._states = [generator.get_state() for generator in self._generators]
        CAPTURES.append(self)
        self.join(queue)

    def join(self, queue: Queue) -> None:
        """Capture this stream too, because it waits for an event of a captured stream."""
        self._queues.append(queue)
        queue.graph = self

    def access(self, memory: Allocation) -> Access:
        """The operations of the capture that last used some memory."""
        return self._accesses.setdefault(memory, Access())

    def before(self, read: Iterable[Tensor], written: Iterable[Tensor]) -> None:
        """Note the tensors that an operation is about to use."""
        for tensors, noted in ((read, self._read), (written, self._written)):
            for tensor in tensors:
                key = tensor.untyped_storage()._cdata
                memory = find_allocation(tensor)
                if key in self._own or memory is None:
                    continue
                noted[key] = ref(memory)
                if noted is self._written and key not in self._before:
                    whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                    self._before[key] = whole, whole.clone()

    def own(self, made: Iterable[Tensor]) -> None:
        """Note the tensors that an operation has created, in memory of the graph."""
        for tensor in made:
            self._own[tensor.untyped_storage()._cdata] = tensor

    def after(self, name: str, run: Callable[[], list[Tensor]], fresh: list[Tensor], moved: int) -> None:
        """Add an operation."""
        self._operations.append(_Operation(name, run, fresh))
        self.counts.add(name, moved)

    def capture_end(self) -> None:
        CAPTURES.remove(self)
        origin = self._queues[0]
        joined = all(origin.seen.get(queue, 0) >= queue.work for queue in self._queues[1:])
        for queue in self._queues:
            queue.graph = None
        # A capture runs nothing: restore what was there before, and fill new memory with arbitrary values.
        for whole, copy in self._before.values():
            whole.copy_(copy)
        self._before.clear()
        for generator, state in zip(self._generators, self._states, strict=True):
            generator.set_state(state)
        for tensor in self._own.values():
            _poison(tensor)
        if self.invalid:
            raise cuda_error(901, "operation failed due to a previous error during capture")
        if not joined:
            raise cuda_error(904, "capture was not ended in the same stream: unjoined work")
        CAPTURED[len(self._operations)] += 1
        if not self._keep_graph:
            self.instantiate()

    def instantiate(self) -> None:
        failures.check("instantiate")
        self._ready = True

    def replay(self) -> None:
        failures.check("replay")
        if not self._ready and self._keep_graph and self._operations:
            self.instantiate()
        if not self._ready:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        if (memory := self.memory) is None:
            raise AssertionError
        read, written = _alive(self._read.values()), _alive(self._written.values())
        produced = [found for x in self._own.values() if (found := find_allocation(x)) is not None]
        queue = current_queue(next(card.index for card in CARDS if memory in card.pools))
        if queue.graph is not None:
            queue.graph.invalid = True
            raise cuda_error(900, f"{NOT_PERMITTED} (a replay)")
        queue.launch(read, [*written, *produced])
        for operation in self._operations:
            results = operation.run()
            for place, result in zip(operation.fresh, results, strict=True):
                if place.shape != result.shape:
                    raise CudaCheckError(
                        f"{operation.name} gives {tuple(result.shape)} in place of {tuple(place.shape)}"
                    )
                place.copy_(result)
        with LOCK:
            COUNTS.launches += 1
            COUNTS.operations.update(self.counts.operations)
            COUNTS.bytes.update(self.counts.bytes)
        REPLAYS["replays"] += 1

    def reset(self) -> None:
        self._forget()

    def pool(self) -> tuple[int, int]:
        if self.memory is None:
            raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
        return self.memory.handle

    def enable_debug_mode(self) -> None: ...


def _alive(references: Iterable[ref[Allocation]]) -> list[Allocation]:
    found = [reference() for reference in references]
    if None in found:
        raise CudaCheckError("a graph that is replayed uses memory that was freed")
    return found  # type: ignore[return-value]


def _poison(tensor: Tensor) -> None:
    """Fill a tensor with values that nobody computed: not a number, or an index that is out of range."""
    if tensor.is_floating_point():
        tensor.fill_(float("nan"))
    elif tensor.dtype == torch.bool:
        tensor.logical_not_()
    else:
        tensor.fill_(min(1 << 40, torch.iinfo(tensor.dtype).max))
