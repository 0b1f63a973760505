"""Structures from files: xyz, extended xyz and HDF5, with or without energies."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from trainer.data.dataset import Molecule
from trainer.data.elements import SYMBOLS
from trainer.data.layout import Units, structures_of_group
from trainer.data.readers import open_data_file
from trainer.data.units import LENGTH_UNITS
from trainer.data.xyz import atoms_of, read_xyz_atoms
from trainer.errors import DataError
from trainer.inference.structures import Structure, structures_of

HDF5: Final = (".h5", ".hdf5")


def read_structures(path: Path, links_outside: bool = False) -> list[Structure]:
    """Read the structures of a file, in their order; its suffix distinguishes HDF5 from xyz.

    Parameters
    ----------
    links_outside : whether links of an HDF5 file may lead out of its folder

    Raises
    ------
    DataError
        with one line that names the file and the place, if it cannot be read, or holds no structure or a
        periodic one.
    """
    structures = _read_hdf5(path, links_outside) if path.suffix.lower() in HDF5 else _read_xyz(path)
    if not structures:
        raise DataError(f"{path}: it contains no structure")
    return structures


def _read_hdf5(path: Path, links_outside: bool) -> list[Structure]:
    structures: list[Structure] = []
    with open_data_file(path, links_outside) as (_, groups, layout):
        units = Units(length=LENGTH_UNITS[layout.length_unit])
        for group in groups:
            here: dict[int, Structure] = {}
            for some in structures_of_group(group, *layout.structure, None, units):
                molecule = Molecule(group.name, "", some.numbers, some.coordinates, some.energies)
                here |= zip(some.rows.tolist(), structures_of(molecule), strict=True)
            structures += [here[row] for row in sorted(here)]
    return structures


def _read_xyz(path: Path) -> list[Structure]:
    try:
        parsed = read_xyz_atoms(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; correct its name, or put it there") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read as an xyz file ({error.strerror})") from None
    numbers, coordinates = atoms_of(parsed)
    structures, begin = [], 0
    for count, line, periodic in zip(parsed.atoms, parsed.lines, parsed.periodic, strict=True):
        place, atoms = f"{path}, line {line}", slice(begin, begin + count)
        if periodic:
            raise DataError(
                f"{place}: it is periodic, but the models are for molecules; remove Lattice and pbc"
            )
        if not np.isfinite(coordinates[atoms]).all():
            raise DataError(f"{place}: a coordinate is NaN or infinite; remove this structure")
        symbols = tuple(SYMBOLS[number - 1] for number in numbers[atoms].tolist())
        structures.append(Structure(symbols, coordinates[atoms]))
        begin += count
    return structures
