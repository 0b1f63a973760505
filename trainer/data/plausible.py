"""Checks for impossible structures: coinciding atoms, impossible energies, the same energy everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer.data.elements import SYMBOLS
from trainer.data.layout import Reading
from trainer.errors import DataError

#: Least distance of two nuclei, Å: the bond of H2 has 0.74.
CLOSEST: Final = 0.1

#: Greatest distance of an atom from the center of its structure, Å.
FARTHEST: Final = 1e4

#: Greatest multiple of the energy of an atom in Thomas-Fermi theory, 0.77 Z^(7/3) hartree: real energies are
#: below it, and energies in eV are 27 times as large.
MOST_ENERGY: Final = 10.0

#: Limit of the number of structures whose distances are in memory at once, times the squared number of atoms.
NUMBERS: Final = 2**21

_ATOMIC: Final = np.arange(256) ** (7 / 3)


def refuse_implausible(readings: Sequence[Reading]) -> None:
    """Raise an error if a structure has an impossible energy or impossible coordinates.

    Raises
    ------
    DataError
        with one line that names file, group, structure and value.
    """
    _refuse_energies(readings)
    _refuse_coordinates(readings)


def _refuse_energies(readings: Sequence[Reading]) -> None:
    most = np.array([MOST_ENERGY * _ATOMIC[r.molecule.atomic_numbers].sum() for r in readings])
    energies = np.concatenate([r.molecule.energies for r in readings])
    counts = [r.molecule.structures for r in readings]
    wrong = np.flatnonzero(np.abs(energies) > np.repeat(most, counts))
    if len(wrong):
        reading, index = _owner(readings, int(wrong[0]))
        more = f" (and {len(wrong) - 1:,} more)" if len(wrong) > 1 else ""
        raise DataError(
            f"{reading.place(index)}{more}: its energy is {reading.molecule.energies[index]:.6g}, which is"
            f" not possible in hartree for {reading.molecule.formula}; remove it, or convert the energies"
            " from their unit"
        )


def refuse_equal_energies(readings: Sequence[Reading]) -> None:
    """Raise an error if all structures, or all of one molecule, have one energy; expects no duplicates.

    Raises
    ------
    DataError
        with one line that names file, group and value.
    """
    energies = np.concatenate([r.molecule.energies for r in readings])
    counts = np.array([r.molecule.structures for r in readings])
    starts = np.cumsum(counts) - counts
    equal = np.minimum.reduceat(energies, starts) == np.maximum.reduceat(energies, starts)
    for reading in (readings[i] for i in np.flatnonzero(equal & (counts > 2)).tolist()):
        raise DataError(
            f"{reading.where}: all {reading.molecule.structures:,} structures have the same energy, "
            f"{reading.molecule.energies[0]:.6g}; give each its own, or leave the group out"
        )
    if len(energies) > 2 and (energies == energies[0]).all():
        raise DataError(
            f"{readings[0].where}, and all {len(energies):,} structures after it: they have the same energy, "
            f"{energies[0]:.6g}; give each its own"
        )


def _refuse_coordinates(readings: Sequence[Reading]) -> None:
    wrong: list[tuple[int, int]] = []
    for owners, indices, coordinates in _blocks(readings):
        found = np.flatnonzero(_suspicious(coordinates))
        wrong += [(int(owners[f]), int(indices[f])) for f in found if _fault(coordinates[f])]
    if wrong:
        owner, index = min(wrong)
        reading = readings[owner]
        more = f" (and {len(wrong) - 1:,} more)" if len(wrong) > 1 else ""
        fault = _fault(reading.molecule.coordinates[index], reading.molecule.atomic_numbers)
        raise DataError(f"{reading.place(index)}{more}: {fault}; remove it, or correct its coordinates")


def _blocks(
    readings: Sequence[Reading],
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Yield structures of two atoms or more: their readings, indices there, and coordinates, (n, Na, 3)."""
    by_atoms: dict[int, list[int]] = {}
    for number, reading in enumerate(readings):
        by_atoms.setdefault(reading.molecule.atoms, []).append(number)
    for atoms, numbers in by_atoms.items():
        counts = np.array([readings[n].molecule.structures for n in numbers])
        ends, step, first = np.cumsum(counts), max(1, NUMBERS // atoms**2), 0
        while first < len(numbers):  # as many whole molecules as fit; large molecules take several blocks
            last = max(
                first + 1, int(np.searchsorted(ends, (ends[first - 1] if first else 0) + step, side="right"))
            )
            some = numbers[first:last]
            owners = np.repeat(some, counts[first:last])
            indices = np.concatenate([np.arange(count) for count in counts[first:last]])
            coordinates = (
                np.concatenate([readings[n].molecule.coordinates for n in some])
                if len(some) > 1
                else readings[some[0]].molecule.coordinates
            )
            for begin in range(0, len(owners), step):
                block = slice(begin, begin + step)
                yield owners[block], indices[block], coordinates[block]
            first = last


def _suspicious(coordinates: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return structures (n,) that may have a fault, by distances with rounding errors, from (n, Na, 3)."""
    with np.errstate(over="ignore", invalid="ignore"):
        centred = coordinates - coordinates.mean(axis=1, keepdims=True)
        squares = np.einsum("nai,nai->na", centred, centred)
        far = squares.max(axis=1)
        distances = centred @ (-2 * centred).transpose(0, 2, 1)
        distances += squares[:, :, None]
        distances += squares[:, None, :]
        atoms = np.arange(coordinates.shape[1])
        distances[:, atoms, atoms] = np.inf
        near = distances.min(axis=(1, 2))
        fine: npt.NDArray[np.bool_] = (near > 2 * CLOSEST**2 + 1e-5 * far) & (far < FARTHEST**2)
    return ~fine


def _fault(coordinates: npt.NDArray[np.float32], numbers: npt.NDArray[np.uint8] | None = None) -> str | None:
    """Describe what is wrong with one structure; None if nothing is."""
    exact = coordinates.astype(np.float64)
    if len(exact) > 1 and not exact.any():
        return "all its coordinates are zero"
    if (farthest := float(np.linalg.norm(exact - exact.mean(axis=0), axis=1).max())) > FARTHEST:
        return f"an atom is {farthest:.3g} Å away from the center of the others"
    distances = np.linalg.norm(exact[:, None] - exact[None], axis=2)
    distances[np.diag_indices(len(exact))] = np.inf
    if distances.min() >= CLOSEST:
        return None
    one, other = sorted(int(i) for i in np.unravel_index(distances.argmin(), distances.shape))
    names = "" if numbers is None else f" ({SYMBOLS[numbers[one] - 1]} and {SYMBOLS[numbers[other] - 1]})"
    return f"its atoms {one} and {other}{names} are {distances.min():.3f} Å apart"


def _owner(readings: Sequence[Reading], index: int) -> tuple[Reading, int]:
    """Return the reading that holds the structure with this index among all, and its index there."""
    for reading in readings:
        if index < reading.molecule.structures:
            return reading, index
        index -= reading.molecule.structures
    raise IndexError(index)
