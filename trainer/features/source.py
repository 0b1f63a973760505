"""Sources of AEVs for a training: the store, or computation for each batch."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import reduce
from pathlib import Path
from typing import Final, Protocol
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.config import AEVConfig, FeatureConfig
from trainer.data.dataset import Dataset
from trainer.features.aev import MoleculeFeatures, aev_length, refuse_other_elements
from trainer.features.aev_store import StoreTables, open_tables, store_bytes
from trainer.features.batches import BatchLayout, Layouts
from trainer.features.compositions import Compositions, atom_counts, find_compositions
from trainer.features.computed import Computed
from trainer.features.device_table import COPIED_ROWS, DeviceTable, StoredSubset, free_memory
from trainer.features.micro_batches import (
    Group,
    GroupedSubset,
    SubsetFeatures,
    WholeSubset,
    WriteAEVs,
    rows_of_runs,
)
from trainer.features.static_batches import DeviceFeatures
from trainer.features.streaming import Streamed
from trainer.fitting.devices import release_memory
from trainer.progress import Progress

logger = logging.getLogger("anitune")

#: The AEVs of a subset are copied to a GPU if they take at most this share of its free memory, and on the CPU
#: to a dense table for small batches, if they take at most this many GiB.
GPU_SHARE: Final = 0.8
CPU_LIMIT_GIB: Final = 2.0

#: From this batch size on a CPU processes each kind of composition separately, and leaves out the zero
#: columns. In smaller batches the overhead of the many small operations would exceed the products that are
#: saved, and faster products save less.
GROUPED_FROM: Final = {torch.float32: 512, torch.float64: 512, torch.bfloat16: 4096}

#: Compositions with the same columns are processed separately if a batch holds at least this many of their
#: structures on average.
ALONE_FROM: Final = 64


class FeatureSource(Protocol):
    """AEVs of all structures of a data set. Both kinds give the same numbers, on the CPU bit for bit."""

    @property
    def elements(self) -> tuple[str, ...]:
        """The elements, in the order of the networks."""

    @property
    def length(self) -> int:
        """Length of the AEV of an atom, F."""

    def subset(
        self, structures: npt.NDArray[np.int64], dtype: torch.dtype, batch_size: int
    ) -> SubsetFeatures:
        """Return features of structures with these global indices, for batches of this size on the CPU."""

    def device_subset(
        self, structures: npt.NDArray[np.int64], device: torch.device, dtype: torch.dtype
    ) -> DeviceFeatures:
        """Return features of structures with these global indices on a GPU."""


def open_features(
    dataset: Dataset, config: FeatureConfig, root: Path, progress: Progress, *, check: bool = False
) -> FeatureSource:
    """Open the features of a data set: stored below ``root``, built if need be, or computed if too large.

    Parameters
    ----------
    check : read an existing store completely, and compare its digests

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
    memory = int(config.build_memory_gib * 2**30)
    tables = open_tables(dataset, config.aev, root, progress, memory=memory, check=check)
    return StoredFeatures(dataset, config.aev, tables)


class StoredFeatures:
    """AEVs from memory-mapped files.

    Parameters
    ----------
    tables : the AEVs of all structures
    """

    def __init__(self, dataset: Dataset, config: AEVConfig, tables: StoreTables) -> None:
        self.elements = config.elements
        self.length = aev_length(config)
        self._dataset = dataset
        self._tables = tables
        self._counts = atom_counts(dataset, config.elements)
        # In the tables the structures of a molecule follow those of earlier molecules with the same
        # composition.
        of_molecule, structures = tables.compositions.of_molecule, np.diff(dataset.offsets)
        self._first = np.empty_like(structures)
        for c in range(len(tables.compositions.each)):
            of = of_molecule == c
            self._first[of] = np.cumsum(structures[of]) - structures[of]
        # Trainings on the same subset, at the same time or one after another, share its copy.
        self._parts: dict[tuple[object, ...], SubsetFeatures] = {}
        # A table that no training uses is kept as long as there is memory.
        self._device_subsets = WeakValueDictionary[tuple[object, ...], DeviceFeatures]()
        self._kept: list[DeviceTable] = []
        self._lock = threading.Lock()

    def subset(
        self, structures: npt.NDArray[np.int64], dtype: torch.dtype, batch_size: int
    ) -> SubsetFeatures:
        """Return dense AEVs, copied for small batches if they fit; otherwise gathered from the files."""
        molecule = self._dataset.molecule_of(structures)
        gib = int(self._counts[molecule].sum()) * self.length * dtype.itemsize / 2**30
        dense = batch_size < GROUPED_FROM[dtype] and gib <= CPU_LIMIT_GIB
        alone = () if dense else tuple(_alone(self._tables.compositions, molecule, batch_size))
        key = (structures.tobytes(), dtype, dense, alone)
        with self._lock:
            if key not in self._parts:
                if dense:
                    self._parts[key] = self._dense_subset(structures, dtype)
                else:
                    rows = self._rows(structures)
                    self._parts[key] = _grouped_subset(
                        self._tables.compositions, molecule, rows, alone, self._gather, dtype
                    )
            return self._parts[key]

    def device_subset(
        self, structures: npt.NDArray[np.int64], device: torch.device, dtype: torch.dtype
    ) -> DeviceFeatures:
        """Return a table on the device if it fits; otherwise batches are read from the files."""
        key = (structures.tobytes(), device, dtype)
        with self._lock:
            subset = self._device_subsets.get(key)
            if subset is None:
                subset = self._device_subsets[key] = self._new_device_subset(structures, device, dtype)
            return subset

    def stored_subset(self, structures: npt.NDArray[np.int64]) -> StoredSubset:
        """Locate the AEVs of the structures with these global indices in the store."""
        molecule = self._dataset.molecule_of(structures)
        return StoredSubset(self._tables, self._counts, molecule, self._rows(structures), self.length)

    def _new_device_subset(
        self, structures: npt.NDArray[np.int64], device: torch.device, dtype: torch.dtype
    ) -> DeviceFeatures:
        subset = self.stored_subset(structures)
        gib = subset.atoms * self.length * dtype.itemsize / 2**30
        free = free_memory(device) / 2**30
        if gib > GPU_SHARE * free and self._kept:
            # Tables that no training uses any more, for example of another precision, are released.
            self._kept.clear()
            release_memory(device)
            free = free_memory(device) / 2**30
        if gib <= GPU_SHARE * free:
            self._kept.append(DeviceTable(subset, device, dtype))
            return self._kept[-1]
        logger.warning(
            "the features of %d structures take %.3g GiB, and %.3g GiB are free on %s: "
            "they stay on the disk, and every batch is read and copied, which is slower",
            len(structures),
            gib,
            free,
            device,
        )
        return Streamed(subset, device, dtype)

    def _rows(self, structures: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the index of each structure in the tables of its composition, (n,)."""
        molecule = self._dataset.molecule_of(structures)
        rows: npt.NDArray[np.int64] = self._first[molecule] + structures - self._dataset.offsets[molecule]
        return rows

    def _gather(self, composition: int, rows: Tensor, into: Sequence[Tensor]) -> None:
        elements = self._tables.compositions.each[composition].elements
        for e, place in zip(elements, into, strict=True):
            table = self._tables.tables[composition, e]
            structures, count, length = table.shape
            # A structure's atoms are adjacent, so they are copied at once.
            row = count * length
            torch.index_select(table.view(structures, row), 0, rows, out=place.view(len(rows), row))

    def _dense_subset(self, structures: npt.NDArray[np.int64], dtype: torch.dtype) -> SubsetFeatures:
        molecule = self._dataset.molecule_of(structures)
        counts = self._counts[molecule]
        targets = np.cumsum(counts, axis=0) - counts
        stored_rows = self._rows(structures)
        dense = tuple(torch.zeros((int(n), self.length), dtype=dtype) for n in counts.sum(0))
        of_structure = self._tables.compositions.of_molecule[molecule]
        for (c, e), table in self._tables.tables.items():
            members = np.flatnonzero(of_structure == c)
            composition = self._tables.compositions.each[c]
            columns = torch.from_numpy(composition.columns[composition.elements.index(e)])
            count, length = table.shape[1:]
            source = rows_of_runs(stored_rows[members] * count, counts[members, e])
            target = rows_of_runs(targets[members, e], counts[members, e])
            rows = table.view(len(table) * count, length)
            for some, there in zip(
                torch.split(source, COPIED_ROWS), torch.split(target, COPIED_ROWS), strict=True
            ):
                dense[e][there[:, None], columns] = rows[some].to(dtype)

        def gather(layout: BatchLayout) -> Iterable[Tensor]:
            of_elements = zip(dense, layout.rows.split_with_sizes(layout.sizes), strict=True)
            return (table.index_select(0, rows) for table, rows in of_elements)

        return WholeSubset(Layouts(self._counts, molecule, targets.T), gather, dtype)


class ComputedFeatures:
    """AEVs that are computed for every batch, on the device of the training."""

    def __init__(self, dataset: Dataset, config: AEVConfig) -> None:
        self.elements = config.elements
        self.length = aev_length(config)
        self._dataset = dataset
        self._config = config
        self._compositions = find_compositions(dataset, config)
        self._counts = atom_counts(dataset, config.elements)

    def subset(
        self, structures: npt.NDArray[np.int64], dtype: torch.dtype, batch_size: int
    ) -> SubsetFeatures:
        """Return features that are computed when batches are loaded."""
        dataset, molecule = self._dataset, self._dataset.molecule_of(structures)
        features = MoleculeFeatures(self._config, torch.device("cpu"))
        if batch_size < GROUPED_FROM[dtype]:

            def gather(layout: BatchLayout) -> Iterable[Tensor]:
                aevs = torch.empty((len(layout.owners), self.length))
                molecules = molecule[layout.positions.numpy()]
                for m in np.unique(molecules):
                    some = np.flatnonzero(molecules == m)
                    within = structures[layout.positions.numpy()[some]] - dataset.offsets[m]
                    rows = layout.atoms[: dataset.molecules[m].atoms, torch.from_numpy(some)].T
                    aevs[rows] = features.compute(dataset.molecules[m], within)
                return aevs.split_with_sizes(layout.sizes)

            # No table has rows for these structures.
            first_rows = np.zeros((len(self.elements), len(structures)), np.int64)
            return WholeSubset(Layouts(self._counts, molecule, first_rows), gather, dtype)

        def compute(composition: int, chosen: Tensor, into: Sequence[Tensor]) -> None:
            columns = self._compositions.each[composition].columns
            numbers = chosen.numpy()
            of = dataset.molecule_of(numbers)
            # The numbers are ascending, so those of a molecule are adjacent.
            by_molecule = [
                features.of_columns(dataset.molecules[m], numbers[of == m] - dataset.offsets[m], columns)
                for m in np.unique(of)
            ]
            for place, of_element in zip(into, zip(*by_molecule, strict=True), strict=True):
                place.copy_(torch.cat(of_element).flatten(0, 1))

        alone = _alone(self._compositions, molecule, batch_size)
        return _grouped_subset(self._compositions, molecule, structures, alone, compute, dtype)

    def device_subset(
        self, structures: npt.NDArray[np.int64], device: torch.device, dtype: torch.dtype
    ) -> DeviceFeatures:
        """Return features that are computed for each batch."""
        return Computed(self._dataset, self._config, self._counts, structures, device, dtype)


def _alone(compositions: Compositions, molecule: npt.NDArray[np.int64], batch_size: int) -> Sequence[int]:
    """Return the compositions whose kind has enough structures in a batch of these molecules."""
    structures = np.bincount(compositions.of_molecule[molecule], minlength=len(compositions.each))
    in_a_batch = Counter[tuple[object, ...]]()
    for composition, number in zip(compositions.each, structures, strict=True):
        in_a_batch[composition.kind] += number * min(1.0, batch_size / len(molecule))
    return [
        c for c, composition in enumerate(compositions.each) if in_a_batch[composition.kind] >= ALONE_FROM
    ]


def _grouped_subset(
    compositions: Compositions,
    molecule: npt.NDArray[np.int64],
    known_by: npt.NDArray[np.int64],
    alone: Sequence[int],
    write: WriteAEVs,
    dtype: torch.dtype,
) -> SubsetFeatures:
    """Group structures of these molecules by kinds of compositions, or by elements if a kind has too few."""
    of_structure = compositions.of_molecule[molecule]
    shared: dict[bytes, Tensor] = {}

    def once(columns: npt.NDArray[np.int64]) -> Tensor:
        """Return one tensor for equal columns, so that their weights are selected once per batch."""
        return shared.setdefault(columns.tobytes(), torch.from_numpy(columns))

    together: dict[tuple[object, ...], list[int]] = {}
    for c in np.unique(of_structure).tolist():
        composition = compositions.each[c]
        kind = composition.kind if c in alone else composition.elements
        together.setdefault(kind, []).append(c)
    groups = []
    for numbers in together.values():
        of_each = [np.flatnonzero(of_structure == c) for c in numbers]
        some = {c: compositions.each[c] for c in numbers}
        by_element = zip(*(composition.columns for composition in some.values()), strict=True)
        groups.append(
            Group(
                some,
                [torch.from_numpy(members) for members in of_each],
                [torch.from_numpy(known_by[members]) for members in of_each],
                tuple(once(reduce(np.union1d, columns)) for columns in by_element),
                write,
                dtype,
            )
        )
    return GroupedSubset(groups, dtype.itemsize)
