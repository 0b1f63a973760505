"""Structures that a data set holds more than once: rotated, with atoms in another order, or rounded.

One of two such structures may train and the other validate, and then an error says nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Molecule

logger = logging.getLogger("anitune")

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
    ``SAME_ENERGY``, ``MOST_ALIKE`` at most. Mirror images count as the same: their energies are, and so are
    their features. Each structure that is there a second time is the same as its first one within both
    tolerances: of a fine scan, whose neighbors are alike and whose ends are not, some stay.
    """
    offsets = np.cumsum([0, *(m.structures for m in molecules)])
    alike: dict[bytes, list[int]] = {}
    for number, molecule in enumerate(molecules):
        alike.setdefault(np.sort(molecule.atomic_numbers).tobytes(), []).append(number)
    found = [np.empty((2, 0), np.int64)]
    for numbers in alike.values():
        some = [molecules[n] for n in numbers]
        structures = np.concatenate([np.arange(offsets[n], offsets[n + 1]) for n in numbers])
        found.append(structures[_among(some)])
    first, second = np.concatenate(found, axis=1)
    order = np.argsort(second)
    return Duplicates(int(offsets[-1]), second[order], first[order])


def _among(molecules: Sequence[Molecule]) -> npt.NDArray[np.int64]:
    """Firsts and seconds, (2, n), by their numbers in molecules of one composition."""
    unsorted = np.concatenate([m.energies for m in molecules])
    order = np.argsort(unsorted, kind="stable")
    energies, window = unsorted[order], SAME_ENERGY + _step(molecules)
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
            logger.warning(
                "%s: more than %s different structures have an energy of %.6f hartree within %.1g: not all of"
                " them were compared with each other",
                molecules[0].formula,
                f"{MOST_ALIKE:,}",
                energies[rest[0]],
                window,
            )
            break
        same = (np.abs(moments[rest] - moments[rest + step]) <= errors[rest]).all(axis=1)
        some = np.flatnonzero(same)
        same[some] = _same(coordinates, rest[some], rest[some] + step, numbers)
        found.append(np.stack([rest[same], rest[same] + step]))
        step += 1
        rest = rest[~same]  # what the first is the same as, the second is too
        rest = rest[rest + step < len(energies)]
        rest = rest[energies[rest + step] - energies[rest] <= window]
    pairs = order[np.concatenate(found, axis=1)]
    place = np.empty_like(order)
    place[order] = np.arange(len(order))

    def same_as(one: int, others: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        same: npt.NDArray[np.bool_] = np.abs(unsorted[others] - unsorted[one]) <= window
        some = others[same]
        same[same] = _same(coordinates, np.full(len(some), place[one]), place[some], numbers)
        return same

    return _firsts_and_seconds(len(order), pairs, same_as)


def _firsts_and_seconds(
    structures: int,
    pairs: npt.NDArray[np.int64],
    same_as: Callable[[int, npt.NDArray[np.int64]], npt.NDArray[np.bool_]],
) -> npt.NDArray[np.int64]:
    """Of each chain of pairs: structures that stay, and those that are the same as one of them, (2, n)."""
    start = _first_of_each(structures, pairs)
    sizes = np.bincount(start, minlength=structures)[start]
    second = np.flatnonzero((sizes == 2) & (start != np.arange(structures)))
    found = [np.stack([start[second], second])]
    longer = np.flatnonzero(sizes > 2)
    longer = longer[np.argsort(start[longer], kind="stable")]
    for chain in np.split(longer, np.flatnonzero(np.diff(start[longer])) + 1):
        rest = chain
        while len(rest) > 1:
            one, rest = int(rest[0]), rest[1:]
            same = same_as(one, rest)
            found.append(np.stack([np.full(same.sum(), one), rest[same]]))
            rest = rest[~same]
    return np.concatenate(found, axis=1)


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
