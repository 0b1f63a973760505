"""AEVs of a part that stay in the memory of the device, in one table of all its atoms."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.features.batches import AtomBatch
from trainer.features.fixed_batches import DeviceLayouts, FixedBatches, FixedFeatures, Frame, to_device
from trainer.features.tables import StoreTables

#: Rows that are copied at once.
COPIED_ROWS: Final = 2**16


@dataclass(frozen=True, eq=False)
class StoredBlock:
    """Atoms of one element in structures of one element set.

    Attributes
    ----------
    number_of_set : of the element set
    stored : (N, F_s) the table that has their AEVs
    source : (n,) int64: their rows there
    target : (n,) int64: their rows in a table of one's own
    """

    number_of_set: int
    stored: Tensor
    source: Tensor
    target: Tensor


@dataclass(frozen=True, eq=False)
class StoredPart:
    """Where the store has the AEVs of the n structures of a part.

    Attributes
    ----------
    tables : the store
    counts : (M, E) number of atoms of each element in each molecule
    molecule : (n,) the molecule of each structure
    starts : (n, E) where the atoms of each structure begin in the tables of its element set
    length : numbers in the AEV of an atom, F
    """

    tables: StoreTables
    counts: npt.NDArray[np.int64]
    molecule: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    length: int

    @property
    def atoms(self) -> int:
        """In all structures."""
        return int(self.counts[self.molecule].sum())

    def blocks(
        self, positions: npt.NDArray[np.int64], begins: npt.NDArray[np.int64]
    ) -> Iterator[StoredBlock]:
        """Where the AEVs of some structures (B,) are, and where they go.

        Parameters
        ----------
        begins : (B, E) the rows where the atoms of each structure begin in a table of one's own
        """
        counts, starts = self.counts[self.molecule[positions]], self.starts[positions]
        of_set = self.tables.sets.of_molecule[self.molecule[positions]]
        for s in np.unique(of_set).tolist():
            members = np.flatnonzero(of_set == s)
            for e in self.tables.sets.sets[s].elements:
                yield StoredBlock(
                    s,
                    self.tables.tables[s, e],
                    rows_of(starts[members, e], counts[members, e]),
                    rows_of(begins[members, e], counts[members, e]),
                )

    def columns(self, device: torch.device) -> tuple[Tensor, ...]:
        """For each element set, (F_s,): the columns of an AEV that the store has."""
        return tuple(torch.from_numpy(some.columns).to(device) for some in self.tables.sets.sets)


def rows_of(starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> Tensor:
    """The rows of the runs that begin at ``starts`` and are ``counts`` long, one run after another."""
    lengths = torch.from_numpy(counts)
    ends = lengths.cumsum(0)
    rows = torch.repeat_interleave(torch.from_numpy(starts) - (ends - lengths), lengths)
    return rows + torch.arange(len(rows))


def free_memory(device: torch.device) -> int:
    """Bytes that tensors may still take on a GPU, also if this process was given a share of it only."""
    free, total = torch.cuda.mem_get_info(device)
    taken = torch.cuda.memory_allocated(device)
    kept = torch.cuda.memory_reserved(device) - taken
    share = torch.cuda.get_per_process_memory_fraction(device)
    return min(free + kept, int(share * total) - taken)


class Resident(FixedFeatures):
    """The AEVs of a part on the device.

    Parameters
    ----------
    dtype : of the AEVs
    """

    def __init__(self, part: StoredPart, device: torch.device, dtype: torch.dtype) -> None:
        counts = part.counts[part.molecule]
        # Elements one after another, each in the order of the structures.
        begins = np.cumsum(counts.T).reshape(counts.T.shape).T - counts
        self.layouts = DeviceLayouts(part.counts, part.molecule, begins.T, device)
        # The row behind the last one stands for no atom.
        self.table = torch.zeros((self.layouts.rows + 1, part.length), device=device, dtype=dtype)
        columns = part.columns(device)
        for block in part.blocks(np.arange(len(part.molecule)), begins):
            for source, target in zip(
                torch.split(block.source, COPIED_ROWS), torch.split(block.target, COPIED_ROWS), strict=True
            ):
                aevs = block.stored.index_select(0, source).to(device, dtype)
                self.table[target.to(device)[:, None], columns[block.number_of_set]] = aevs

    def batches(self, frame: Frame) -> FixedBatches:
        """See :class:`FixedFeatures`."""
        return _ResidentBatches(frame, self.table)

    def steps(self, order: Tensor, batch_size: int) -> Iterator[list[Callable[[], AtomBatch]]]:
        """See :class:`trainer.features.source.PartFeatures`; a batch is one piece."""
        for some, there in zip(
            torch.split(order, batch_size),
            torch.split(to_device(order, self.layouts.device), batch_size),
            strict=True,
        ):
            frame = Frame(self.layouts, len(some), self.layouts.sizes(some.numpy()))
            yield [partial(self.batches(frame).load, there)]


class _ResidentBatches(FixedBatches):
    def __init__(self, frame: Frame, table: Tensor) -> None:
        super().__init__(frame)
        self._table = table

    def aevs(self, rows: Tensor) -> Tensor:
        return self._table.index_select(0, rows)

    def feed(self, orders: Tensor) -> Generator[None]:
        # All of it is there.
        for _ in orders:
            yield
