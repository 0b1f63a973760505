"""The layout of the ANI-1 release: Smith, Isayev, Roitberg, Sci. Data 4, 170193 (2017)."""

from __future__ import annotations

import h5py
import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Molecule
from trainer.data.layout import Layout, coordinates_and_energies, name_of, numbers_of_symbols, where
from trainer.errors import DataError

_HIGH_ENERGY = ("coordinatesHE", "energiesHE")


def _has_high_energy(group: h5py.Group) -> bool:
    present = [key for key in _HIGH_ENERGY if key in group]
    if len(present) == 1:
        raise DataError(
            f"{where(group)}: there is '{present[0]}' alone; {' and '.join(_HIGH_ENERGY)} belong together"
        )
    return bool(present)


def _smiles(group: h5py.Group) -> str:
    """The release keeps a SMILES as an array of single characters; a plain string is met too."""
    if "smiles" not in group:
        return ""
    return b"".join(
        piece if isinstance(piece, bytes) else str(piece).encode() for piece in np.ravel(group["smiles"][()])
    ).decode(errors="replace")


def _numbers(group: h5py.Group) -> npt.NDArray[np.uint8]:
    return numbers_of_symbols(group, "species")


def _read(group: h5py.Group, high_energy: bool) -> Molecule:
    numbers = _numbers(group)
    coordinates, energies = coordinates_and_energies(group, "coordinates", "energies", len(numbers))
    if high_energy and _has_high_energy(group):
        more = coordinates_and_energies(group, *_HIGH_ENERGY, len(numbers))
        coordinates, energies = np.concatenate([coordinates, more[0]]), np.concatenate([energies, more[1]])
    return Molecule(name_of(group), _smiles(group), numbers, coordinates, energies)


ANI1 = Layout(
    keys=("species", "coordinates", "energies"),
    numbers=_numbers,
    read=_read,
    has_high_energy=_has_high_energy,
)
