"""AEVs of a part that are too many for the device: read from the mapped store, batch by batch, ahead of use.

Threads gather the rows of the next batches into a ring of buffers in page-locked memory. From there they are
copied to the device beside the computation, which waits for events on the device, and the host for neither.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.features.batches import AtomBatch
from trainer.features.fixed_batches import DeviceLayouts, FixedBatches, FixedFeatures, Frame, to_device
from trainer.features.resident import StoredPart

#: Batches that are gathered at the same time, each in a thread of its own.
READERS: Final = 4


class Streamed(FixedFeatures):
    """The AEVs of a part in the store.

    Parameters
    ----------
    dtype : of the AEVs on the device
    """

    def __init__(self, part: StoredPart, device: torch.device, dtype: torch.dtype) -> None:
        self._part = part
        self._dtype = dtype
        # There is no table of all atoms on the device.
        nowhere = np.zeros((part.counts.shape[1], len(part.molecule)), dtype=np.int64)
        self.layouts = DeviceLayouts(part.counts, part.molecule, nowhere, device)

    def batches(self, frame: Frame) -> FixedBatches:
        """See :class:`FixedFeatures`."""
        return _StreamedBatches(frame, self, _Stage(frame.rows, self._part.length, self._dtype, self.layouts))

    def steps(self, order: Tensor, batch_size: int) -> Iterator[list[Callable[[], AtomBatch]]]:
        """See :class:`trainer.features.source.PartFeatures`; load a batch before the next is asked for."""
        layouts = self.layouts
        some = [positions.numpy() for positions in torch.split(order, batch_size)]
        sizes = [layouts.sizes(positions) for positions in some]
        stage = _Stage(max(map(sum, sizes)), self._part.length, self._dtype, layouts)
        there = torch.split(to_device(order, layouts.device), batch_size)
        with closing(self.read(some, sizes)) as slots:
            for positions, capacities, slot in zip(there, sizes, slots, strict=True):
                stage.put(slot)
                frame = Frame(layouts, len(positions), capacities)
                yield [partial(_StreamedBatches(frame, self, stage).load, positions)]

    def read(
        self, batches: Sequence[npt.NDArray[np.int64]], capacities: Sequence[Sequence[int]]
    ) -> Generator[Slot]:
        """Gather batches at ``positions`` of the part, some ahead, in blocks of these capacities.

        Yields
        ------
        For each batch a slot, which is filled anew some time after the next one is asked for.
        """
        largest = max(map(sum, capacities))
        slots = [
            Slot(largest, self._part.length, self._dtype, self.layouts.device)
            for _ in range(min(READERS + 1, len(batches)))
        ]
        pool = ThreadPoolExecutor(READERS, initializer=partial(torch.set_num_threads, 1))
        waiting: deque[Future[Slot]] = deque()
        try:
            jobs = zip(batches, capacities, strict=True)
            for slot, job in zip(slots, jobs, strict=False):
                waiting.append(pool.submit(self._fill, slot, *job))
            while waiting:
                slot = waiting.popleft().result()
                yield slot
                for job in jobs:
                    waiting.append(pool.submit(self._fill, slot, *job))
                    break
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self, slot: Slot, positions: npt.NDArray[np.int64], capacities: Sequence[int]) -> Slot:
        aevs = slot.take(sum(capacities)).zero_()
        # The structures that fill up a batch have no atoms.
        positions = positions[positions < self.layouts.structures]
        counts = self._part.counts[self._part.molecule[positions]]
        ends = np.cumsum(np.array(capacities, dtype=np.int64))
        blocks = ends - capacities
        self._part.copy(positions, blocks + np.cumsum(counts, axis=0) - counts, aevs)
        return slot


class Slot:
    """A buffer of the ring: AEVs of a batch in the memory of the host, (C, F)."""

    def __init__(self, rows: int, length: int, dtype: torch.dtype, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._buffer = torch.empty((rows, length), dtype=dtype, pin_memory=on_gpu)
        self.aevs = self._buffer
        self.copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]

    def take(self, rows: int) -> Tensor:
        """So many rows, to be filled; waits until what they held is on the device."""
        if self.copied is not None:
            self.copied.synchronize()
        self.aevs = self._buffer[:rows]
        return self.aevs


class _Stage:
    """Where batches arrive on the device, and the step finds them: always in the same place.

    Attributes
    ----------
    aevs : (C, F)
    """

    def __init__(self, rows: int, length: int, dtype: torch.dtype, layouts: DeviceLayouts) -> None:
        device = layouts.device
        self.aevs = torch.zeros((rows, length), dtype=dtype, device=device)
        self._arrivals: deque[tuple[Tensor, torch.cuda.Event]] = deque()
        if device.type == "cuda":
            # While a step works on one batch the next one arrives in a place of its own.
            for _ in range(2):
                emptied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._arrivals.append((torch.empty_like(self.aevs), emptied))
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # What used the memory of these tensors before may not have ended.
            self._copies.wait_stream(torch.cuda.current_stream(device))

    def put(self, slot: Slot) -> None:
        """Bring a batch here, once all that was begun before is done with the last one."""
        rows = len(slot.aevs)
        if slot.copied is None:
            self.aevs[:rows].copy_(slot.aevs)
            return
        arrival, emptied = self._arrivals[0]
        self._arrivals.rotate()
        steps = torch.cuda.current_stream(arrival.device)
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(emptied)
            arrival[:rows].copy_(slot.aevs, non_blocking=True)
            slot.copied.record(self._copies)
        # Should all of this be given up now, the memory is not reused before the copy has ended.
        arrival.record_stream(self._copies)
        steps.wait_event(slot.copied)
        self.aevs[:rows].copy_(arrival[:rows])
        emptied.record(steps)


class _StreamedBatches(FixedBatches):
    def __init__(self, frame: Frame, features: Streamed, stage: _Stage) -> None:
        super().__init__(frame)
        self._features = features
        self._stage = stage

    def aevs(self, rows: Tensor) -> Tensor:
        return self._stage.aevs[: self.frame.rows]

    def feed(self, orders: Tensor) -> Generator[None]:
        batches = list(orders.cpu().numpy())
        with closing(self._features.read(batches, [self.frame.capacities] * len(batches))) as slots:
            for slot in slots:
                self._stage.put(slot)
                yield
