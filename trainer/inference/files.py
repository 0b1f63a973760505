"""Structures from files: xyz, extended xyz and HDF5, with or without energies."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import ase.io
import numpy as np
from ase.io.extxyz import key_val_str_to_dict

from trainer.data.dataset import Molecule
from trainer.data.elements import ATOMIC_NUMBERS
from trainer.data.layout import Units, structures_of_group
from trainer.data.readers import open_data_file
from trainer.data.units import LENGTH_UNITS
from trainer.errors import DataError
from trainer.inference.structures import Structure, make_structure, structures_of

HDF5: Final = (".h5", ".hdf5")

#: Keys in the comment of a structure in an extended xyz file: there columns may stand in another order.
EXTENDED: Final = ("Properties", "Lattice", "pbc")

#: The columns of a plain xyz file, and of one with atomic numbers.
PLAIN: Final = "species:S:1:pos:R:3"
NUMBERED: Final = "Z:I:1:pos:R:3"

#: A comment as ASE writes it for molecules.
BY_ASE: Final = re.compile(
    rf"""Properties={PLAIN}(:forces:R:3)?( (free_)?energy=[-+]?\d+\.?\d*(e[-+]?\d+)?)*( pbc="F F F")?""",
    re.ASCII,
)

KNOWN: Final = frozenset(ATOMIC_NUMBERS)

_IS_EXTENDED: Final = re.compile(rf"\b({'|'.join(EXTENDED)})\s*=", re.IGNORECASE)


def read_structures(path: Path, links_outside: bool = False) -> list[Structure]:
    """The structures of a file, in their order; its ending tells HDF5 from xyz.

    Parameters
    ----------
    links_outside : whether links of an HDF5 file may lead out of its folder

    Raises
    ------
    DataError
        with one line that names the file and the place, if it cannot be read as such, holds no structure, or
        a periodic one.
    """
    structures = _read_hdf5(path, links_outside) if path.suffix.lower() in HDF5 else _read_xyz(path)
    if not structures:
        raise DataError(f"{path}: there is no structure in it")
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
    """The structures of an xyz file, as ASE reads them; it leaves out what follows a blank line."""
    structures: list[Structure | None] = []
    others = []
    for frame in _frames(path):
        structures.append(_simple(frame))
        if structures[-1] is None:
            others.append(frame)
    read = _read_by_ase(path, others)
    whole = [next(read) if structure is None else structure for structure in structures]
    next(read, None)  # it makes sure that there are no more
    return whole


def _simple(frame: _Frame) -> Structure | None:
    """The structure of a frame whose first columns are symbols and coordinates; None: ASE is to read it.

    ASE takes ten times as long, for what such frames do not have.
    """
    if not BY_ASE.fullmatch(frame.columns):
        return None
    columns = 1 + 3 * frame.columns.count(":R:3")
    try:
        symbols = tuple([atom[0].capitalize() for atom in frame.atoms])
        values = np.array([float(value) for atom in frame.atoms for value in atom[1:columns]])
        coordinates = values.reshape(len(symbols), columns - 1)[:, :3]
    except ValueError:
        return None
    if not KNOWN.issuperset(symbols) or not np.isfinite(coordinates).all():
        return None
    return Structure(symbols, coordinates)


def _read_by_ase(path: Path, frames: Sequence[_Frame]) -> Iterator[Structure]:
    text = io.StringIO("".join(frame.text for frame in frames))
    read = ase.io.iread(text, index=":", format="extxyz")
    for frame in frames:
        try:
            atoms = next(read)
            symbols = atoms.get_chemical_symbols()
        except KeyError as error:
            raise DataError(
                f"{frame.place}: {error} is no symbol of an element; use symbols such as H, C, N, O"
            ) from None
        except Exception as error:  # ase raises whatever it stumbles upon
            raise _unreadable(frame.place, error) from error
        if atoms.pbc.any():
            raise DataError(
                f"{frame.place}: it is periodic, and the models are of molecules; remove Lattice and pbc"
            )
        if (atoms.numbers < 1).any():
            raise DataError(f"{frame.place}: the atomic number {atoms.numbers.min()} is of no element")
        yield make_structure(symbols, atoms.get_positions(), frame.place)
    if next(read, None) is not None:
        raise DataError(f"{path}: ase finds more than its {len(frames)} structures; please report this file")


@dataclass(frozen=True)
class _Frame:
    """A structure of an xyz file.

    Attributes
    ----------
    place : where it begins
    columns : its comment, in words that ASE knows
    atoms : the words of each line
    """

    place: str
    columns: str
    atoms: list[list[str]]

    @property
    def text(self) -> str:
        """Its lines."""
        return "\n".join([str(len(self.atoms)), self.columns, *map(" ".join, self.atoms), ""])


def _frames(path: Path) -> Iterator[_Frame]:
    """The structures of an xyz file, with blank lines around them or not.

    Raises
    ------
    DataError
        if the file cannot be read, or has other lines between the structures than blank ones.
    """
    try:
        # A comment may be in any encoding. Nothing else than the end of a line divides lines.
        lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; correct its name, or bring it there") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read as an xyz file ({error.strerror})") from None
    line = 0
    while line < len(lines):
        count = lines[line].strip()
        if not count:
            line += 1
            continue
        place = f"{path}, line {line + 1}"
        if not re.fullmatch("[0-9]{1,9}", count) or int(count) == 0:
            raise DataError(
                f"{place}: here a number of atoms, then a comment and the atoms are due (got {count[:40]!r})"
            )
        begin, end = line + 2, line + 2 + int(count)
        atoms = [atom.split() for atom in lines[begin:end]]
        if len(atoms) < end - begin or min(map(len, atoms)) < 4:
            number = begin + next((n for n, atom in enumerate(atoms) if len(atom) < 4), len(atoms))
            found = lines[number].strip() if number < len(lines) else "the end of the file"
            raise DataError(
                f"{path}, line {number + 1}: an atom is due, with its symbol and x, y, z in Å, since line"
                f" {line + 1} says {count} atoms (got {found[:40]!r})"
            )
        yield _Frame(place, _columns(lines[line + 1], atoms[0], place), atoms)
        line = end


def _columns(comment: str, atom: Sequence[str], place: str) -> str:
    """What a comment says of columns and periodicity, in the words of extended xyz."""
    if not _IS_EXTENDED.search(comment):
        # Anything may stand in the comment of a plain file, and atomic numbers in place of symbols.
        return f"Properties={NUMBERED if atom[0].isdecimal() else PLAIN}"
    if BY_ASE.fullmatch(comment) and len(atom) >= comment.count(":R:3") * 3 + 1:
        return comment
    for word in EXTENDED:
        comment = re.sub(rf"\b{word}(?=\s*=)", word, comment, flags=re.IGNORECASE)
    try:
        properties = str(key_val_str_to_dict(comment).get("Properties", PLAIN)).split(":")
        columns = [int(count) for count in properties[2::3]]
    except Exception as error:
        raise _unreadable(place, error) from error
    # ase would take memory for any number of them.
    if min(columns, default=1) < 1 or sum(columns) > len(atom):
        raise DataError(f"{place}: Properties names other columns than the {len(atom)} of the atoms")
    return comment


def _unreadable(place: str, error: Exception) -> DataError:
    cause = " ".join(str(error).split()) or type(error).__name__
    return DataError(
        f"{place}: this structure cannot be read ({cause:.200}); an atom is a line with its symbol and"
        " x, y, z in Å, or what Properties= says"
    )
