"""Batches of one shape on a GPU, so that a step can be captured once and replayed.

The atoms of each element are in a block with a fixed number of rows, its capacity. Rows without an atom are
padding, and so are the structures without atoms that fill up the last batch; neither affects a sum. All
batches of an epoch are laid out at once, before its first step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.features.batches import sort_atoms

#: Capacities are multiples of this, so that the rows of a kernel's tile belong to one element.
ROWS: Final = 64

#: Margin of the usual capacity above the mean, in standard deviations of the atoms of a random batch.
DEVIATIONS: Final = 6

#: Numbers of a layout that are computed at once; this limits the memory of intermediate results.
LAID_OUT: Final = 2**24

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BatchShape:
    """The shape that all batches of an epoch have in common.

    Attributes
    ----------
    size : number of structures, B
    capacities : rows for the atoms of each element, C in total
    atoms : number of atoms of the largest structure, A
    """

    size: int
    capacities: tuple[int, ...]
    atoms: int

    @property
    def rows(self) -> int:
        """Number of rows of a batch, C."""
        return sum(self.capacities)

    @property
    def indices(self) -> int:
        """Length of the layout of a batch: see :meth:`divide`."""
        return 2 * self.rows + self.atoms * self.size

    def divide(self, layout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Divide the layout of a batch, (..., ``indices``) int32, into its parts.

        Returns
        -------
        rows : (..., C) the row of each atom in the table of features; for padding the last row, which is zero
        owners : (..., C) the structure of each atom; B for padding
        atoms : (..., A * B) the rows of the batch that make up the structures: first the first atom of each
            structure, then the second of each, and so on; C where a structure has fewer
        """
        rows, owners, atoms = layout.split_with_sizes([self.rows, self.rows, self.atoms * self.size], dim=-1)
        return rows, owners, atoms

    def over_structures(self, energies: Tensor, atoms: Tensor) -> Tensor:
        """Sum the energies of atoms, (C + 1, K) with a last row of zeros, over each structure: (B, K)."""
        return energies.index_select(0, atoms).view(self.atoms, self.size, -1).sum(0)


class DeviceLayouts:
    """The atoms of the n structures of a subset, and the rows of their AEVs, all on the device.

    Position n is a structure without atoms.

    Parameters
    ----------
    counts : (M, E) number of atoms of each element in each molecule
    molecule : (n,) the molecule of each structure
    first_rows : (E, n) first row of each structure's atoms in one table of all elements
    device : where batches are laid out

    Attributes
    ----------
    structures : n
    rows : number of rows of the table; the row after the last one is padding
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
        self._element, self._place = element.to(device), place.to(device)
        self._counts = of_all.T.contiguous().to(device)
        self._molecule = torch.from_numpy(np.append(molecule, len(counts))).to(device)
        self._first_rows = torch.from_numpy(np.concatenate([first_rows, none.T], axis=1)).to(device)

    def shape(self, size: int, capacities: Sequence[int]) -> BatchShape:
        """Return the shape of batches of this many structures."""
        return BatchShape(size, tuple(capacities), len(self._element))

    def capacities(self, batch_size: int, *, sure: bool) -> tuple[int, ...]:
        """Return the rows for the atoms of each element in a batch of this many structures, at most n.

        Parameters
        ----------
        sure : return capacities that no batch exceeds; else those that hardly any batch exceeds
        """
        of_molecules = np.bincount(self.molecule, minlength=len(self.counts))
        found = []
        for of_element in self.counts.T:
            mean = np.average(of_element, weights=of_molecules)
            spread = math.sqrt(np.average((of_element - mean) ** 2, weights=of_molecules))
            usual = mean * batch_size + DEVIATIONS * spread * math.sqrt(batch_size)
            # The worst case: the largest of all structures in one batch.
            order = np.argsort(-of_element)
            ends = np.minimum(np.cumsum(of_molecules[order]), batch_size)
            most = int((np.diff(ends, prepend=0) * of_element[order]).sum())
            found.append(most if sure else min(most, math.ceil(usual)))
        return _rounded_up(found)

    def capacities_of(self, batch_positions: Positions) -> tuple[int, ...]:
        """Return the smallest capacities for the batches at these positions (N, B) on the host."""
        counts = np.concatenate([self.counts, np.zeros((1, self.counts.shape[1]), np.int64)])
        molecule = np.append(self.molecule, len(self.counts))
        return _rounded_up(counts[molecule[batch_positions]].sum(1).max(0).tolist())

    def begins(self, positions: Positions, capacities: Sequence[int]) -> Positions:
        """Return the first row of each structure's atoms, (B, E), in the batch at ``positions``."""
        counts = self.counts[self.molecule[positions]]
        blocks = np.cumsum(capacities) - np.array(capacities, dtype=np.int64)
        begins: Positions = blocks + np.cumsum(counts, axis=0) - counts
        return begins

    def fit(self, batch_positions: Tensor, capacities: Sequence[int]) -> Tensor:
        """Check that the batches (N, B) do not exceed the capacities: a boolean scalar on the device."""
        counts = self._counts.index_select(1, self._molecule[batch_positions.flatten()])
        most = counts.view(len(counts), *batch_positions.shape).sum(2).amax(1)
        return (most <= _on_device(capacities, self.device)).all()

    def lay_out(self, batch_positions: Tensor, shape: BatchShape, layouts: Tensor) -> None:
        """Lay out the batches at these positions (N, B), which must fit; the host does not wait for it.

        Parameters
        ----------
        layouts : (N, ``shape.indices``) int32, output
        """
        at_once = max(1, LAID_OUT // shape.indices)
        for some, place in zip(
            torch.split(batch_positions, at_once), torch.split(layouts, at_once), strict=True
        ):
            self._lay_out(some, shape, place)

    def _lay_out(self, batch_positions: Tensor, shape: BatchShape, layouts: Tensor) -> None:
        (batches, size), elements = batch_positions.shape, len(shape.capacities)
        flat = batch_positions.flatten()
        molecule = self._molecule.index_select(0, flat)

        def of_batches(of_structures: Tensor) -> Tensor:
            """Reshape (X, N * B) to (N, X, B)."""
            return of_structures.view(-1, batches, size).transpose(0, 1)

        # For each element, the rows of a batch are one run per structure and one run of padding.
        counts = of_batches(self._counts.index_select(1, molecule))
        capacities = _on_device(shape.capacities, self.device)[:, None]
        lengths = torch.cat([counts, capacities - counts.sum(2, keepdim=True)], 2)
        ends = lengths.flatten().cumsum(0)
        begins = ends.view_as(lengths) - lengths
        row = torch.arange(batches * shape.rows, device=self.device)
        run = torch.searchsorted(ends, row, right=True)
        # A run of padding begins behind the last row of the table; rows beyond become the padding row.
        first_rows = of_batches(self._first_rows.index_select(1, flat))
        behind = first_rows.new_full((batches, elements, 1), self.rows)
        shifts = torch.cat([first_rows, behind], 2) - begins
        rows, owners, atoms = shape.divide(layouts)
        rows.copy_((shifts.flatten().index_select(0, run) + row).clamp_(max=self.rows).view_as(rows))
        owners.copy_(run.remainder(size + 1).view_as(owners))
        # From here on rows count from the first row of their batch. A missing atom of a structure has the
        # element after the last one, whose atoms "begin" behind all rows of the batch.
        first = torch.arange(batches, device=self.device)[:, None, None] * shape.rows
        begins = torch.cat([begins[:, :, :size] - first, begins.new_full((batches, 1, size), shape.rows)], 1)
        element = of_batches(self._element.index_select(1, molecule))
        place = of_batches(self._place.index_select(1, molecule))
        atoms.copy_((begins.gather(1, element) + place).view_as(atoms))


class StaticBatches(ABC):
    """Batches of one shape, for a single consumer.

    Attributes
    ----------
    shape : shape of each batch
    source : tensor that holds the AEVs of the batch, always at the same address
    gathered : whether the rows of a layout refer to ``source``; else its first C rows are the batch
    """

    shape: BatchShape
    source: Tensor
    gathered: bool

    @abstractmethod
    def feed(self, batch_positions: Callable[[], Positions], batches: int) -> Generator[None]:
        """Provide one batch after another in ``source``.

        Close the generator if it is not exhausted.

        Parameters
        ----------
        batch_positions : returns the positions (N, B) of all batches on the host; called only if needed
        batches : N
        """


class DeviceFeatures(ABC):
    """The AEVs of a subset for trainings on a GPU.

    Attributes
    ----------
    layouts : the atoms of its structures
    """

    layouts: DeviceLayouts

    @abstractmethod
    def batches(self, shape: BatchShape) -> StaticBatches:
        """Return batches of this shape, for a single consumer."""


def _rounded_up(rows: Sequence[int]) -> tuple[int, ...]:
    # A block without rows would have no product to compute.
    return tuple(max(ROWS, -(-some // ROWS) * ROWS) for some in rows)


def _on_device(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Create a vector of few numbers, by operations that the host does not wait for."""
    return torch.cat([torch.full((1,), number, dtype=torch.int64, device=device) for number in numbers])
