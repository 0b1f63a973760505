"""AEVs of a subset that stay in the memory of a GPU, in one table of all its atoms."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.features.aev_store import StoreTables
from trainer.features.static_batches import (
    BatchShape,
    DeviceFeatures,
    DeviceLayouts,
    Positions,
    StaticBatches,
)

#: Rows that are copied at once.
COPIED_ROWS: Final = 2**16


@dataclass(frozen=True, eq=False)
class StoredBlock:
    """The c atoms of one element in each of n structures of one composition.

    Attributes
    ----------
    key : composition and element, as in the store
    stored : (N, c, F_e) the table that has their AEVs
    source : (n,) int64: the structures there
    target : (n * c,) int64: the rows of the atoms in a table of one's own
    """

    key: tuple[int, int]
    stored: Tensor
    source: Tensor
    target: Tensor


@dataclass(frozen=True, eq=False)
class StoredSubset:
    """Where the store has the AEVs of the n structures of a part.

    Attributes
    ----------
    tables : the store
    counts : (M, E) number of atoms of each element in each molecule
    molecule : (n,) the molecule of each structure
    places : (n,) the place of each structure in the tables of its composition
    length : numbers in the AEV of an atom, F
    """

    tables: StoreTables
    counts: npt.NDArray[np.int64]
    molecule: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
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
        compositions = self.tables.compositions
        of_structure = compositions.of_molecule[self.molecule[positions]]
        for c in np.unique(of_structure).tolist():
            members = np.flatnonzero(of_structure == c)
            source = torch.from_numpy(self.places[positions[members]])
            composition = compositions.each[c]
            for e, count in zip(composition.elements, composition.counts, strict=True):
                target = begins[members, e][:, None] + np.arange(count)
                stored = self.tables.tables[c, e]
                yield StoredBlock((c, e), stored, source, torch.from_numpy(target).flatten())

    def columns(self, device: torch.device) -> dict[tuple[int, int], Tensor]:
        """For each composition and element, (F_e,): the columns of an AEV that the store has."""
        return {
            (c, e): torch.from_numpy(columns).to(device)
            for c, composition in enumerate(self.tables.compositions.each)
            for e, columns in zip(composition.elements, composition.columns, strict=True)
        }


def free_memory(device: torch.device) -> int:
    """Bytes that tensors may still take on a GPU, also if this process was given a share of it only."""
    free, total = torch.cuda.mem_get_info(device)
    taken = torch.cuda.memory_allocated(device)
    kept = torch.cuda.memory_reserved(device) - taken
    share = torch.cuda.get_per_process_memory_fraction(device)
    return min(free + kept, int(share * total) - taken)


class DeviceTable(DeviceFeatures):
    """The AEVs of a subset on the device.

    Parameters
    ----------
    dtype : of the AEVs

    Attributes
    ----------
    table : (n + 1, F) elements one after another, each in the order of the structures; the last row is zero
    """

    def __init__(self, subset: StoredSubset, device: torch.device, dtype: torch.dtype) -> None:
        counts = subset.counts[subset.molecule]
        begins = np.cumsum(counts.T).reshape(counts.T.shape).T - counts
        self.layouts = DeviceLayouts(subset.counts, subset.molecule, begins.T, device)
        self.table = torch.zeros((self.layouts.rows + 1, subset.length), device=device, dtype=dtype)
        columns = subset.columns(device)
        for block in subset.blocks(np.arange(len(subset.molecule)), begins):
            structures, count, length = block.stored.shape
            at_once = max(1, COPIED_ROWS // count)
            for source, target in zip(
                torch.split(block.source, at_once), torch.split(block.target, at_once * count), strict=True
            ):
                aevs = block.stored.view(structures, -1).index_select(0, source).view(-1, length)
                there = target.to(device)[:, None]
                self.table[there, columns[block.key]] = aevs.to(device, dtype)

    def batches(self, shape: BatchShape) -> StaticBatches:
        """See :class:`DeviceFeatures`."""
        return _TableBatches(shape, self.table)


class _TableBatches(StaticBatches):
    gathered = True

    def __init__(self, shape: BatchShape, table: Tensor) -> None:
        self.shape = shape
        self.source = table

    def feed(self, batch_positions: Callable[[], Positions], batches: int) -> Generator[None]:
        # All of it is there.
        for _ in range(batches):
            yield
