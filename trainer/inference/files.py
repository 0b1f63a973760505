"""Structures from files: xyz, extended xyz and HDF5, with or without energies."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from trainer.data.dataset import Molecule
from trainer.data.layout import structures_of_group
from trainer.data.readers import open_data_file
from trainer.errors import DataError, MissingExtraError
from trainer.inference.structures import Structure, make_structure, structures_of

HDF5: Final = (".h5", ".hdf5")

#: What the comment of a structure in an extended xyz file holds: there columns may stand in another order.
EXTENDED: Final = ("Properties=", "Lattice=", "pbc=")


def read_structures(path: Path) -> list[Structure]:
    """The structures of a file, in their order; its ending tells HDF5 from xyz.

    Raises
    ------
    DataError
        with one line that names the file and the place, if it cannot be read as such, holds no structure, or
        a periodic one.
    MissingExtraError
        if it is an extended xyz file and ase is not installed.
    """
    structures = _read_hdf5(path) if path.suffix.lower() in HDF5 else _read_xyz(path)
    if not structures:
        raise DataError(f"{path}: there is no structure in it")
    return structures


def _read_hdf5(path: Path) -> list[Structure]:
    structures: list[Structure] = []
    with open_data_file(path) as (_, groups, layout):
        for group in groups:
            here: dict[int, Structure] = {}
            for some in structures_of_group(group, layout.keys[0], layout.keys[1], None):
                molecule = Molecule(group.name, "", some.numbers, some.coordinates, some.energies)
                here |= zip(some.rows.tolist(), structures_of(molecule), strict=True)
            structures += [here[row] for row in sorted(here)]
    return structures


def _read_xyz(path: Path) -> list[Structure]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; correct its name, or bring it there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as an xyz file ({error})") from None
    if path.suffix.lower() == ".extxyz" or (len(lines) > 1 and any(word in lines[1] for word in EXTENDED)):
        return _read_extended_xyz(path)
    structures, line = [], 0
    while line < len(lines) and lines[line].strip():
        count = lines[line].strip()
        if not count.isdecimal() or line + 2 + int(count) > len(lines):
            raise DataError(
                f"{path}, line {line + 1}: here a number of atoms, then a comment and the atoms are due"
            )
        atoms = [text.split() for text in lines[line + 2 : line + 2 + int(count)]]
        at = f"{path}, line {line + 1}"
        structures.append(make_structure((a[0] for a in atoms if a), [a[1:4] for a in atoms], at))
        line += 2 + int(count)
    return structures


def _read_extended_xyz(path: Path) -> list[Structure]:
    try:
        import ase.io
    except ImportError:
        raise MissingExtraError(
            f"{path}: to read extended xyz files needs the extra export: pip install 'anitune[export]'"
        ) from None
    read: list[Any]
    try:
        read = list(ase.io.iread(path, index=":", format="extxyz"))
    except Exception as error:  # ase raises whatever it stumbles upon
        cause = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read as an extended xyz file ({cause})") from error
    structures = []
    for number, atoms in enumerate(read):
        at = f"{path}, structure {number} (from 0)"
        if atoms.pbc.any():
            raise DataError(f"{at}: it is periodic, and the models are of molecules; remove Lattice and pbc")
        structures.append(make_structure(atoms.get_chemical_symbols(), atoms.get_positions(), at))
    return structures
