"""AEVs of a part that are too many for the device: read from the mapped store, batch by batch, ahead of use.

Threads gather the rows of the next batches into a ring of buffers in page-locked memory. From there they are
copied to the device beside the computation, which waits for events on the device, and the host for neither.
What is gathered and copied is compact, as it is stored; the device lays it out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
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
from trainer.features.resident import StoredBlock, StoredPart

#: Batches that are gathered at the same time, each in a thread of its own.
READERS: Final = 8


class Streamed(FixedFeatures):
    """The AEVs of a part in the store.

    Parameters
    ----------
    dtype : of the AEVs on the device
    """

    def __init__(self, part: StoredPart, device: torch.device, dtype: torch.dtype) -> None:
        self._part = part
        self._dtype = dtype
        self._columns = part.columns(device)
        # There is no table of all atoms on the device.
        nowhere = np.zeros((part.counts.shape[1], len(part.molecule)), dtype=np.int64)
        self.layouts = DeviceLayouts(part.counts, part.molecule, nowhere, device)

    def batches(self, frame: Frame) -> FixedBatches:
        """See :class:`FixedFeatures`."""
        return _StreamedBatches(frame, self, self._stage(frame.rows))

    def _stage(self, rows: int) -> _Stage:
        return _Stage(rows, self._part.length, self._dtype, self.layouts.device, self._columns)

    def steps(self, order: Tensor, batch_size: int) -> Iterator[list[Callable[[], AtomBatch]]]:
        """See :class:`trainer.features.source.PartFeatures`; load a batch before the next is asked for."""
        layouts = self.layouts
        some = [positions.numpy() for positions in torch.split(order, batch_size)]
        sizes = [layouts.sizes(positions) for positions in some]
        stage = self._stage(max(map(sum, sizes)))
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
            Slot(largest, self._part.length, self.layouts.device)
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
        # The structures that fill up a batch have no atoms.
        positions = positions[positions < self.layouts.structures]
        counts = self._part.counts[self._part.molecule[positions]]
        ends = np.cumsum(np.array(capacities, dtype=np.int64))
        begins = ends - capacities + np.cumsum(counts, axis=0) - counts
        slot.fill(self._part.blocks(positions, begins))
        return slot


class Slot:
    """A buffer of the ring: the AEVs of a batch in the memory of the host, as the store has them.

    Parameters
    ----------
    rows, length : atoms of a batch and numbers of an AEV at most

    Attributes
    ----------
    aevs : (V,) float32: blocks (n, F_s) one after another
    rows : (R,) int64: where each of their rows belongs in the batch
    blocks : for each of them, its composition and element, and its number of rows
    copied : when all of it is on the device
    """

    def __init__(self, rows: int, length: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._aevs = torch.empty(rows * length, pin_memory=on_gpu)
        self._rows = torch.empty(rows, dtype=torch.int64, pin_memory=on_gpu)
        self.aevs, self.rows = self._aevs, self._rows
        self.blocks: list[tuple[tuple[int, int], int]] = []
        self.copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]

    def fill(self, blocks: Iterable[StoredBlock]) -> None:
        """Gather these blocks, once what was here before is on the device."""
        if self.copied is not None:
            self.copied.synchronize()
        self.blocks = []
        numbers = rows = 0
        for block in blocks:
            structures, count, length = block.stored.shape
            # The atoms of a structure stand together: they are copied at once.
            shape = len(block.source), count * length
            aevs = self._aevs[numbers : numbers + math.prod(shape)].view(shape)
            torch.index_select(block.stored.view(structures, -1), 0, block.source, out=aevs)
            atoms = len(block.target)
            self._rows[rows : rows + atoms] = block.target
            self.blocks.append((block.key, atoms))
            numbers, rows = numbers + aevs.numel(), rows + atoms
        self.aevs, self.rows = self._aevs[:numbers], self._rows[:rows]


class _Stage:
    """Where batches arrive on the device, and the step finds them: always in the same place.

    Parameters
    ----------
    columns : for each composition and element, the columns that the store has

    Attributes
    ----------
    aevs : (C, F)
    """

    def __init__(
        self,
        rows: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
        columns: Mapping[tuple[int, int], Tensor],
    ) -> None:
        self.aevs = torch.zeros((rows, length), dtype=dtype, device=device)
        self._columns = columns
        self._arrivals: deque[tuple[Tensor, Tensor, torch.cuda.Event]] = deque()
        if device.type == "cuda":
            # While a step works on one batch the next one arrives in a place of its own.
            for _ in range(2):
                numbers = torch.empty(rows * length, device=device)
                places = torch.empty(rows, dtype=torch.int64, device=device)
                emptied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._arrivals.append((numbers, places, emptied))
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # What used the memory of these tensors before may not have ended.
            self._copies.wait_stream(torch.cuda.current_stream(device))

    def put(self, slot: Slot) -> None:
        """Bring a batch here, once all that was begun before is done with the last one."""
        if slot.copied is None:
            self._lay_out(slot, slot.aevs, slot.rows)
            return
        numbers, places, emptied = self._arrivals[0]
        self._arrivals.rotate()
        steps = torch.cuda.current_stream(self.aevs.device)
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(emptied)
            numbers[: len(slot.aevs)].copy_(slot.aevs, non_blocking=True)
            places[: len(slot.rows)].copy_(slot.rows, non_blocking=True)
            slot.copied.record(self._copies)
        # Should all of this be given up now, the memory is not reused before the copies have ended.
        numbers.record_stream(self._copies)
        places.record_stream(self._copies)
        steps.wait_event(slot.copied)
        self._lay_out(slot, numbers, places)
        emptied.record(steps)

    def _lay_out(self, slot: Slot, aevs: Tensor, rows: Tensor) -> None:
        # The columns that the store has not, and the rows of no atom.
        self.aevs.zero_()
        for key, count in slot.blocks:
            columns = self._columns[key]
            some, aevs = aevs[: count * len(columns)], aevs[count * len(columns) :]
            there, rows = rows[:count], rows[count:]
            self.aevs[there[:, None], columns] = some.view(count, len(columns)).to(self.aevs.dtype)


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
