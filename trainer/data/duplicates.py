"""Structures that a data set holds more than once: rotated, with atoms in another order, or rounded.

One of two such structures may train and the other validate, and then an error says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    Those of a composition are sorted by energy, and each is compared with the next ones within
    ``SAME_ENERGY``. Mirror images count as the same: their energies are, and so are their features.

    Raises
    ------
    DataError
        if so many structures have the same energy that it cannot be that of each.
    """
    offsets = np.cumsum([0, *(m.structures for m in molecules)])
    alike: dict[bytes, list[int]] = {}
    for number, molecule in enumerate(molecules):
        alike.setdefault(np.sort(molecule.atomic_numbers).tobytes(), []).append(number)
    pairs = [np.empty((2, 0), np.int64)]
    for numbers in alike.values():
        some = [molecules[n] for n in numbers]
        structures = np.concatenate([np.arange(offsets[n], offsets[n + 1]) for n in numbers])
        pairs.append(structures[_pairs_among(some)])
    first = _first_of_each(int(offsets[-1]), np.concatenate(pairs, axis=1))
    second = np.flatnonzero(first != np.arange(len(first)))
    return Duplicates(len(first), second, first[second])


def _pairs_among(molecules: Sequence[Molecule]) -> npt.NDArray[np.int64]:
    """Pairs of structures that are the same, (2, n), by their numbers in molecules of one composition."""
    energies = np.concatenate([m.energies for m in molecules])
    order = np.argsort(energies, kind="stable")
    energies, window = energies[order], SAME_ENERGY + _step(molecules)
    near = np.diff(energies) <= window
    if not near.any():
        return np.empty((2, 0), np.int64)
    numbers = np.sort(molecules[0].atomic_numbers)
    coordinates = np.concatenate([_by_element(m) for m in molecules])[order]
    moments, errors = _moments(coordinates, numbers)
    found = []
    rest, step = np.flatnonzero(near), 1
    while len(rest):
        if step > MOST_ALIKE:
            raise DataError(
                f"more than {MOST_ALIKE:,} different structures of {molecules[0].formula} have an energy of "
                f"{energies[rest[0]]:.6f} hartree within {window:.1g}: give each structure its own"
            )
        same = (np.abs(moments[rest] - moments[rest + step]) <= errors[rest]).all(axis=1)
        some = np.flatnonzero(same)
        same[some] = _same(coordinates, rest[some], rest[some] + step, numbers)
        found.append(np.stack([rest[same], rest[same] + step]))
        step += 1
        rest = rest[~same]  # what the first is the same as, the second is too
        rest = rest[rest + step < len(energies)]
        rest = rest[energies[rest + step] - energies[rest] <= window]
    pairs: npt.NDArray[np.int64] = order[np.concatenate(found, axis=1)]
    return pairs


def _step(molecules: Sequence[Molecule]) -> float:
    """The step of float32 at the largest energy, hartree, of those whose energies are exact in it; else 0."""
    step = 0.0
    for molecule in molecules:
        with np.errstate(over="ignore"):
            rounded = molecule.energies[:64].astype(np.float32)
        if (rounded == molecule.energies[:64]).all():
            step = max(step, float(np.spacing(np.float32(np.abs(molecule.energies).max()))))
    return step


def _by_element(molecule: Molecule) -> npt.NDArray[np.float32]:
    """Coordinates, (Nc, Na, 3) Å, of the atoms in the order of their numbers."""
    numbers = molecule.atomic_numbers
    if (numbers[1:] >= numbers[:-1]).all():
        return molecule.coordinates
    return molecule.coordinates[:, np.argsort(numbers, kind="stable")]


def _moments(
    coordinates: npt.NDArray[np.float32], numbers: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Squared distances from the centre by element, (n, E) Å^2, and how much those of one structure differ.

    They follow from the distances d between N atoms, |x_i|^2 = sum_j d_ij^2 / N - sum_jk d_jk^2 / 2 N^2, and
    tell most structures apart at once. If no d differs by more than e, no sum over n atoms does by more than
    2 e sqrt(n (sum + n s)) + n e sqrt(2 s), where s is the mean over all atoms.
    """
    squares = np.square(coordinates - coordinates.mean(axis=1, keepdims=True)).sum(axis=2)
    starts = np.flatnonzero(np.diff(numbers, prepend=0))
    counts = np.diff([*starts, len(numbers)]).astype(np.float32)
    moments = np.add.reduceat(squares, starts, axis=1)
    mean = squares.mean(axis=1, keepdims=True)
    errors = 2 * np.sqrt(counts * (moments + counts * mean)) + counts * np.sqrt(2 * mean)
    return moments, 1.01 * SAME_DISTANCE * errors


def _same(
    coordinates: npt.NDArray[np.float32],
    one: npt.NDArray[np.int64],
    other: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.uint8],
) -> npt.NDArray[np.bool_]:
    """Whether the sorted distances of two structures agree, (n,)."""
    found = np.empty(len(one), bool)
    for begin in range(0, len(one), PAIRS):
        some = slice(begin, begin + PAIRS)
        first = _sorted_distances(coordinates[one[some]], numbers)
        second = _sorted_distances(coordinates[other[some]], numbers)
        found[some] = (np.abs(first - second) <= SAME_DISTANCE).all(axis=1)
    return found


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
