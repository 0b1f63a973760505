"""Subsets of a data set as groups of structures, and the division of their batches into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.features.batches import (
    AtomBatch,
    AtomSums,
    BatchLayout,
    CountedStructures,
    EqualStructures,
    IndexedStructures,
    Layouts,
)
from trainer.features.compositions import Composition

#: Bytes of the AEVs of a micro-batch: they stay in the cache of a core.
MICRO_BATCH_BYTES: Final = 4 * 2**20

#: Structures for which small batches are laid out at once, and the most structures of a whole micro-batch.
LAID_OUT: Final = 4096
WHOLE: Final = 1024

Load = Callable[[], AtomBatch]
"""Gathers a micro-batch: some structures of a batch."""


class SubsetFeatures(Protocol):
    """AEVs of some structures, ready for a training."""

    def steps(self, permutation: Tensor, batch_size: int) -> Iterator[list[Load]]:
        """Go through the structures in a ``permutation`` (n,) of their positions, int64 on the CPU.

        Yields
        ------
        For each batch of ``batch_size`` structures, its micro-batches; each may be loaded and used in its
        own thread.
        """


WriteAEVs = Callable[[int, Tensor, Sequence[Tensor]], None]
"""Writes AEVs, given the index of a composition and the keys of n of its structures, (n,) int64: for each
element, those of its atoms into a tensor (n * c, F_e), float32 on the CPU."""


class Group:
    """Structures of a subset whose AEVs are given in the same columns, so that they are processed together.

    Parameters
    ----------
    compositions : the compositions of the structures, by their index; all have the same elements
    members : for each composition, (n_c,) ascending: the positions of its structures in the subset
    known_by : for each composition, (n_c,): the keys by which ``write`` identifies its structures
    columns : for each element, (F_e,): at least the columns that its atoms have in any of the compositions
    """

    def __init__(
        self,
        compositions: Mapping[int, Composition],
        members: Sequence[Tensor],
        known_by: Sequence[Tensor],
        columns: tuple[Tensor, ...],
        write: WriteAEVs,
        dtype: torch.dtype,
    ) -> None:
        self.members = torch.cat(list(members))
        self._known_by = torch.cat(list(known_by))
        self._ends = torch.tensor([len(some) for some in members]).cumsum(0)
        self._compositions = list(compositions.items())
        self._counts = torch.tensor([some.counts for some in compositions.values()])
        self._elements = self._compositions[0][1].elements
        self._columns = columns
        lengths = torch.tensor([len(some) for some in columns])
        self.largest_row = int((self._counts * lengths).sum(1).max())
        self._places = [
            [torch.searchsorted(all_of_them, torch.from_numpy(own)) for own, all_of_them in pairs]
            for pairs in (zip(some.columns, columns, strict=True) for some in compositions.values())
        ]
        self._write = write
        self._dtype = dtype

    def load(self, chosen: Tensor) -> AtomBatch:
        """Load the structures at these indices of ``members``, (B,) ascending."""
        known_by = self._known_by.index_select(0, chosen)
        ends = torch.searchsorted(chosen, self._ends).tolist()
        in_runs = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        runs = [run for run, structures in enumerate(in_runs) if structures]
        atoms = (self._counts * torch.tensor(in_runs)[:, None]).sum(0).tolist()
        tables = [
            torch.empty((n, len(columns)), dtype=self._dtype)
            for n, columns in zip(atoms, self._columns, strict=True)
        ]
        begins = [0] * len(tables)
        for run in runs:
            number, composition = self._compositions[run]
            sizes = [in_runs[run] * count for count in composition.counts]
            rows = [
                table.narrow(0, begin, size) for table, begin, size in zip(tables, begins, sizes, strict=True)
            ]
            self._fill(run, number, known_by.narrow(0, ends[run] - in_runs[run], in_runs[run]), rows)
            begins = [begin + size for begin, size in zip(begins, sizes, strict=True)]
        sums: AtomSums
        if len(runs) == 1:
            sums = EqualStructures(self._compositions[runs[0]][1].counts)
        else:
            counts = self._counts.repeat_interleave(torch.tensor(in_runs), 0)
            sums = CountedStructures(counts.T.contiguous(), atoms)
        return AtomBatch(
            positions=self.members.index_select(0, chosen),
            elements=self._elements,
            columns=self._columns,
            aevs=tuple(tables),
            sums=sums,
        )

    def _fill(self, run: int, number: int, known_by: Tensor, rows: Sequence[Tensor]) -> None:
        """Write the AEVs of structures of a composition into these rows."""
        own = self._places[run]
        as_they_are = all(len(places) == some.shape[1] for places, some in zip(own, rows, strict=True))
        if as_they_are and rows[0].dtype == torch.float32:
            self._write(number, known_by, rows)
            return
        written = [torch.empty((len(some), len(places))) for places, some in zip(own, rows, strict=True)]
        self._write(number, known_by, written)
        for some, places, aevs in zip(rows, own, written, strict=True):
            there = aevs.to(self._dtype)
            if as_they_are:
                some.copy_(there)
            else:
                some.zero_().index_copy_(1, places, there)


class GroupedSubset:
    """A subset in several groups, whose batches are divided into micro-batches that fit a cache.

    Parameters
    ----------
    groups : each structure of the subset is in one of them
    itemsize : bytes of a number of an AEV
    """

    def __init__(self, groups: Sequence[Group], itemsize: int) -> None:
        self._groups = groups
        self._largest = [max(1, MICRO_BATCH_BYTES // (group.largest_row * itemsize or 1)) for group in groups]
        lengths = torch.tensor([len(group.members) for group in groups])
        self._ends = lengths.cumsum(0)
        self._begins = (self._ends - lengths).tolist()
        # Index of each structure if all are counted group by group.
        self._number = torch.empty(int(lengths.sum()), dtype=torch.int64)
        self._number[torch.cat([group.members for group in groups])] = torch.arange(len(self._number))

    def steps(self, permutation: Tensor, batch_size: int) -> Iterator[list[Load]]:
        """See :class:`SubsetFeatures`."""
        for positions in torch.split(permutation, batch_size):
            numbers = self._number[positions].sort().values
            ends = torch.searchsorted(numbers, self._ends).tolist()
            micro_batches: list[tuple[int, Load]] = []
            begin = 0
            for group, first, largest, end in zip(
                self._groups, self._begins, self._largest, ends, strict=True
            ):
                if begin < end:
                    chosen = numbers[begin:end] - first
                    for some in torch.tensor_split(chosen, -(-(end - begin) // largest)):
                        micro_batches.append((group.largest_row * len(some), partial(group.load, some)))
                begin = end
            # Threads take them in turn, so that each has about the same amount of work.
            micro_batches.sort(key=lambda micro_batch: micro_batch[0], reverse=True)
            yield [load for _, load in micro_batches]


class WholeSubset:
    """A subset whose batches are processed by element, with all columns.

    Parameters
    ----------
    gather : returns, for each element, the AEVs of its atoms in a batch, (n_e, F)
    """

    def __init__(
        self, layouts: Layouts, gather: Callable[[BatchLayout], Iterable[Tensor]], dtype: torch.dtype
    ) -> None:
        self._layouts = layouts
        self._gather = gather
        self._dtype = dtype
        self._elements = tuple(range(layouts.elements))

    def steps(self, permutation: Tensor, batch_size: int) -> Iterator[list[Load]]:
        """See :class:`SubsetFeatures`."""
        full = len(permutation) // batch_size * batch_size if batch_size <= WHOLE else 0
        for some in torch.split(permutation[:full].view(-1, batch_size), max(1, LAID_OUT // batch_size)):
            if some.numel():
                for layout in self._layouts.lay_out(some):
                    yield [partial(self._load, layout)]
        for batch in torch.split(permutation[full:], batch_size):
            if len(batch):
                yield [partial(self._lay_out_and_load, some) for some in torch.split(batch, WHOLE)]

    def _lay_out_and_load(self, positions: Tensor) -> AtomBatch:
        return self._load(self._layouts.lay_out(positions[None])[0])

    def _load(self, layout: BatchLayout) -> AtomBatch:
        return AtomBatch(
            positions=layout.positions,
            elements=self._elements,
            columns=(None,) * len(self._elements),
            aevs=tuple(some.to(self._dtype) for some in self._gather(layout)),
            sums=IndexedStructures(layout.sizes, layout.owners, layout.atoms),
        )


def rows_of_runs(starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> Tensor:
    """Return the rows of the runs that begin at ``starts`` and have lengths ``counts``, one after another."""
    lengths = torch.from_numpy(counts)
    ends = lengths.cumsum(0)
    rows = torch.repeat_interleave(torch.from_numpy(starts) - (ends - lengths), lengths)
    return rows + torch.arange(len(rows))
