"""Shared code of the readers of all HDF5 layouts: checked arrays of one group, as molecules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trainer.config import DataConfig, EnergyUnit, LengthUnit
from trainer.data.dataset import Molecule, formula_of
from trainer.data.elements import ATOMIC_NUMBERS, SYMBOLS
from trainer.data.hdf5 import Group
from trainer.data.links import printable
from trainer.data.units import ENERGY_UNITS, LENGTH_UNITS
from trainer.errors import DataError

#: Marks a missing atom where structures of several sizes share an array, as in torchani.
PADDING: Final = -1


@dataclass(frozen=True)
class Layout:
    """How molecules are written in an HDF5 file.

    A group has a layout if it holds its elements, its coordinates and one of its energies.

    Attributes
    ----------
    elements, coordinates : names of datasets
    energies : names of the energies that it may have; ``data.energy`` names another one
    read : returns the molecules of a group, given the group, the name of the energies and the settings
    optional : other datasets that are read
    high_energy : names of the coordinates and energies of high-energy structures, if it has such
    length_unit : unit of the coordinates; energies are in hartree
    """

    elements: str
    coordinates: str
    energies: tuple[str, ...]
    read: Callable[[Group, str, DataConfig], list[Reading]]
    optional: tuple[str, ...] = ()
    high_energy: tuple[str, str] | None = None
    length_unit: LengthUnit = "angstrom"

    @property
    def structure(self) -> tuple[str, str]:
        """Names of elements and coordinates."""
        return self.elements, self.coordinates

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of all datasets that are read."""
        return (*self.structure, *self.energies, *self.optional, *(self.high_energy or ()))

    def energies_of(self, group: Group, energy: str | None) -> list[str]:
        """Return the names of energies with which a group has this layout; ``energy``: only look for this."""
        if self.elements not in group:
            return []
        if self.coordinates in group:
            found = [key for key in ((energy,) if energy else self.energies) if key in group]
            if found:
                return found
        high = self.high_energy is not None and energy is None
        return [self.energies[0]] if high and self.has_high_energy(group) else []

    def named(self, energy: str | None) -> bool:
        """Return whether these energies, if the settings name some, are usual ones of this layout."""
        return energy is None or energy in self.energies

    def has_high_energy(self, group: Group) -> bool:
        """Return whether a group holds high-energy structures.

        Raises
        ------
        DataError
            if it holds only one of the two datasets that they need.
        """
        present = [key for key in self.high_energy or () if key in group]
        if len(present) == 1:
            raise DataError(
                f"{group.where}: there is only '{present[0]}'; {' and '.join(self.high_energy or ())} "
                "belong together"
            )
        return bool(present)


@dataclass(frozen=True)
class Units:
    """The units of a file: units of energy per hartree, and Å per unit of length."""

    energy: float = 1.0
    length: float = 1.0


def units_of(data: DataConfig, energy: EnergyUnit = "hartree", length: LengthUnit = "angstrom") -> Units:
    """Return the units of a file: these defaults unless the settings name others."""
    return Units(ENERGY_UNITS[data.unit or energy], LENGTH_UNITS[data.length_unit or length])


@dataclass(frozen=True, eq=False)
class Structures:
    """Structures with the same atoms, as read from a file.

    Attributes
    ----------
    numbers : (Na,) uint8 array, atomic numbers
    coordinates : (Nc, Na, 3) float32 array, Å
    energies : (Nc,) float64 array, hartree; empty if none were asked for
    rows : (Nc,) array: their indices in the arrays of the file
    resolution : spacing of adjacent numbers in the type of the energies, hartree
    """

    numbers: npt.NDArray[np.uint8]
    coordinates: npt.NDArray[np.float32]
    energies: npt.NDArray[np.float64]
    rows: npt.NDArray[np.int64]
    resolution: float = 0.0


@dataclass(frozen=True, eq=False)
class Reading:
    """A molecule and its origin.

    Attributes
    ----------
    where : file and group
    rows : (Nc,) array: the indices of the structures in the arrays of the file
    high_from : index of the first high-energy structure; these come last, from separate arrays
    resolution : spacing of adjacent numbers in the type of the energies, hartree
    file : the file alone
    units : the units in which the file was read
    """

    molecule: Molecule
    where: str
    rows: npt.NDArray[np.int64]
    high_from: int
    resolution: float
    file: str = ""
    units: Units = Units()

    def place(self, index: int) -> str:
        """Return file, group and number of a structure, for a message."""
        of = " of those of high energy" if index >= self.high_from else ""
        return f"{self.where}, structure {self.rows[index]}{of} (from 0)"


def structures_of_group(
    group: Group,
    species: str,
    coordinates: str,
    energies: str | None,
    units: Units,
    *,
    missing_is_nan: bool = False,
    usable: npt.NDArray[np.bool_] | None = None,
) -> list[Structures]:
    """Read the structures of a group, grouped by their atoms, with finite values and matching shapes.

    Species are chemical symbols or atomic numbers, common to all structures or in a row for each. Padding of
    a row is -1, an empty symbol and, if the coordinates show it, 0. Energies are as many numbers as
    structures, in one row or column.

    Parameters
    ----------
    species, coordinates, energies : names of datasets; None: energies are not read
    missing_is_nan : leave out structures whose energy is NaN
    usable : (Nc,) which structures are kept; None: all
    """
    numbers = _numbers(group, species)
    positions, resolution = _numeric(group, coordinates), 0.0
    shape = positions.shape
    if energies is None:
        values = np.zeros(len(positions) if positions.ndim == 3 else 0)
        described = ""
    else:
        raw = _numeric(group, energies)
        described = f", '{energies}' {raw.shape}"
        if raw.ndim == 0 or raw.size == max(raw.shape):  # a number, a row or a column
            raw = raw.ravel()
        values, resolution = raw.astype(np.float64) / units.energy, _resolution(raw) / units.energy
        if len(raw) == 1 and positions.ndim == 2:
            positions = positions[None]
    numbers, positions = _without_padding(group, species, numbers, positions)
    atoms = numbers.size if positions.ndim != 3 or numbers.size == positions.shape[1] else numbers.shape[-1]
    per_structure = numbers.shape == positions.shape[:2] and numbers.size != atoms
    if (
        atoms == 0
        or values.ndim != 1
        or positions.shape != (len(values), atoms, 3)
        or not (numbers.size == atoms or per_structure)
    ):
        names = f"'{species}' {numbers.shape}" if numbers.ndim == 2 else f"{numbers.size} atoms"
        many = atoms if numbers.ndim < 2 else "atoms"
        raise DataError(
            f"{group.where}: the shapes disagree: {names}, '{coordinates}' {shape}{described}; they must be "
            f"(structures, {many}, 3)" + (" and (structures,)" if energies else "")
        )
    with np.errstate(over="ignore"):  # infinite numbers are refused below
        if units.length != 1.0:
            positions = positions.astype(np.float64) * units.length
        positions = positions.astype(np.float32)
    rows = np.arange(len(values))
    present = np.ones(len(values), bool) if usable is None else usable
    if missing_is_nan:
        present = present & ~np.isnan(values)
    if not present.all():
        positions, values, rows = positions[present], values[present], rows[present]
        numbers = numbers[present] if per_structure else numbers
    _refuse_infinite(group, energies, np.isfinite(values), rows)
    if not per_structure:
        finite = np.isfinite(positions).all(axis=(1, 2))
        _refuse_infinite(group, coordinates, finite, rows)
        return [Structures(_atoms(numbers.ravel()), positions, values, rows, resolution)]
    found = []
    kinds, firsts, kind = np.unique(numbers, axis=0, return_index=True, return_inverse=True)
    for of in np.argsort(firsts, kind="stable"):
        atom, some = kinds[of] != PADDING, np.flatnonzero(kind.ravel() == of)
        if not atom.any():
            raise DataError(f"{group.where}: '{species}' has no atom in row {firsts[of]} (from 0)")
        here = np.ascontiguousarray(positions[some][:, atom])
        _refuse_infinite(group, coordinates, np.isfinite(here).all(axis=(1, 2)), rows[some])
        found.append(Structures(_atoms(kinds[of][atom]), here, values[some], rows[some], resolution))
    return found


def _without_padding(
    group: Group, key: str, numbers: npt.NDArray[np.int64], positions: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Remove the padding from species and coordinates if all structures share a row of species.

    If each structure has a row, mark the padding with ``PADDING``.
    """
    present = numbers > 0
    if present.all() or positions.ndim != 3:
        return numbers, positions
    if numbers.shape == positions.shape[:2] and len(numbers) > 1:
        _refuse_zeros(group, key, numbers, positions)
        return np.where(present, numbers, PADDING), positions
    row, present = numbers.ravel(), present.ravel()
    if row.size == positions.shape[1]:
        _refuse_zeros(group, key, np.broadcast_to(row, positions.shape[:2]), positions)
        positions = positions[:, present]
    if not present.any():
        raise DataError(f"{group.where}: '{key}' has no atom")
    return (row[present] if present.sum() == positions.shape[1] else numbers), positions


def _refuse_zeros(
    group: Group, key: str, numbers: npt.NDArray[np.int64], positions: npt.NDArray[Any]
) -> None:
    """Refuse 0 as a species, unless no atom can be there: it may be the index of an element in a list."""
    zero = numbers == 0
    at = positions[zero]
    if np.isnan(at).all():  # also if there is no 0
        return
    # One atom may be at the origin, but not several atoms of one structure.
    if at.any() or zero.sum(axis=1).max() < 2:
        raise _no_number(group, key, 0)


def name_of(group: Group, numbers: npt.NDArray[np.uint8], alone: bool) -> str:
    """Return the name of a molecule: its group's path, with the formula if the group holds several."""
    name = group.name or "molecule"
    return name if alone else f"{name} {formula_of(SYMBOLS[n - 1] for n in numbers.tolist())}"


def smiles_of(group: Group) -> str:
    """Return the SMILES, an array of single characters in the release or a plain string; empty: none."""
    if "smiles" not in group:
        return ""
    return b"".join(
        piece if isinstance(piece, bytes) else str(piece).encode()
        for piece in np.ravel(group.read("smiles")).tolist()
    ).decode(errors="replace")


def _refuse_infinite(
    group: Group, key: str | None, finite: npt.NDArray[np.bool_], rows: npt.NDArray[np.int64]
) -> None:
    if not finite.all():
        raise DataError(
            f"{group.where}: '{key}' is NaN or infinite in {int(np.sum(~finite))} of {len(finite)} "
            f"structures (the first is number {rows[np.argmin(finite)]}, from 0); remove them"
        )


def _numeric(group: Group, key: str) -> npt.NDArray[Any]:
    values = group.read(key)
    if values.dtype.kind not in "fiu":
        raise DataError(f"{group.where}: '{key}' does not hold numbers ({values.dtype})")
    return values


def _resolution(energies: npt.NDArray[Any]) -> float:
    """Return the spacing of adjacent numbers at the largest energy; 0 for float64, where it is negligible."""
    if energies.dtype.kind != "f":
        return 1.0
    if energies.dtype.itemsize >= 8:
        return 0.0
    finite = np.abs(energies[np.isfinite(energies)])
    return float(np.spacing(finite.max())) if len(finite) else 0.0


def _numbers(group: Group, key: str) -> npt.NDArray[np.int64]:
    """Return atomic numbers of a dataset of symbols or integers, in its shape; ``PADDING`` or 0: no atom."""
    values = group.read(key)
    if values.dtype.kind not in "iuSO":
        raise DataError(
            f"{group.where}: '{key}' holds {values.dtype}; expected chemical symbols, or atomic numbers as"
            " integers"
        )
    known = {}
    for value in set(values.ravel().tolist()):
        known[value] = (
            _number_of(value, group, key) if isinstance(value, int) else _number_of_symbol(value, group, key)
        )
    return np.array([known[value] for value in values.ravel().tolist()], np.int64).reshape(values.shape)


def _number_of(value: int, group: Group, key: str) -> int:
    if value not in (PADDING, *range(len(SYMBOLS) + 1)):
        raise _no_number(group, key, value)
    return value


def _no_number(group: Group, key: str, value: int) -> DataError:
    return DataError(
        f"{group.where}: '{key}' holds {value!r}, which is not an atomic number (1 to {len(SYMBOLS)}); "
        "positions in a list of elements are not supported, and rows are padded with -1"
    )


def _number_of_symbol(value: bytes | str, group: Group, key: str) -> int:
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    symbol = text.strip("\0 \t\r\n")
    if not symbol:
        return PADDING
    # Some programs write lower case. All upper case is refused: CO could be two elements, or cobalt.
    number = ATOMIC_NUMBERS.get(symbol) or (
        ATOMIC_NUMBERS.get(symbol.capitalize()) if symbol.islower() else None
    )
    if number is None:
        shown = printable(symbol if len(symbol) <= 12 else symbol[:12] + "...")
        raise DataError(
            f"{group.where}: '{key}' names an unknown element '{shown}'; use symbols such as H, C, N, O"
        )
    return number


def _atoms(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    return _shared(numbers.astype(np.uint8).tobytes())


@cache
def _shared(numbers: bytes) -> npt.NDArray[np.uint8]:
    """Return one read-only array for all molecules with the same atoms."""
    return np.frombuffer(numbers, np.uint8)
