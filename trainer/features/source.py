"""Where a training gets the AEVs of its structures: from the store, or computed for each batch."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.config import AEVConfig, FeatureConfig
from trainer.data.dataset import Dataset
from trainer.features.aev import MoleculeFeatures, aev_length, refuse_other_elements
from trainer.features.batches import AtomBatch, BatchLayout, IndexedStructures, Layouts, atom_counts
from trainer.features.element_sets import find_element_sets
from trainer.features.fixed_batches import FixedFeatures
from trainer.features.resident import COPIED_ROWS, Resident, StoredPart, free_memory, rows_of
from trainer.features.streaming import Streamed
from trainer.features.tables import StoreTables, open_tables, store_bytes
from trainer.progress import Progress

logger = logging.getLogger("anitune")

#: The dense AEVs of a part are copied to a GPU if they take at most this share of its free memory, and to
#: memory of their own on the CPU, for small batches, if they take at most so many GiB.
GPU_SHARE: Final = 0.8
CPU_LIMIT_GIB: Final = 2.0

#: From this batch size on a CPU works on each element set by itself, and leaves out the zero columns. In
#: smaller batches the many small operations would cost more than the products that are saved.
BY_SETS_FROM: Final = 192

#: Structures of one element set that are worked on at once: their AEVs stay in the cache of a core.
TILE: Final = 384

#: Structures that small batches are laid out for at once.
LAID_OUT: Final = 4096

Load = Callable[[], AtomBatch]
"""Gathers some structures of a batch."""


class PartFeatures(Protocol):
    """AEVs of some structures, ready for a training."""

    def steps(self, order: Tensor, batch_size: int) -> Iterator[list[Load]]:
        """Go through the structures in the ``order`` (n,) of their positions in the part, int64 on the CPU.

        Yields
        ------
        For each batch of ``batch_size`` structures, pieces that make it up; each may be loaded and worked
        on in a thread of its own.
        """


class FeatureSource(Protocol):
    """AEVs of all structures of a data set. Both kinds give the same numbers, on the CPU bit for bit."""

    @property
    def elements(self) -> tuple[str, ...]:
        """The elements, in the order of the networks."""

    @property
    def length(self) -> int:
        """Numbers in the AEV of an atom, F."""

    def part(
        self, structures: npt.NDArray[np.int64], device: torch.device, dtype: torch.dtype, batch_size: int
    ) -> PartFeatures:
        """The features of the structures with these global indices, for batches of this size."""


def open_features(
    dataset: Dataset, config: FeatureConfig, root: Path, progress: Progress, *, check: bool = False
) -> FeatureSource:
    """The features of a data set: stored under ``root``, built now if need be, or computed if too large.

    Parameters
    ----------
    check : read a store that is there as a whole, and compare its digests

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
        # In its table a structure's atoms follow those of the structures before it that are of the same set.
        rows = self._counts * np.diff(dataset.offsets)[:, None]
        self._first_rows = np.empty_like(rows)
        for s in range(len(tables.sets.sets)):
            of_set = tables.sets.of_molecule == s
            self._first_rows[of_set] = np.cumsum(rows[of_set], axis=0) - rows[of_set]
        # Trainings on the same part, at the same time or one after the other, share what is copied for it.
        self._parts: dict[tuple[object, ...], PartFeatures] = {}
        self._lock = threading.Lock()

    def part(
        self, structures: npt.NDArray[np.int64], device: torch.device, dtype: torch.dtype, batch_size: int
    ) -> PartFeatures:
        """Dense AEVs, copied to a GPU or for small batches, if they fit; else gathered from the files."""
        atoms = self._counts[self._dataset.molecule_of(structures)].sum()
        gib = int(atoms) * self.length * dtype.itemsize / 2**30
        on_gpu = device.type == "cuda"
        dense = not on_gpu and batch_size < BY_SETS_FROM and gib <= CPU_LIMIT_GIB
        # What is on a GPU stays there, also where there is no place for it a second time.
        key = (structures.tobytes(), device, dtype, dense)
        with self._lock:
            if key not in self._parts:
                make: Callable[..., PartFeatures] = self._dense_part if dense else self._part_by_sets
                self._parts[key] = (self._fixed_part if on_gpu else make)(structures, device, dtype)
            return self._parts[key]

    def _fixed_part(
        self, structures: npt.NDArray[np.int64], device: torch.device, dtype: torch.dtype
    ) -> FixedFeatures:
        part = self.stored_part(structures)
        gib = part.atoms * self.length * dtype.itemsize / 2**30
        free = free_memory(device) / 2**30
        if gib <= GPU_SHARE * free:
            return Resident(part, device, dtype)
        logger.warning(
            "the features of %d structures take %.3g GiB, and %.3g GiB are free on %s: "
            "they stay on the disk, and every batch is read and copied, which is slower",
            len(structures),
            gib,
            free,
            device,
        )
        return Streamed(part, device, dtype)

    def stored_part(self, structures: npt.NDArray[np.int64]) -> StoredPart:
        """Where the store has the AEVs of the structures with these global indices."""
        molecule = self._dataset.molecule_of(structures)
        return StoredPart(self._tables, self._counts, molecule, self._starts(structures), self.length)

    def _part_by_sets(
        self, structures: npt.NDArray[np.int64], device: torch.device, dtype: torch.dtype
    ) -> _Part:
        molecule = self._dataset.molecule_of(structures)
        starts = self._starts(structures)
        groups: list[_Group] = []
        for s, element_set in enumerate(self._tables.sets.sets):
            members = np.flatnonzero(self._tables.sets.of_molecule[molecule] == s)
            if len(members):
                elements = list(element_set.elements)
                groups.append(
                    _StoredGroup(
                        torch.from_numpy(members),
                        element_set.elements,
                        torch.from_numpy(element_set.columns).to(device),
                        Layouts(self._counts[:, elements], molecule[members], starts[members][:, elements].T),
                        device,
                        dtype,
                        tuple(self._tables.tables[s, e] for e in elements),
                    )
                )
        return _Part(groups, TILE)

    def _dense_part(
        self, structures: npt.NDArray[np.int64], device: torch.device, dtype: torch.dtype
    ) -> _Part:
        molecule = self._dataset.molecule_of(structures)
        counts = self._counts[molecule]
        sources, targets = self._starts(structures), np.cumsum(counts, axis=0) - counts
        kinds = range(len(self.elements))
        tables = tuple(torch.zeros((int(n), self.length), device=device, dtype=dtype) for n in counts.sum(0))
        for (s, e), stored in self._tables.tables.items():
            members = np.flatnonzero(self._tables.sets.of_molecule[molecule] == s)
            source = torch.split(rows_of(sources[members, e], counts[members, e]), COPIED_ROWS)
            target = torch.split(rows_of(targets[members, e], counts[members, e]).to(device), COPIED_ROWS)
            columns = torch.from_numpy(self._tables.sets.sets[s].columns).to(device)
            for some, there in zip(source, target, strict=True):
                tables[e][there[:, None], columns] = stored[some].to(device, dtype)
        layouts = Layouts(self._counts, molecule, targets.T)
        everything = torch.arange(len(structures))
        return _Part([_StoredGroup(everything, tuple(kinds), None, layouts, device, dtype, tables)], None)

    def _starts(self, structures: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where the atoms of each structure begin in the tables of its set, (n, E)."""
        molecule = self._dataset.molecule_of(structures)
        within = structures - self._dataset.offsets[molecule]
        starts: npt.NDArray[np.int64] = self._first_rows[molecule] + within[:, None] * self._counts[molecule]
        return starts


class ComputedFeatures:
    """AEVs that are computed anew for every batch, on the device of the training."""

    def __init__(self, dataset: Dataset, config: AEVConfig) -> None:
        self.elements = config.elements
        self.length = aev_length(config)
        self._dataset = dataset
        self._config = config
        self._sets = find_element_sets(dataset, config)
        self._counts = atom_counts(dataset, config.elements)

    def part(
        self, structures: npt.NDArray[np.int64], device: torch.device, dtype: torch.dtype, batch_size: int
    ) -> PartFeatures:
        """Nothing is computed yet."""
        molecule = self._dataset.molecule_of(structures)
        features = MoleculeFeatures(self._config, device)

        def group(
            members: npt.NDArray[np.int64], elements: tuple[int, ...], columns: Tensor | None
        ) -> _Group:
            counts = self._counts[:, list(elements)]
            # No table has rows of these.
            layouts = Layouts(counts, molecule[members], np.zeros((len(elements), len(members)), np.int64))
            return _ComputedGroup(
                torch.from_numpy(members),
                elements,
                columns,
                layouts,
                device,
                dtype,
                self._dataset,
                features,
                structures[members],
                self.length,
            )

        if batch_size < BY_SETS_FROM and device.type == "cpu":
            return _Part([group(np.arange(len(structures)), tuple(range(len(self.elements))), None)], None)
        of_structure = self._sets.of_molecule[molecule]
        return _Part(
            [
                group(members, s.elements, torch.from_numpy(s.columns).to(device))
                for number, s in enumerate(self._sets.sets)
                if len(members := np.flatnonzero(of_structure == number))
            ],
            TILE,
        )


class _Group(ABC):
    """Structures of a part that are worked on together: their atoms have the same AEV columns.

    Parameters
    ----------
    members : (n,) their positions in the part, ascending
    """

    def __init__(
        self,
        members: Tensor,
        elements: tuple[int, ...],
        columns: Tensor | None,
        layouts: Layouts,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.members = members
        self.elements = elements
        self.columns = columns
        self.layouts = layouts
        self.device = device
        self.dtype = dtype

    @abstractmethod
    def aevs(self, layout: BatchLayout) -> Iterable[Tensor]:
        """For each element, the AEVs of its atoms in a batch."""

    def load(self, layout: BatchLayout) -> AtomBatch:
        return AtomBatch(
            positions=self.members[layout.positions].to(self.device),
            elements=self.elements,
            columns=(self.columns,) * len(self.elements),
            aevs=tuple(aevs.to(self.device, self.dtype) for aevs in self.aevs(layout)),
            sums=IndexedStructures(layout.sizes, layout.owners.to(self.device), layout.atoms.to(self.device)),
        )

    def lay_out_and_load(self, members: Tensor) -> AtomBatch:
        return self.load(self.layouts.lay_out(members[None])[0])


class _StoredGroup(_Group):
    """AEVs gathered from tables, one an element."""

    def __init__(
        self,
        members: Tensor,
        elements: tuple[int, ...],
        columns: Tensor | None,
        layouts: Layouts,
        device: torch.device,
        dtype: torch.dtype,
        tables: tuple[Tensor, ...],
    ) -> None:
        super().__init__(members, elements, columns, layouts, device, dtype)
        self._tables = tables

    def aevs(self, layout: BatchLayout) -> Iterable[Tensor]:
        return (
            table.index_select(0, wanted.to(table.device))
            for table, wanted in zip(self._tables, layout.rows.split_with_sizes(layout.sizes), strict=True)
        )


class _ComputedGroup(_Group):
    def __init__(
        self,
        members: Tensor,
        elements: tuple[int, ...],
        columns: Tensor | None,
        layouts: Layouts,
        device: torch.device,
        dtype: torch.dtype,
        dataset: Dataset,
        features: MoleculeFeatures,
        structures: npt.NDArray[np.int64],
        length: int,
    ) -> None:
        super().__init__(members, elements, columns, layouts, device, dtype)
        self._dataset = dataset
        self._features = features
        self._structures = structures
        self._length = length

    def aevs(self, layout: BatchLayout) -> Iterable[Tensor]:
        atoms = layout.atoms.to(self.device)
        length = self._length if self.columns is None else len(self.columns)
        compute = self._features.compute if self.columns is None else self._features.compact
        aevs = torch.empty((len(layout.owners), length), device=self.device)
        molecules = self.layouts.molecule[layout.positions].numpy()
        for m in np.unique(molecules):
            molecule = self._dataset.molecules[m]
            some = np.flatnonzero(molecules == m)
            within = self._structures[layout.positions.numpy()[some]] - self._dataset.offsets[m]
            rows = atoms[: molecule.atoms, torch.from_numpy(some).to(self.device)].T
            aevs[rows] = compute(molecule, within)
        return aevs.split_with_sizes(layout.sizes)


class _Part:
    """A part as groups of structures.

    Parameters
    ----------
    tile : largest number of structures of a group that are loaded at once; None: a batch of the only group
    """

    def __init__(self, groups: Sequence[_Group], tile: int | None) -> None:
        self._groups = groups
        self._tile = tile
        structures = sum(len(group.members) for group in groups)
        self._group = torch.empty(structures, dtype=torch.int64)
        self._member = torch.empty(structures, dtype=torch.int64)
        for g, group in enumerate(groups):
            self._group[group.members] = g
            self._member[group.members] = torch.arange(len(group.members))

    def steps(self, order: Tensor, batch_size: int) -> Iterator[list[Load]]:
        if self._tile is None:
            yield from self._whole_batches(order, batch_size)
            return
        for positions in torch.split(order, batch_size):
            group = self._group[positions]
            yield [
                partial(self._groups[g].lay_out_and_load, some)
                for g in range(len(self._groups))
                for some in torch.split(self._member[positions[group == g]], self._tile)
                if len(some)
            ]

    def _whole_batches(self, order: Tensor, batch_size: int) -> Iterator[list[Load]]:
        (group,) = self._groups
        full = len(order) // batch_size * batch_size
        batches = order[:full].view(-1, batch_size)
        for some in (*torch.split(batches, max(1, LAID_OUT // batch_size)), order[None, full:]):
            if some.numel():
                for layout in group.layouts.lay_out(some):
                    yield [partial(group.load, layout)]
