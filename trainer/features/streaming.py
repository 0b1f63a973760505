"""AEVs of a subset that does not fit on the device: batches are read ahead of use from the mapped store.

Threads gather the rows of the next batches into a ring of buffers in page-locked memory. From there they are
copied to the device in parallel with the computation. The computation waits for events on the device; the
host waits for neither. AEVs are gathered and copied in the compact form of the store; the device lays them
out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor

from trainer.features.device_table import StoredBlock, StoredSubset
from trainer.features.static_batches import (
    BatchShape,
    DeviceFeatures,
    DeviceLayouts,
    Positions,
    StaticBatches,
)

#: Number of batches that are gathered at the same time, each in its own thread.
READERS: Final = 8


class Streamed(DeviceFeatures):
    """Features of a subset whose AEVs are read from the store.

    Parameters
    ----------
    dtype : type of the AEVs on the device
    """

    def __init__(self, subset: StoredSubset, device: torch.device, dtype: torch.dtype) -> None:
        self._subset = subset
        self._dtype = dtype
        self._columns = subset.columns(device)
        # There is no table of all atoms on the device.
        nowhere = np.zeros((subset.counts.shape[1], len(subset.molecule)), dtype=np.int64)
        self.layouts = DeviceLayouts(subset.counts, subset.molecule, nowhere, device)

    def batches(self, shape: BatchShape) -> StaticBatches:
        """See :class:`DeviceFeatures`."""
        stage = _Stage(shape.rows, self._subset.length, self._dtype, self.layouts.device, self._columns)
        return _StreamedBatches(shape, self, stage)

    def read(self, batch_positions: Positions, shape: BatchShape) -> Generator[Slot]:
        """Gather the batches at these positions (N, B), some of them ahead.

        Yields
        ------
        A slot for each batch; it is refilled some time after the next slot is asked for.
        """
        slots = [Slot(shape.rows, self._subset.length) for _ in range(min(READERS + 1, len(batch_positions)))]
        pool = ThreadPoolExecutor(READERS, initializer=partial(torch.set_num_threads, 1))
        waiting: deque[Future[Slot]] = deque()
        try:
            batches = iter(batch_positions)
            for slot, positions in zip(slots, batches, strict=False):
                waiting.append(pool.submit(self._fill, slot, positions, shape.capacities))
            while waiting:
                slot = waiting.popleft().result()
                yield slot
                for positions in batches:
                    waiting.append(pool.submit(self._fill, slot, positions, shape.capacities))
                    break
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self, slot: Slot, positions: Positions, capacities: Sequence[int]) -> Slot:
        positions = positions[positions < self.layouts.structures]  # padding has no atoms
        slot.fill(self._subset.blocks(positions, self.layouts.begins(positions, capacities)))
        return slot


class Slot:
    """A buffer of the ring: the AEVs of a batch in the memory of the host, in the store's format.

    Parameters
    ----------
    rows, length : maximum number of atoms of a batch, and length of an AEV

    Attributes
    ----------
    aevs : (V,) float32: blocks (n, F_s) one after another
    rows : (R,) int64: the row of the batch for each of their rows
    blocks : composition, element and number of rows of each block
    copied : event that marks the end of the copy to the device
    """

    def __init__(self, rows: int, length: int) -> None:
        self._aevs = torch.empty(rows * length, pin_memory=True)
        self._rows = torch.empty(rows, dtype=torch.int64, pin_memory=True)
        self.aevs, self.rows = self._aevs, self._rows
        self.blocks: list[tuple[tuple[int, int], int]] = []
        # With blocking=True a waiting thread leaves the core to others.
        self.copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def fill(self, blocks: Iterable[StoredBlock]) -> None:
        """Gather these blocks, once the previous content has been copied to the device."""
        self.copied.synchronize()
        self.blocks = []
        numbers = rows = 0
        for block in blocks:
            structures, count, length = block.stored.shape
            # The atoms of a structure are adjacent, so they are copied at once.
            shape = len(block.source), count * length
            aevs = self._aevs[numbers : numbers + math.prod(shape)].view(shape)
            torch.index_select(block.stored.view(structures, -1), 0, block.source, out=aevs)
            atoms = len(block.target)
            self._rows[rows : rows + atoms] = block.target
            self.blocks.append((block.key, atoms))
            numbers, rows = numbers + aevs.numel(), rows + atoms
        self.aevs, self.rows = self._aevs[:numbers], self._rows[:rows]


class _Stage:
    """The buffer on the device where batches arrive and the step reads them, always at the same address.

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
        # While a step processes one batch, the next one arrives in another buffer.
        for _ in range(2):
            numbers = torch.empty(rows * length, device=device)
            places = torch.empty(rows, dtype=torch.int64, device=device)
            emptied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrivals.append((numbers, places, emptied))
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Earlier operations may still use the memory of these tensors.
        self._copies.wait_stream(torch.cuda.current_stream(device))

    def put(self, slot: Slot) -> None:
        """Copy a batch to the buffer, after all earlier operations have finished with the previous one."""
        numbers, places, emptied = self._arrivals[0]
        self._arrivals.rotate()
        steps = torch.cuda.current_stream(self.aevs.device)
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(emptied)
            numbers[: len(slot.aevs)].copy_(slot.aevs, non_blocking=True)
            places[: len(slot.rows)].copy_(slot.rows, non_blocking=True)
            slot.copied.record(self._copies)
        # If this is abandoned, the memory must not be reused before the copies have ended.
        numbers.record_stream(self._copies)
        places.record_stream(self._copies)
        steps.wait_event(slot.copied)
        self._lay_out(slot, numbers, places)
        emptied.record(steps)

    def _lay_out(self, slot: Slot, aevs: Tensor, rows: Tensor) -> None:
        # Zero the columns that the store does not have, and the rows without an atom.
        self.aevs.zero_()
        for key, count in slot.blocks:
            columns = self._columns[key]
            some, aevs = aevs[: count * len(columns)], aevs[count * len(columns) :]
            there, rows = rows[:count], rows[count:]
            self.aevs[there[:, None], columns] = some.view(count, len(columns)).to(self.aevs.dtype)


class _StreamedBatches(StaticBatches):
    gathered = False

    def __init__(self, shape: BatchShape, features: Streamed, stage: _Stage) -> None:
        self.shape = shape
        self.source = stage.aevs
        self._features = features
        self._stage = stage

    def feed(self, batch_positions: Callable[[], Positions], batches: int) -> Generator[None]:
        with closing(self._features.read(batch_positions(), self.shape)) as slots:
            for slot in slots:
                self._stage.put(slot)
                yield
