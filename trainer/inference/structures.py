"""Structures whose energies are to be predicted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Molecule
from trainer.data.elements import ATOMIC_NUMBERS, SYMBOLS
from trainer.errors import DataError


@dataclass(frozen=True, eq=False)
class Structure:
    """Atoms in space.

    Attributes
    ----------
    symbols : (Na,) symbols of the elements
    coordinates : (Na, 3) Å
    """

    symbols: tuple[str, ...]
    coordinates: npt.NDArray[np.float64]


def make_structure(symbols: Iterable[str], coordinates: object, where: str) -> Structure:
    """Create a structure from plain values.

    Parameters
    ----------
    where : name of the structure in messages

    Raises
    ------
    DataError
        if a symbol is not that of an element, or the coordinates are not finite (Na, 3) numbers.
    """
    names = tuple(str(symbol) for symbol in symbols)
    if unknown := [name for name in names if name not in ATOMIC_NUMBERS]:
        raise DataError(
            f"{where}: {unknown[0]!r} is not the symbol of an element; use symbols such as H, C, N, O"
        )
    try:
        array = np.array([[float(x) for x in row] for row in coordinates])  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        array = np.empty(0)
    if not names or array.shape != (len(names), 3) or not np.isfinite(array).all():
        raise DataError(f"{where}: {len(names)} atoms need as many rows of three finite coordinates, in Å")
    return Structure(names, array)


def structures_of(molecule: Molecule) -> list[Structure]:
    """Return the structures of a molecule of a data set, in their order."""
    return [structure_of(molecule, number) for number in range(molecule.structures)]


def structure_of(molecule: Molecule, number: int) -> Structure:
    """Return one structure of a molecule of a data set."""
    symbols = tuple(SYMBOLS[n - 1] for n in molecule.atomic_numbers)
    return Structure(symbols, molecule.coordinates[number].astype(np.float64))


@dataclass(frozen=True, eq=False)
class Alike:
    """Structures of one composition, with their atoms sorted by element.

    Attributes
    ----------
    molecule : with their n coordinates, each centered: float32 is too coarse far from the origin
    places : (n,) indices of the structures
    permutations : (n, Na) index of each atom in its structure
    """

    molecule: Molecule
    places: npt.NDArray[np.int64]
    permutations: npt.NDArray[np.int64]


def group_alike(structures: Sequence[Structure], elements: Sequence[str]) -> list[Alike]:
    """Group structures by composition, without energies, so that those of a group are processed together.

    Parameters
    ----------
    elements : all elements that occur, in the order in which atoms are sorted
    """
    place_of = {ATOMIC_NUMBERS[element]: place for place, element in enumerate(elements)}
    groups: dict[tuple[int, ...], list[tuple[int, npt.NDArray[np.int64]]]] = {}
    for place, structure in enumerate(structures):
        numbers = np.array([ATOMIC_NUMBERS[symbol] for symbol in structure.symbols])
        order = np.argsort([place_of[n] for n in numbers.tolist()], kind="stable")
        groups.setdefault(tuple(numbers[order].tolist()), []).append((place, order))
    alike = []
    for numbers_of, members in groups.items():
        coordinates = [structures[place].coordinates[order] for place, order in members]
        molecule = Molecule(
            name="",
            smiles="",
            atomic_numbers=np.array(numbers_of, np.uint8),
            coordinates=np.array([each - each.mean(0) for each in coordinates], np.float32),
            energies=np.zeros(len(members)),
        )
        places = np.array([place for place, _ in members], np.int64)
        alike.append(Alike(molecule, places, np.array([order for _, order in members])))
    return alike
