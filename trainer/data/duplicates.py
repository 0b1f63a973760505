"""Structures that a data set holds more than once: rotated, with atoms in another order, or rounded.

One of two such structures may train and the other validate, and then an error says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Molecule
from trainer.errors import DataError

#: Energies of one structure differ by less, hartree, beside the steps of their type.
SAME_ENERGY: Final = 1e-6

#: Sorted distances of one structure differ by less, Å.
SAME_DISTANCE: Final = 1e-3

#: Structures of one composition that may have the energy of one of them.
MOST_ALIKE: Final = 1_000

#: Pairs of structures whose distances are in memory at once.
PAIRS: Final = 2**14


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Which structures are there a second time.

    Attributes
    ----------
    structures : number of all structures
    second : (n,) ascending numbers of structures, from 0, before each of which the same one is met
    first : (n,) numbers of the latter
    """

    structures: int
    second: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]


def find_duplicates(molecules: Sequence[Molecule]) -> Duplicates:
    """Find structures of equal composition, energy and distances of each pair of elements.

    All are sorted by composition and energy, and each is compared with the next ones within ``SAME_ENERGY``.
    Mirror images count as the same: their energies are, and so are their features.

    Raises
    ------
    DataError
        if so many structures have the same energy that it cannot be that of each.
    """
    table = _Table(molecules)
    order = np.lexsort((table.energies, table.compositions))
    energies, compositions = table.energies[order], table.compositions[order]
    windows = (SAME_ENERGY + table.resolutions[compositions]).astype(np.float64)
    pairs = [np.empty((2, 0), np.int64)]
    rest = np.arange(len(order) - 1)
    step = 1
    while len(rest):
        if step > MOST_ALIKE:
            raise DataError(
                f"more than {MOST_ALIKE:,} different structures of {table.formula(compositions[rest[0]])} have an energy "
                f"of {energies[rest[0]]:.6f} hartree within {windows[rest[0]]:.1g}: give each structure its own energy"
            )
        near = (compositions[rest + step] == compositions[rest]) & (
            energies[rest + step] - energies[rest] <= windows[rest]
        )
        rest = rest[near]
        one, other = order[rest], order[rest + step]
        same = table.same(one, other)
        pairs.append(np.stack([one[same], other[same]]))
        step += 1
        rest = rest[~same]  # what the first is the same as, the second is too
        rest = rest[rest + step < len(order)]
    first = _first_of_each(len(order), np.concatenate(pairs, axis=1))
    second = np.flatnonzero(first != np.arange(len(order)))
    return Duplicates(len(order), second, first[second])


def _first_of_each(structures: int, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The smallest number that a chain of pairs, (2, n), leads to from each structure, (S,)."""
    first = np.arange(structures)
    while len(pairs[0]):
        smaller = first[pairs].min(axis=0)
        if (first[pairs] == smaller).all():
            break
        for end in pairs:
            np.minimum.at(first, end, smaller)
        first = first[first]
    return first


class _Table:
    """All structures of some molecules.

    Attributes
    ----------
    energies : (S,) float64, hartree
    compositions : (S,) number of the composition of each
    resolutions : (C,) hartree: the step of float32 at the largest energy of a composition, if a molecule of
        that composition has energies that are exact in float32
    """

    def __init__(self, molecules: Sequence[Molecule]) -> None:
        self._molecules = molecules
        self._offsets = np.cumsum([0, *(m.structures for m in molecules)])
        self._kinds: list[npt.NDArray[np.uint8]] = []
        known: dict[bytes, int] = {}
        of_molecules = np.empty(len(molecules), np.int64)
        for number, molecule in enumerate(molecules):
            atoms = np.sort(molecule.atomic_numbers)
            of_molecules[number] = known.setdefault(atoms.tobytes(), len(known))
            if len(known) > len(self._kinds):
                self._kinds.append(atoms)
        counts = np.diff(self._offsets)
        self.energies = np.concatenate([m.energies for m in molecules])
        self.compositions = np.repeat(of_molecules, counts)
        with np.errstate(over="ignore"):
            rounded = self.energies.astype(np.float32)
        fine = np.logical_or.reduceat(rounded != self.energies, self._offsets[:-1])
        steps = np.maximum.reduceat(np.spacing(np.abs(rounded)), self._offsets[:-1])
        self.resolutions = np.zeros(len(known))
        np.maximum.at(self.resolutions, of_molecules[~fine], steps[~fine])

    def formula(self, composition: int) -> str:
        return next(
            m.formula
            for m in self._molecules
            if np.array_equal(np.sort(m.atomic_numbers), self._kinds[composition])
        )

    def same(self, one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether two structures of the same composition and about the same energy are one, (n,).

        Pairs come in the order of their compositions.
        """
        found = np.zeros(len(one), bool)
        kinds = self.compositions[one]
        for pairs in _runs(kinds):
            numbers = self._kinds[kinds[pairs.start]]
            structures, at = np.unique(np.concatenate([one[pairs], other[pairs]]), return_inverse=True)
            distances = _sorted_distances(self._coordinates(structures), numbers)
            first, second = np.split(at, 2)
            found[pairs] = (np.abs(distances[first] - distances[second]) <= SAME_DISTANCE).all(axis=1)
        return found

    def _coordinates(self, structures: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Of structures in ascending order, atoms in the order of their numbers, (n, Na, 3)."""
        owners = np.searchsorted(self._offsets, structures, side="right") - 1
        parts = []
        for run in _runs(owners):
            owner = owners[run.start]
            molecule = self._molecules[owner]
            atoms = np.argsort(molecule.atomic_numbers, kind="stable")
            parts.append(molecule.coordinates[structures[run] - self._offsets[owner]][:, atoms])
        return np.concatenate(parts)


def _runs(values: npt.NDArray[np.int64]) -> Iterator[slice]:
    """Slices of equal neighbors, of at most ``PAIRS``."""
    edges = np.flatnonzero(np.diff(values)) + 1
    for begin, end in zip([0, *edges], [*edges, len(values)], strict=True):
        for start in range(begin, end, PAIRS):
            yield slice(start, min(start + PAIRS, end))


def _sorted_distances(
    coordinates: npt.NDArray[np.float32], numbers: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float32]:
    """Distances of all pairs of atoms, those of each pair of elements sorted, (n, P) Å.

    Parameters
    ----------
    coordinates : (n, Na, 3) Å
    numbers : (Na,) ascending atomic numbers
    """
    one, other = np.triu_indices(len(numbers), k=1)
    kinds = numbers[one].astype(np.int64) * 256 + numbers[other]
    order = np.argsort(kinds, kind="stable")
    one, other, kinds = one[order], other[order], kinds[order]
    apart = coordinates[:, one] - coordinates[:, other]
    distances: npt.NDArray[np.float32] = np.sqrt(np.einsum("npi,npi->np", apart, apart))
    edges = np.flatnonzero(np.diff(kinds)) + 1
    for begin, end in zip([0, *edges], [*edges, len(kinds)], strict=True):
        distances[:, begin:end].sort(axis=1)
    return distances
