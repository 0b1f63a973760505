"""What the readers of all HDF5 layouts share: finding the molecules, and checking what they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Molecule
from trainer.data.elements import ATOMIC_NUMBERS, SYMBOLS
from trainer.errors import DataError


@dataclass(frozen=True)
class Layout:
    """How molecules are written in an HDF5 file.

    Attributes
    ----------
    keys : the datasets that make a group a molecule: elements, coordinates and energies; the first tells
        the layout from the others
    numbers : the atomic numbers, (Na,), of one group
    read : the molecule of one group; its second argument asks for the high-energy structures too
    has_high_energy : whether a group holds high-energy structures
    """

    keys: tuple[str, str, str]
    numbers: Callable[[h5py.Group], npt.NDArray[np.uint8]]
    read: Callable[[h5py.Group, bool], Molecule]
    has_high_energy: Callable[[h5py.Group], bool]


def molecule_groups(file: h5py.File, keys: Sequence[str]) -> Iterator[h5py.Group]:
    """All groups at any depth that hold a dataset of one of these names.

    Raises
    ------
    DataError
        if one of them does not hold all.
    """
    found: list[h5py.Group] = []

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Group) and any(isinstance(item.get(k), h5py.Dataset) for k in keys):
            found.append(item)

    visit("/", file["/"])
    file.visititems(visit)
    for group in found:
        for key in keys:
            if not isinstance(group.get(key), h5py.Dataset):
                raise DataError(
                    f"{where(group)}: there is no dataset '{key}'; add it, or leave the group out"
                )
        yield group


def where(group: h5py.Group) -> str:
    """The file and group, for a message."""
    return f"{group.file.filename}, group {group.name}"


def name_of(group: h5py.Group) -> str:
    """The path of a group inside its file, as the molecule's name."""
    return str(group.name).strip("/") or "molecule"


def numbers_of_symbols(group: h5py.Group, key: str) -> npt.NDArray[np.uint8]:
    """Atomic numbers, (Na,), of a dataset of chemical symbols."""
    symbols = [
        s.decode(errors="replace") if isinstance(s, bytes) else str(s) for s in np.ravel(group[key][()])
    ]
    for symbol in symbols:
        if symbol not in ATOMIC_NUMBERS:
            raise DataError(
                f"{where(group)}: '{key}' names an unknown element {symbol!r}; use symbols such as H, C, N, O"
            )
    return np.array([ATOMIC_NUMBERS[s] for s in symbols], dtype=np.uint8)


def checked_numbers(group: h5py.Group, key: str) -> npt.NDArray[np.uint8]:
    """Atomic numbers, (Na,), of a dataset of integers."""
    numbers = np.ravel(group[key][()])
    for number in numbers.tolist():
        if number not in range(1, len(SYMBOLS) + 1):
            raise DataError(
                f"{where(group)}: '{key}' holds {number!r}, which is no atomic number (1 to {len(SYMBOLS)})"
            )
    return numbers.astype(np.uint8)


def coordinates_and_energies(
    group: h5py.Group, coordinates_key: str, energies_key: str, atoms: int, *, missing_is_nan: bool = False
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """(Nc, Na, 3) float32 coordinates in Å and (Nc,) float64 energies in hartree, of equal length and finite.

    With ``missing_is_nan``, structures whose energy is NaN are left out.
    """
    coordinates, energies = group[coordinates_key], group[energies_key]
    for dataset in (coordinates, energies):
        if dataset.dtype.kind not in "fiu":
            raise DataError(
                f"{where(group)}: '{dataset.name.rpartition('/')[2]}' does not hold numbers ({dataset.dtype})"
            )
    coordinates, energies = coordinates[()].astype(np.float32), energies[()].astype(np.float64)
    if atoms == 0 or energies.ndim != 1 or coordinates.shape != (len(energies), atoms, 3):
        raise DataError(
            f"{where(group)}: the shapes disagree: {atoms} atoms, '{coordinates_key}' {coordinates.shape}, "
            f"'{energies_key}' {energies.shape}; they must be (structures, {atoms}, 3) and (structures,)"
        )
    if missing_is_nan:
        present = ~np.isnan(energies)
        if not present.all():
            coordinates, energies = coordinates[present], energies[present]
    for key, finite in (
        (energies_key, np.isfinite(energies)),
        (coordinates_key, np.isfinite(coordinates).all(axis=(1, 2))),
    ):
        if not finite.all():
            raise DataError(
                f"{where(group)}: '{key}' is NaN or infinite in {int(np.sum(~finite))} of {len(finite)} "
                f"structures (the first is number {int(np.argmin(finite))}, from 0); remove them"
            )
    return coordinates, energies
