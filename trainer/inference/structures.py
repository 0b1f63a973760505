"""Structures whose energies are wanted, and the files that they are read from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Dataset, Molecule
from trainer.data.elements import ATOMIC_NUMBERS, SYMBOLS
from trainer.data.readers import read_dataset
from trainer.errors import DataError

HDF5 = (".h5", ".hdf5")


@dataclass(frozen=True, eq=False)
class Structure:
    """Atoms in space.

    Attributes
    ----------
    symbols : (Na,) of the elements
    coordinates : (Na, 3) Å
    """

    symbols: tuple[str, ...]
    coordinates: npt.NDArray[np.float64]


def make_structure(symbols: Iterable[str], coordinates: object, where: str) -> Structure:
    """A structure of plain values.

    Parameters
    ----------
    where : what a message names

    Raises
    ------
    DataError
        if a symbol is of no element, or the coordinates are no finite (Na, 3) numbers.
    """
    names = tuple(str(symbol) for symbol in symbols)
    if unknown := [name for name in names if name not in ATOMIC_NUMBERS]:
        raise DataError(f"{where}: {unknown[0]!r} is no symbol of an element")
    try:
        array = np.array([[float(x) for x in row] for row in coordinates])  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        array = np.empty(0)
    if not names or array.shape != (len(names), 3) or not np.isfinite(array).all():
        raise DataError(f"{where}: {len(names)} atoms need as many rows of three finite coordinates, in Å")
    return Structure(names, array)


def read_structures(path: Path) -> list[Structure]:
    """The structures of an xyz file, or of an HDF5 file that can be trained on.

    Raises
    ------
    DataError
        if it cannot be read as such.
    """
    if path.suffix.lower() not in HDF5:
        return _read_xyz(path)
    return [
        Structure(tuple(SYMBOLS[n - 1] for n in molecule.atomic_numbers), each.astype(np.float64))
        for molecule in read_dataset([path]).molecules
        for each in molecule.coordinates
    ]


def as_dataset(structures: Sequence[Structure]) -> tuple[Dataset, npt.NDArray[np.int64]]:
    """Structures as molecules, and the place of each of them there, (S,)."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, structure in enumerate(structures):
        groups.setdefault(structure.symbols, []).append(number)
    molecules = tuple(
        Molecule(
            name=str(number),
            smiles="",
            atomic_numbers=np.array([ATOMIC_NUMBERS[symbol] for symbol in symbols], np.uint8),
            coordinates=np.array([structures[m].coordinates for m in of_group], np.float32),
            energies=np.zeros(len(of_group)),
        )
        for number, (symbols, of_group) in enumerate(groups.items())
    )
    places = np.empty(len(structures), np.int64)
    places[np.concatenate([np.array(of_group) for of_group in groups.values()])] = np.arange(len(structures))
    return Dataset(molecules), places


def _read_xyz(path: Path) -> list[Structure]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as an xyz file: {error}") from None
    structures, line = [], 0
    while line < len(lines) and lines[line].strip():
        count = lines[line].strip()
        if not count.isdecimal() or line + 2 + int(count) > len(lines):
            raise DataError(
                f"{path}, line {line + 1}: here a number of atoms, a comment and the atoms are due"
            )
        atoms = [words.split() for words in lines[line + 2 : line + 2 + int(count)]]
        where = f"{path}, line {line + 1}"
        structures.append(make_structure((a[0] for a in atoms if a), [a[1:4] for a in atoms], where))
        line += 2 + int(count)
    return structures
