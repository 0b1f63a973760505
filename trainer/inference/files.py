"""Files of structures whose energies are wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from trainer.data.readers import read_dataset
from trainer.errors import DataError
from trainer.inference.structures import Structure, make_structure, structures_of

#: How the names of files end that are read as data to train on; all others are read as xyz.
HDF5: Final = (".h5", ".hdf5")


def read_structures(path: Path) -> list[Structure]:
    """The structures of an xyz file, or of an HDF5 file that can be trained on.

    Raises
    ------
    DataError
        if it cannot be read as such.
    """
    if path.suffix.lower() not in HDF5:
        return _read_xyz(path)
    return [each for molecule in read_dataset([path]).molecules for each in structures_of(molecule)]


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
