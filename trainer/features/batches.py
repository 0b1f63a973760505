"""Batches of structures as atoms sorted by element, with the structure of each atom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class AtomSums(Protocol):
    """The atoms that make up each of the B structures of a batch. Sums have a fixed order on every device."""

    def over_structures(self, of_atoms: Sequence[Tensor]) -> Tensor:
        """Sum the values of the atoms, (n_e, K) for each element, over each structure: (B, K)."""

    def to_atoms(self, of_structures: Tensor) -> Sequence[Tensor]:
        """Copy the value of each structure, (B, K), to its atoms: (n_e, K) for each element; the transpose.

        The tensors are new, and the caller may change them.
        """


class EqualStructures:
    """Structures with equal numbers of atoms of each element: the first c rows belong to the first structure.

    Parameters
    ----------
    counts : atoms of each element in a structure
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = tuple(counts)

    def over_structures(self, of_atoms: Sequence[Tensor]) -> Tensor:
        """See :class:`AtomSums`."""
        sums = [
            some if count == 1 else some.view(-1, count, some.shape[1]).sum(1)
            for some, count in zip(of_atoms, self.counts, strict=True)
        ]
        return sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)

    def to_atoms(self, of_structures: Tensor) -> Sequence[Tensor]:
        """See :class:`AtomSums`."""
        return [of_structures.repeat_interleave(count, 0) for count in self.counts]


class CountedStructures:
    """Structures of any atoms; those of each element are in the order of the structures.

    Parameters
    ----------
    counts : (E, B) int64: atoms of each element in each structure
    sizes : total number of atoms of each element
    """

    def __init__(self, counts: Tensor, sizes: Sequence[int]) -> None:
        self.counts = counts
        self.sizes = list(sizes)

    def over_structures(self, of_atoms: Sequence[Tensor]) -> Tensor:
        """See :class:`AtomSums`."""
        sums = torch.segment_reduce(torch.cat(tuple(of_atoms)), "sum", lengths=self.counts.flatten())
        return sums.view(*self.counts.shape, -1).sum(0)

    def to_atoms(self, of_structures: Tensor) -> Sequence[Tensor]:
        """See :class:`AtomSums`."""
        of_each = of_structures.repeat(len(self.counts), 1)
        of_atoms = of_each.repeat_interleave(self.counts.flatten(), 0, output_size=sum(self.sizes))
        return of_atoms.split_with_sizes(self.sizes)


class IndexedStructures:
    """Structures of any atoms: n atoms in total, those of the first element first.

    Parameters
    ----------
    sizes : number of atoms of each element
    owners : (n,) int64: index of the structure in the batch, 0 to B - 1, that each atom belongs to
    atoms : (A, B) int64: indices of the atoms, 0 to n - 1, that make up each structure; padded with n where a
        structure has fewer than A
    """

    def __init__(self, sizes: Sequence[int], owners: Tensor, atoms: Tensor) -> None:
        self.sizes = list(sizes)
        self.owners = owners
        self.atoms = atoms

    def over_structures(self, of_atoms: Sequence[Tensor]) -> Tensor:
        """See :class:`AtomSums`."""
        # Padding in the table of atoms points at the zero after the last atom.
        nothing = of_atoms[0].new_zeros((1, of_atoms[0].shape[1]))
        return torch.cat([*of_atoms, nothing])[self.atoms].sum(0)

    def to_atoms(self, of_structures: Tensor) -> Sequence[Tensor]:
        """See :class:`AtomSums`."""
        return of_structures.index_select(0, self.owners).split_with_sizes(self.sizes)


@dataclass(frozen=True, eq=False)
class AtomBatch:
    """The atoms of B structures, by element and in the order of the structures.

    Attributes
    ----------
    positions : (B,) int64: positions of the structures in the subset
    elements : their elements, as indices in the order of the networks
    columns : for each of ``elements``, (F_e,) int64: the AEV columns that are given, as the others are
        zero; None: all
    aevs : for each of ``elements``, (n_e, F_e): the AEVs of its atoms, in the precision of the first products
    sums : the atoms that make up each structure
    """

    positions: Tensor
    elements: tuple[int, ...]
    columns: tuple[Tensor | None, ...]
    aevs: tuple[Tensor, ...]
    sums: AtomSums

    @property
    def size(self) -> int:
        """Number of structures, B."""
        return len(self.positions)


@dataclass(frozen=True, eq=False)
class BatchLayout:
    """Where the atoms of a batch are; E elements, B structures, n atoms.

    Attributes
    ----------
    positions : (B,) int64
    sizes : number of atoms of each element
    rows : (n,) int64: the row of each atom in the table of its element
    owners, atoms : as in :class:`IndexedStructures`
    """

    positions: Tensor
    sizes: list[int]
    rows: Tensor
    owners: Tensor
    atoms: Tensor


class Layouts:
    """The atoms of some structures, prepared so that batches of them are laid out without a loop.

    Parameters
    ----------
    counts : (M, E) number of atoms of each element in each molecule
    molecule : (n,) the molecule of each structure
    first_rows : (E, n) first row of each structure's atoms in the table of each element

    Attributes
    ----------
    molecule : as given
    elements : E
    """

    def __init__(
        self,
        counts: npt.NDArray[np.int64],
        molecule: npt.NDArray[np.int64],
        first_rows: npt.NDArray[np.int64],
    ) -> None:
        self.molecule = torch.from_numpy(molecule)
        self.elements = counts.shape[1]
        self._counts = torch.from_numpy(counts)
        self._first_rows = torch.from_numpy(first_rows)
        self._element, self._place = sort_atoms(self._counts)

    def lay_out(self, positions: Tensor) -> list[BatchLayout]:
        """Lay out N batches of B structures each, given their ``positions`` (N, B) int64 on the CPU.

        A call for several small batches costs little more than a call for one of them.
        """
        batches, size = positions.shape
        molecule = self.molecule[positions]
        counts = self._counts[molecule].transpose(1, 2)  # (N, E, B), in the order of the atoms
        lengths = counts.flatten()
        ends = lengths.cumsum(0)
        begins = (ends - lengths).view_as(counts)
        run_of = torch.repeat_interleave(lengths, output_size=int(ends[-1]))
        shifts = self._first_rows[:, positions].transpose(0, 1) - begins
        rows = shifts.flatten()[run_of] + torch.arange(len(run_of))
        owners = run_of.remainder(size)
        # From here on atoms count from the first atom of their batch. A missing atom of a structure has the
        # element after the last one, whose atoms "begin" behind all others.
        sizes = counts.sum(2)
        totals = sizes.sum(1)
        begins = torch.cat(
            [begins - begins[:, :1, :1], totals[:, None, None].expand(batches, 1, size)], dim=1
        )
        element = self._element[:, molecule].transpose(0, 1)
        atoms = begins.gather(1, element) + self._place[:, molecule].transpose(0, 1)
        ends_of_batches = totals.tolist()
        return [
            BatchLayout(*parts)
            for parts in zip(
                positions,
                sizes.tolist(),
                rows.split_with_sizes(ends_of_batches),
                owners.split_with_sizes(ends_of_batches),
                atoms,
                strict=True,
            )
        ]


def sort_atoms(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the atoms of molecules by element; return each atom's element, and its index among that element.

    Parameters
    ----------
    counts : (M, E) number of atoms of each element in each molecule

    Returns
    -------
    Both (A, M), with a row for each atom of the largest molecule; the element is E where others have fewer.
    """
    kinds, most = counts.shape[1], int(counts.sum(1).max())
    element = torch.full((most, len(counts)), kinds)
    place = torch.zeros((most, len(counts)), dtype=torch.int64)
    for m, of_molecule in enumerate(counts):
        atoms = int(of_molecule.sum())
        element[:atoms, m] = torch.repeat_interleave(of_molecule)
        place[:atoms, m] = torch.cat([torch.arange(int(c)) for c in of_molecule])
    return element, place


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to the device; the host does not wait for a copy to a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
