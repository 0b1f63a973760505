"""Compositions of molecules, which decide which AEV columns of their atoms are zero and left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.config import AEVConfig
from trainer.data.dataset import Dataset
from trainer.data.elements import ATOMIC_NUMBERS
from trainer.features.aev import columns


@dataclass(frozen=True, eq=False)
class Composition:
    """Numbers of atoms of each element, as in a molecular formula.

    Attributes
    ----------
    elements : the elements that it contains, as indices into ``AEVConfig.elements``, ascending
    counts : number of atoms of each of these elements
    columns : for each of these elements, (F_e,) int64, ascending: AEV columns of its atoms that can differ
        from zero among the other atoms
    """

    elements: tuple[int, ...]
    counts: tuple[int, ...]
    columns: tuple[npt.NDArray[np.int64], ...]

    @property
    def kind(self) -> tuple[object, ...]:
        """A key that is equal for compositions with the same elements and columns."""
        return self.elements, *(some.tobytes() for some in self.columns)

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Total length of the AEVs of all atoms of each element."""
        return tuple(count * len(some) for count, some in zip(self.counts, self.columns, strict=True))


@dataclass(frozen=True, eq=False)
class Compositions:
    """The compositions of a data set.

    Attributes
    ----------
    each : every composition once
    of_molecule : (M,) int64: index of the composition of each molecule in ``each``
    """

    each: tuple[Composition, ...]
    of_molecule: npt.NDArray[np.int64]


def find_compositions(dataset: Dataset, config: AEVConfig) -> Compositions:
    """Group the molecules of a data set by composition."""
    counts, of_molecule = np.unique(atom_counts(dataset, config.elements), axis=0, return_inverse=True)
    return Compositions(
        each=tuple(_composition(of_each, config) for of_each in counts),
        of_molecule=of_molecule.reshape(-1).astype(np.int64),
    )


def _composition(counts: npt.NDArray[np.int64], config: AEVConfig) -> Composition:
    elements = tuple(np.flatnonzero(counts).tolist())
    one = np.eye(len(counts), dtype=np.int64)
    return Composition(
        elements=elements,
        counts=tuple(counts[list(elements)].tolist()),
        columns=tuple(columns(config, (counts - one[e]).tolist()) for e in elements),
    )


def atom_counts(dataset: Dataset, elements: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the number of atoms of each element in each molecule, (M, E)."""
    numbers = np.array([ATOMIC_NUMBERS[e] for e in elements])
    return np.array(
        [(m.atomic_numbers[:, None] == numbers).sum(0) for m in dataset.molecules], dtype=np.int64
    )
