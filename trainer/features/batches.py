"""Batches of structures as their atoms, sorted by element, and where each atom belongs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.data.dataset import Dataset
from trainer.data.elements import ATOMIC_NUMBERS


@dataclass(frozen=True, eq=False)
class AtomBatch:
    """The atoms of B structures: all of the first element in the order of the structures, then of the next.

    Attributes
    ----------
    aevs : for each element, (n_e, F): the AEVs of its atoms
    owners : (n,) int64: which structure of the batch, 0 to B - 1, each of all the atoms belongs to
    atoms : (A, B) int64: which of all the atoms, 0 to n - 1, make up each structure; filled up with n
        where a structure has fewer than A
    """

    aevs: tuple[Tensor, ...]
    owners: Tensor
    atoms: Tensor

    @property
    def size(self) -> int:
        """Number of structures, B."""
        return self.atoms.shape[1]


@dataclass(frozen=True, eq=False)
class BatchLayout:
    """Where the atoms of a batch stand in it; E elements, B structures, n atoms.

    Attributes
    ----------
    sizes : number of atoms of each element
    runs : (E * B,) int64: where the run of atoms of each element and structure begins
    run_of : (n,) int64: the run of each atom
    owners, atoms : as in :class:`AtomBatch`
    """

    sizes: list[int]
    runs: Tensor
    run_of: Tensor
    owners: Tensor
    atoms: Tensor


class PartLayout:
    """Which atoms the structures of a part have, so that a batch of them is laid out without a loop.

    Parameters
    ----------
    structures : (n,) global indices of the part's structures
    """

    def __init__(self, dataset: Dataset, elements: Sequence[str], structures: npt.NDArray[np.int64]) -> None:
        self.molecule = torch.from_numpy(dataset.molecule_of(structures))
        self.counts = torch.from_numpy(atom_counts(dataset, elements))
        # The atoms of a molecule sorted by element, one a row: the element, and the place among its kind.
        kinds, most = len(elements), int(self.counts.sum(1).max())
        element = torch.full((most, len(self.counts)), kinds)
        place = torch.zeros((most, len(self.counts)), dtype=torch.int64)
        for m, counts in enumerate(self.counts):
            atoms = int(counts.sum())
            element[:atoms, m] = torch.repeat_interleave(counts)
            place[:atoms, m] = torch.cat([torch.arange(int(c)) for c in counts])
        self._element, self._place = element, place

    def batch(self, positions: Tensor) -> BatchLayout:
        """Lay out the structures at these positions of the part, (B,) int64 on the CPU."""
        molecule = self.molecule[positions]
        counts = self.counts[molecule].T
        lengths = counts.flatten()
        ends = lengths.cumsum(0)
        runs = ends - lengths
        total = int(ends[-1])
        run_of = torch.repeat_interleave(lengths, output_size=total)
        # An atom that a structure lacks has the element after the last one, whose "run" is at n.
        begins = torch.cat([runs.view_as(counts), runs.new_full((1, len(positions)), total)])
        return BatchLayout(
            sizes=counts.sum(1).tolist(),
            runs=runs,
            run_of=run_of,
            owners=run_of.remainder(len(positions)),
            atoms=begins.gather(0, self._element[:, molecule]) + self._place[:, molecule],
        )


def atom_counts(dataset: Dataset, elements: Sequence[str]) -> npt.NDArray[np.int64]:
    """Number of atoms of each element in each molecule, (M, E)."""
    numbers = np.array([ATOMIC_NUMBERS[e] for e in elements])
    return np.array(
        [(m.atomic_numbers[:, None] == numbers).sum(0) for m in dataset.molecules], dtype=np.int64
    )
