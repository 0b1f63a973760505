"""Duplicate structures of a data set, also if they are rotated, rounded, or have atoms in another order.

If one of two such structures is trained on and the other validates, the validation error is meaningless. If
their energies differ, no network can fit both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Molecule

logger = logging.getLogger("anitune")

#: Largest difference between energies of one structure, hartree, in addition to the steps of their type.
SAME_ENERGY: Final = 1e-6

#: Largest difference between sorted distances of one structure, Å.
SAME_DISTANCE: Final = 1e-3

#: Structures whose sorted distances agree to ``SAME_GEOMETRY``, Å, have one geometry. Their energies
#: contradict each other if they differ by more than ``OTHER_ENERGY``, hartree, in addition to the steps of
#: their type; forces explain a tenth of that.
SAME_GEOMETRY: Final = 2e-5
OTHER_ENERGY: Final = 1e-3

#: Limit of the structures of one composition that are compared with one of them.
MOST_ALIKE: Final = 1_000

#: Number of pairs of structures whose distances are in memory at once.
PAIRS: Final = 2**14


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Structures of a data set that are there before, with the same energy or with another one.

    Attributes
    ----------
    structures : number of all structures
    second : (n,) indices of the duplicates, ascending, from 0; each has the same geometry as one before it
    first : (n,) indices of these earlier structures
    """

    structures: int
    second: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]


def find_duplicates(molecules: Sequence[Molecule]) -> Duplicates:
    """Find structures of equal composition, energy and distances of each pair of elements.

    The structures of a composition are sorted by energy, and each is compared with the next ones within
    ``SAME_ENERGY``, at most ``MOST_ALIKE``. Mirror images count as equal, because their energies and features
    are. Each duplicate equals its first structure within both tolerances. So of a fine scan, whose neighbors
    are equal but whose ends are not, some structures stay.
    """
    first, second = _of_each_composition(molecules, _among)
    order = np.argsort(second)
    return Duplicates(sum(m.structures for m in molecules), second[order], first[order])


def find_contradictions(molecules: Sequence[Molecule]) -> Duplicates:
    """Find structures of equal composition and geometry whose energies differ; expects no duplicates.

    The structures of a composition are sorted by the sum of the squared distances from their center, and each
    is compared with the next ones, at most ``MOST_ALIKE``, until one contradicts it.
    """
    structures = sum(m.structures for m in molecules)
    first = _first_of_each(structures, _of_each_composition(molecules, _contradicting))
    second = np.flatnonzero(first != np.arange(structures))
    return Duplicates(structures, second, first[second])


def _of_each_composition(
    molecules: Sequence[Molecule], find: Callable[[Sequence[Molecule]], npt.NDArray[np.int64]]
) -> npt.NDArray[np.int64]:
    """Return the pairs, (2, n), that are found among the structures of each composition."""
    offsets = np.cumsum([0, *(m.structures for m in molecules)])
    alike: dict[bytes, list[int]] = {}
    for number, molecule in enumerate(molecules):
        alike.setdefault(np.sort(molecule.atomic_numbers).tobytes(), []).append(number)
    found = [np.empty((2, 0), np.int64)]
    for numbers in alike.values():
        structures = np.concatenate([np.arange(offsets[n], offsets[n + 1]) for n in numbers])
        found.append(structures[find([molecules[n] for n in numbers])])
    return np.concatenate(found, axis=1)


def _among(molecules: Sequence[Molecule]) -> npt.NDArray[np.int64]:
    """Return first and second indices, (2, n), among the structures of molecules of one composition."""
    unsorted = np.concatenate([m.energies for m in molecules])
    order = np.argsort(unsorted, kind="stable")
    energies, window = unsorted[order], SAME_ENERGY + _step(molecules)
    if not (np.diff(energies) <= window).any():
        return np.empty((2, 0), np.int64)
    numbers = np.sort(molecules[0].atomic_numbers)
    coordinates = np.concatenate([_by_element(m) for m in molecules])[order]
    moments, errors = _moments(coordinates, numbers, SAME_DISTANCE)

    def alike(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        same: npt.NDArray[np.bool_] = (np.abs(moments[one] - moments[other]) <= errors[one]).all(axis=1)
        same[same] = _same(coordinates, one[same], other[same], numbers, SAME_DISTANCE)
        return same

    # A structure equal to the first of a pair is also equal to its second.
    neighbors, left = _neighbors(energies, np.full(len(order), window), alike)
    if len(left):
        logger.warning(
            "%s: more than %s different structures have an energy of %.6f hartree within %.1g: not all of"
            " them were compared with each other",
            molecules[0].formula,
            f"{MOST_ALIKE:,}",
            energies[left[0]],
            window,
        )
    pairs = order[neighbors]
    place = np.empty_like(order)
    place[order] = np.arange(len(order))

    def same_as(one: int, others: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        same: npt.NDArray[np.bool_] = np.abs(unsorted[others] - unsorted[one]) <= window
        some = others[same]
        same[same] = _same(coordinates, np.full(len(some), place[one]), place[some], numbers, SAME_DISTANCE)
        return same

    return _firsts_and_seconds(len(order), pairs, same_as)


def _contradicting(molecules: Sequence[Molecule]) -> npt.NDArray[np.int64]:
    """Return indices of pairs, (2, n), among the structures of molecules of one composition."""
    energies, apart = np.concatenate([m.energies for m in molecules]), OTHER_ENERGY + _step(molecules)
    if np.ptp(energies) <= apart:
        return np.empty((2, 0), np.int64)
    numbers = np.sort(molecules[0].atomic_numbers)
    coordinates = np.concatenate([_by_element(m) for m in molecules])
    moments, errors = _moments(coordinates, numbers, SAME_GEOMETRY)
    sizes, windows = moments.sum(axis=1, dtype=np.float64), errors.sum(axis=1)
    found = []
    # Two overlapping series of bins of the first element: a pair is in one bin of at least one series.
    bins = moments[:, 0].astype(np.float64) / (2 * errors[:, 0].max() or 1)
    for shift in (0.0, 0.5):
        values = np.floor(bins + shift) * (sizes.max() + 2 * windows.max()) + sizes
        order = np.argsort(values, kind="stable")

        def contradict(
            one: npt.NDArray[np.int64], other: npt.NDArray[np.int64], order: npt.NDArray[np.int64] = order
        ) -> npt.NDArray[np.bool_]:
            one, other = order[one], order[other]
            same: npt.NDArray[np.bool_] = np.abs(energies[one] - energies[other]) > apart
            same &= (np.abs(moments[one] - moments[other]) <= errors[one]).all(axis=1)
            same[same] = _same(coordinates, one[same], other[same], numbers, SAME_GEOMETRY)
            return same

        neighbors, _ = _neighbors(values[order], windows[order], contradict)
        found.append(order[neighbors])
    return np.concatenate(found, axis=1)


def _neighbors(
    values: npt.NDArray[Any],
    windows: npt.NDArray[Any],
    match: Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.bool_]],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pair each structure with the nearest after it that matches.

    Parameters
    ----------
    values : (n,) ascending; structures are compared only if they differ by at most ``windows``, (n,)
    match : whether structures (k,) match others (k,)

    Returns
    -------
    Pairs (2, p), and the structures for which there were more than ``MOST_ALIKE`` others.
    """
    found = [np.empty((2, 0), np.int64)]
    rest, step = np.flatnonzero(np.diff(values) <= windows[:-1]), 1
    while len(rest) and step <= MOST_ALIKE:
        matches = match(rest, rest + step)
        found.append(np.stack([rest[matches], rest[matches] + step]))
        step += 1
        rest = rest[~matches]
        rest = rest[rest + step < len(values)]
        rest = rest[values[rest + step] - values[rest] <= windows[rest]]
    return np.concatenate(found, axis=1), rest


def _firsts_and_seconds(
    structures: int,
    pairs: npt.NDArray[np.int64],
    same_as: Callable[[int, npt.NDArray[np.int64]], npt.NDArray[np.bool_]],
) -> npt.NDArray[np.int64]:
    """Return pairs (2, n) for each chain of pairs: a structure that stays, and one that is equal to it."""
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
    """Return the step of float32 at the largest energy, hartree, of molecules with float32 energies, or 0."""
    step = 0.0
    for molecule in molecules:
        with np.errstate(over="ignore"):
            rounded = molecule.energies[:64].astype(np.float32)
        if (rounded == molecule.energies[:64]).all():
            step = max(step, float(np.spacing(np.float32(np.abs(molecule.energies).max()))))
    return step


def _by_element(molecule: Molecule) -> npt.NDArray[np.float32]:
    """Return coordinates, (Nc, Na, 3) Å, with the atoms in the order of their numbers."""
    numbers = molecule.atomic_numbers
    if (numbers[1:] >= numbers[:-1]).all():
        return molecule.coordinates
    return molecule.coordinates[:, np.argsort(numbers, kind="stable")]


def _moments(
    coordinates: npt.NDArray[np.float32], numbers: npt.NDArray[np.uint8], distance: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return squared distances from the center by element, (n, E) Å^2, and how much they may differ.

    They follow from the distances d between N atoms, |x_i|^2 = sum_j d_ij^2 / N - sum_jk d_jk^2 / 2 N^2, and
    distinguish most structures quickly. If no d differs by more than e (``distance``), no sum over n atoms
    differs by more than 2 e sqrt(n (sum + n s)) + n e sqrt(2 s), where s is the mean over all atoms.
    """
    squares = np.square(coordinates - coordinates.mean(axis=1, keepdims=True)).sum(axis=2)
    starts = np.flatnonzero(np.diff(numbers, prepend=0))
    counts = np.diff([*starts, len(numbers)]).astype(np.float32)
    moments = np.add.reduceat(squares, starts, axis=1)
    mean = squares.mean(axis=1, keepdims=True)
    errors = 2 * np.sqrt(counts * (moments + counts * mean)) + counts * np.sqrt(2 * mean)
    return moments, 1.01 * distance * errors


def _same(
    coordinates: npt.NDArray[np.float32],
    one: npt.NDArray[np.int64],
    other: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.uint8],
    distance: float,
) -> npt.NDArray[np.bool_]:
    """Return whether the sorted distances of each two structures agree to ``distance``, (n,)."""
    found = np.empty(len(one), bool)
    for begin in range(0, len(one), PAIRS):
        some = slice(begin, begin + PAIRS)
        first = _sorted_distances(coordinates[one[some]], numbers)
        second = _sorted_distances(coordinates[other[some]], numbers)
        found[some] = (np.abs(first - second) <= distance).all(axis=1)
    return found


def _first_of_each(structures: int, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the smallest index that a chain of pairs, (2, n), connects to each structure, (S,)."""
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
    """Return distances of all pairs of atoms, sorted within each pair of elements, (n, P) Å.

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
