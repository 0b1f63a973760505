"""Where a training gets the AEVs of its structures: from the store, or computed for each batch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.config import AEVConfig, FeatureConfig
from trainer.data.dataset import Dataset
from trainer.features.aev import MoleculeFeatures, aev_length, refuse_other_elements
from trainer.features.batches import AtomBatch, PartLayout, atom_counts
from trainer.features.store import open_store, store_bytes
from trainer.progress import Progress

logger = logging.getLogger("anitune")

#: A part is copied to a GPU if it takes at most this share of the memory that is free there.
RESIDENT_SHARE: Final = 0.8

#: Rows that are copied to a GPU at once.
COPIED_ROWS: Final = 2**16


class PartFeatures(Protocol):
    """AEVs of some structures, ready for a training."""

    def batch(self, positions: Tensor) -> AtomBatch:
        """The atoms of the structures at these positions of the part, (B,) int64 on the CPU."""


class FeatureSource(Protocol):
    """AEVs of all structures of a data set. Both kinds give the same numbers, bit for bit."""

    @property
    def elements(self) -> tuple[str, ...]:
        """The elements, in the order of ``AtomBatch.aevs``."""

    @property
    def length(self) -> int:
        """Numbers in the AEV of an atom, F."""

    def part(
        self, structures: npt.NDArray[np.int64], device: torch.device, dtype: torch.dtype
    ) -> PartFeatures:
        """The features of the structures with these global indices, for a training on ``device``."""


def open_features(dataset: Dataset, config: FeatureConfig, root: Path, progress: Progress) -> FeatureSource:
    """The features of a data set: stored under ``root``, built now if need be, or computed if too large.

    Raises
    ------
    DataError
        if there are no features for an element of the data.
    FeatureStoreError
        if the store can be neither read nor built.
    """
    refuse_other_elements(dataset, config.aev)
    gib = store_bytes(dataset, config.aev) / 2**30
    if gib > config.store_limit_gib:
        logger.warning(
            "the feature store would take %.3g GiB, more than features.store_limit_gib = %.3g: "
            "AEVs are computed batch by batch instead, which is much slower",
            gib,
            config.store_limit_gib,
        )
        return ComputedFeatures(dataset, config.aev)
    return StoredFeatures(dataset, config.aev, open_store(dataset, config.aev, root, progress))


class StoredFeatures:
    """AEVs from memory-mapped files.

    Parameters
    ----------
    tables : for each element, (N_e, F): the AEVs of all its atoms in the order of the structures
    """

    def __init__(self, dataset: Dataset, config: AEVConfig, tables: tuple[Tensor, ...]) -> None:
        self.elements = config.elements
        self.length = aev_length(config)
        self._dataset = dataset
        self._tables = tables
        # The rows of a structure follow from its number among those of its molecule.
        self._counts = atom_counts(dataset, config.elements)
        rows = self._counts * np.diff(dataset.offsets)[:, None]
        self._first_rows = np.cumsum(rows, axis=0) - rows

    def part(
        self, structures: npt.NDArray[np.int64], device: torch.device, dtype: torch.dtype
    ) -> PartFeatures:
        """On a GPU the part is copied there, if it fits; on the CPU all processes share the mapped files."""
        layout = PartLayout(self._dataset, self.elements, structures)
        molecule = self._dataset.molecule_of(structures)
        counts = self._counts[molecule].T
        within = structures - self._dataset.offsets[molecule]
        starts = self._first_rows[molecule].T + within * counts
        if device.type == "cpu":
            return _StoredPart(layout, self._tables, torch.from_numpy(starts), device, dtype)
        needed = int(counts.sum()) * self.length * 4
        free, _ = torch.cuda.mem_get_info(device)
        if needed > RESIDENT_SHARE * free:
            logger.warning(
                "the features of %d structures take %.3g GiB, and %.3g GiB are free on %s: "
                "they stay in the memory of the host, and every batch is copied, which is slower",
                len(structures),
                needed / 2**30,
                free / 2**30,
                device,
            )
            return _StoredPart(layout, self._tables, torch.from_numpy(starts), device, dtype)
        resident = tuple(
            _copy_rows(table, starts[e], counts[e], device) for e, table in enumerate(self._tables)
        )
        compact = torch.from_numpy(np.cumsum(counts, axis=1) - counts)
        return _StoredPart(layout, resident, compact, device, dtype)


class ComputedFeatures:
    """AEVs that are computed anew for every batch, on the device of the training."""

    def __init__(self, dataset: Dataset, config: AEVConfig) -> None:
        self.elements = config.elements
        self.length = aev_length(config)
        self._dataset = dataset
        self._config = config

    def part(
        self, structures: npt.NDArray[np.int64], device: torch.device, dtype: torch.dtype
    ) -> PartFeatures:
        """Nothing is computed yet."""
        layout = PartLayout(self._dataset, self.elements, structures)
        features = MoleculeFeatures(self._config, device)
        return _ComputedPart(self._dataset, features, structures, layout, device, dtype, self.length)


class _StoredPart:
    """Rows gathered from tables; ``starts`` (E, n) tells where those of each structure begin."""

    def __init__(
        self,
        layout: PartLayout,
        tables: tuple[Tensor, ...],
        starts: Tensor,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._layout = layout
        self._tables = tables
        self._starts = starts
        self._device = device
        self._dtype = dtype

    def batch(self, positions: Tensor) -> AtomBatch:
        layout = self._layout.batch(positions)
        shifts = self._starts[:, positions].flatten() - layout.runs
        rows = shifts[layout.run_of] + torch.arange(len(layout.run_of))
        gathered = (
            table.index_select(0, wanted.to(table.device))
            for table, wanted in zip(self._tables, rows.split_with_sizes(layout.sizes), strict=True)
        )
        return AtomBatch(
            aevs=tuple(aevs.to(self._device, self._dtype) for aevs in gathered),
            owners=layout.owners.to(self._device),
            atoms=layout.atoms.to(self._device),
        )


class _ComputedPart:
    def __init__(
        self,
        dataset: Dataset,
        features: MoleculeFeatures,
        structures: npt.NDArray[np.int64],
        layout: PartLayout,
        device: torch.device,
        dtype: torch.dtype,
        length: int,
    ) -> None:
        self._dataset = dataset
        self._features = features
        self._structures = structures
        self._layout = layout
        self._device = device
        self._dtype = dtype
        self._length = length

    def batch(self, positions: Tensor) -> AtomBatch:
        layout = self._layout.batch(positions)
        atoms = layout.atoms.to(self._device)
        aevs = torch.empty((len(layout.owners), self._length), device=self._device)
        molecules = self._layout.molecule[positions].numpy()
        for m in np.unique(molecules):
            molecule = self._dataset.molecules[m]
            chunk = self._features.chunk(molecule)
            members = np.flatnonzero(molecules == m)
            for some in np.split(members, range(chunk, len(members), chunk)):
                within = self._structures[positions.numpy()[some]] - self._dataset.offsets[m]
                rows = atoms[: molecule.atoms, torch.from_numpy(some).to(self._device)].T
                aevs[rows] = self._features.compute(molecule, within)
        return AtomBatch(
            tuple(aevs.to(self._dtype).split_with_sizes(layout.sizes)), layout.owners.to(self._device), atoms
        )


def _copy_rows(
    table: Tensor, starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], device: torch.device
) -> Tensor:
    """The runs of rows that begin at ``starts`` and are ``counts`` long, one after another on ``device``."""
    lengths = torch.from_numpy(counts)
    ends = lengths.cumsum(0)
    rows = torch.repeat_interleave(torch.from_numpy(starts) - (ends - lengths), lengths)
    rows += torch.arange(len(rows))
    copied = torch.empty((len(rows), table.shape[1]), device=device)
    for begin in range(0, len(rows), COPIED_ROWS):
        block = rows[begin : begin + COPIED_ROWS]
        copied[begin : begin + len(block)] = table.index_select(0, block)
    return copied
