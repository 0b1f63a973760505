"""Batches of one shape, laid out on the device: a step that takes them can be recorded and repeated.

The atoms of each element stand in a block of a fixed number of rows, its capacity; rows without an atom fill
it up. A batch with fewer structures than the others is filled up with structures without atoms. None of them
reaches a sum: what fills up has no structure, and its slope is zero.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.features.batches import AtomBatch, IndexedStructures, sort_atoms

#: Capacities are multiples of this, which products in low precision like.
ROWS: Final = 64

#: How far beyond the mean the usual capacity goes, in standard deviations of the atoms of a random batch.
DEVIATIONS: Final = 6


class PaddedStructures(IndexedStructures):
    """Structures of a batch whose blocks are filled up: the owner of a row without an atom is B."""

    def to_atoms(self, of_structures: Tensor) -> Sequence[Tensor]:
        """See :class:`AtomSums`."""
        nothing = of_structures.new_zeros((1, of_structures.shape[1]))
        return super().to_atoms(torch.cat([of_structures, nothing]))


class DeviceLayouts:
    """Which atoms the n structures of a part have, and where their AEVs are: all on the device.

    Position n is a structure without atoms.

    Parameters
    ----------
    counts : (M, E) number of atoms of each element in each molecule
    molecule : (n,) the molecule of each structure
    first_rows : (E, n) where the atoms of each structure begin in one table of all elements
    device : where batches are laid out

    Attributes
    ----------
    structures : n
    rows : of the table; the row behind the last one stands for no atom
    """

    def __init__(
        self,
        counts: npt.NDArray[np.int64],
        molecule: npt.NDArray[np.int64],
        first_rows: npt.NDArray[np.int64],
        device: torch.device,
    ) -> None:
        self.structures = len(molecule)
        self.device = device
        self.counts = counts
        self.molecule = molecule
        self.rows = int(counts[molecule].sum())
        none = np.zeros((1, counts.shape[1]), dtype=np.int64)
        of_all = torch.from_numpy(np.concatenate([counts, none]))
        element, place = sort_atoms(of_all)
        self.element, self.place = element.to(device), place.to(device)
        self.counts_there = of_all.T.contiguous().to(device)
        self.molecule_there = torch.from_numpy(np.append(molecule, len(counts))).to(device)
        self.first_rows = torch.from_numpy(np.concatenate([first_rows, none.T], axis=1)).to(device)

    def capacities(self, batch_size: int, *, sure: bool) -> tuple[int, ...]:
        """Rows for the atoms of each element in a batch of so many structures, at most n.

        Parameters
        ----------
        sure : so many that no batch has more; else so many that hardly one has
        """
        of_molecules = np.bincount(self.molecule, minlength=len(self.counts))
        found = []
        for of_element in self.counts.T:
            mean = np.average(of_element, weights=of_molecules)
            spread = math.sqrt(np.average((of_element - mean) ** 2, weights=of_molecules))
            usual = mean * batch_size + DEVIATIONS * spread * math.sqrt(batch_size)
            # The largest structures of all in one batch.
            order = np.argsort(-of_element)
            ends = np.minimum(np.cumsum(of_molecules[order]), batch_size)
            most = int((np.diff(ends, prepend=0) * of_element[order]).sum())
            found.append(most if sure else min(most, math.ceil(usual)))
        # A block without rows would have no product to compute.
        return tuple(max(ROWS, -(-rows // ROWS) * ROWS) for rows in found)

    def fit(self, orders: Tensor, capacities: Sequence[int]) -> Tensor:
        """Whether the batches (N, B) do not exceed the capacities: a boolean scalar on the device."""
        counts = self.counts_there.index_select(1, self.molecule_there[orders.flatten()])
        most = counts.view(len(counts), *orders.shape).sum(2).amax(1)
        return (most <= _on_device(capacities, self.device)).all()

    def sizes(self, positions: npt.NDArray[np.int64]) -> tuple[int, ...]:
        """How many rows the atoms of each element in a batch take."""
        return tuple(int(rows) for rows in self.counts[self.molecule[positions]].sum(0))


class Frame:
    """The shape of batches, and how a batch of it is laid out.

    Parameters
    ----------
    size : structures, B
    capacities : rows for the atoms of each element, C in all
    """

    def __init__(self, layouts: DeviceLayouts, size: int, capacities: Sequence[int]) -> None:
        self.size = size
        self.capacities = tuple(capacities)
        self.rows = sum(capacities)
        self._layouts = layouts
        self._capacities = _on_device(capacities, layouts.device)[:, None]
        self._atom = torch.arange(self.rows, device=layouts.device)

    def lay_out(self, positions: Tensor) -> tuple[Tensor, PaddedStructures]:
        """The rows (C,) of the table that make up the batch at ``positions`` (B,), and its sums."""
        some = self._layouts
        molecule = some.molecule_there.index_select(0, positions)
        counts = some.counts_there.index_select(1, molecule)
        # The rows of a batch come in runs: one a structure, and one that fills up, for each element.
        lengths = torch.cat([counts, self._capacities - counts.sum(1, keepdim=True)], 1)
        ends = lengths.flatten().cumsum(0)
        begins = ends.view_as(lengths) - lengths
        run = torch.searchsorted(ends, self._atom, right=True)
        # A run that fills up begins behind the last row, and all beyond is the row of no atom.
        first_rows = some.first_rows.index_select(1, positions)
        behind = first_rows.new_full((len(counts), 1), some.rows)
        shifts = torch.cat([first_rows, behind], 1) - begins
        rows = (shifts.flatten().index_select(0, run) + self._atom).clamp_(max=some.rows)
        owners = run.remainder(self.size + 1)
        # The atoms of the element after the last one "begin" behind all rows of the batch.
        begins = torch.cat([begins[:, : self.size], begins.new_full((1, self.size), self.rows)])
        atoms = begins.gather(0, some.element.index_select(1, molecule))
        atoms += some.place.index_select(1, molecule)
        return rows, PaddedStructures(self.capacities, owners, atoms)


class FixedBatches(ABC):
    """Batches of one shape of a part.

    Parameters
    ----------
    frame : the shape
    """

    def __init__(self, frame: Frame) -> None:
        self.frame = frame

    @abstractmethod
    def aevs(self, rows: Tensor) -> Tensor:
        """The AEVs of a batch, (C, F), whose atoms have these ``rows`` (C,) in the table of the part."""

    def load(self, positions: Tensor) -> AtomBatch:
        """The batch at ``positions`` (B,) on the device; the host learns nothing of it, and does not wait.

        It may be recorded: what it reads stays where it is.
        """
        rows, sums = self.frame.lay_out(positions)
        capacities = self.frame.capacities
        return AtomBatch(
            positions=positions,
            elements=tuple(range(len(capacities))),
            columns=(None,) * len(capacities),
            aevs=self.aevs(rows).split_with_sizes(capacities),
            sums=sums,
        )

    @abstractmethod
    def feed(self, orders: Tensor) -> Generator[None]:
        """Bring one batch of ``orders`` (N, B) after another to where :meth:`load` finds it.

        Close it when it is not gone through to its end.
        """


class FixedFeatures(ABC):
    """The AEVs of a part, of which there are batches of one shape.

    Attributes
    ----------
    layouts : which atoms its structures have
    """

    layouts: DeviceLayouts

    @abstractmethod
    def batches(self, frame: Frame) -> FixedBatches:
        """Batches of this shape, for one that goes through them."""

    @abstractmethod
    def steps(self, order: Tensor, batch_size: int) -> Iterator[list[Callable[[], AtomBatch]]]:
        """See :class:`trainer.features.source.PartFeatures`."""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a tensor of the host, for which the host does not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.clone()


def _on_device(numbers: Sequence[int], device: torch.device) -> Tensor:
    """A vector of few numbers, by operations that the host does not wait for."""
    return torch.cat([torch.full((1,), number, dtype=torch.int64, device=device) for number in numbers])
