"""AEVs of a subset in the memory of a GPU, in one table of all its atoms."""

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

#: Number of rows that are copied at once.
COPIED_ROWS: Final = 2**16


@dataclass(frozen=True, eq=False)
class StoredBlock:
    """The c atoms of one element in each of n structures of one composition.

    Attributes
    ----------
    key : composition and element, as in the store
    stored : (N, c, F_e) the table with their AEVs
    source : (n,) int64: indices of the structures in ``stored``
    target : (n * c,) int64: rows of the atoms in the table or batch that receives them
    """

    key: tuple[int, int]
    stored: Tensor
    source: Tensor
    target: Tensor


@dataclass(frozen=True, eq=False)
class StoredSubset:
    """Locations in the store of the AEVs of the n structures of a subset.

    Attributes
    ----------
    tables : the store
    counts : (M, E) number of atoms of each element in each molecule
    molecule : (n,) the molecule of each structure
    places : (n,) the index of each structure in the tables of its composition
    length : numbers in the AEV of an atom, F
    """

    tables: StoreTables
    counts: npt.NDArray[np.int64]
    molecule: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    length: int

    @property
    def atoms(self) -> int:
        """Number of atoms in all structures."""
        return int(self.counts[self.molecule].sum())

    def blocks(
        self, positions: npt.NDArray[np.int64], begins: npt.NDArray[np.int64]
    ) -> Iterator[StoredBlock]:
        """Yield where the AEVs of some structures (B,) are stored, and where they go.

        Parameters
        ----------
        begins : (B, E) first row of each structure's atoms in the table or batch that receives them
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
        """Return the AEV columns that the store has, (F_e,), for each composition and element."""
        return {
            (c, e): torch.from_numpy(columns).to(device)
            for c, composition in enumerate(self.tables.compositions.each)
            for e, columns in zip(composition.elements, composition.columns, strict=True)
        }


def free_memory(device: torch.device) -> int:
    """Return the bytes that tensors may still take on a GPU, within the share that this process may use."""
    free, total = torch.cuda.mem_get_info(device)
    taken = torch.cuda.memory_allocated(device)
    kept = torch.cuda.memory_reserved(device) - taken
    share = torch.cuda.get_per_process_memory_fraction(device)
    return min(free + kept, int(share * total) - taken)


class DeviceTable(DeviceFeatures):
    """Features of a subset whose AEVs are in one table on the device.

    Parameters
    ----------
    dtype : type of the AEVs

    Attributes
    ----------
    table : (n + 1, F) one element after another, each in the order of the structures; the last row is zero
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
        # All AEVs are on the device already.
        for _ in range(batches):
            yield
