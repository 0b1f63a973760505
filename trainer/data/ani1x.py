"""The layout of the ANI-1x release: Smith et al., Sci. Data 7, 134 (2020)."""

from __future__ import annotations

import h5py
import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Molecule
from trainer.data.layout import Layout, checked_numbers, coordinates_and_energies, name_of

_ENERGIES = "wb97x_dz.energy"  # omegaB97X/6-31G(d), as ANI-1


def _numbers(group: h5py.Group) -> npt.NDArray[np.uint8]:
    return checked_numbers(group, "atomic_numbers")


def _read(group: h5py.Group, high_energy: bool) -> Molecule:
    numbers = _numbers(group)
    coordinates, energies = coordinates_and_energies(
        group, "coordinates", _ENERGIES, len(numbers), missing_is_nan=True
    )
    return Molecule(name_of(group), "", numbers, coordinates, energies)


ANI1X = Layout(
    keys=("atomic_numbers", "coordinates", _ENERGIES),
    numbers=_numbers,
    read=_read,
    has_high_energy=lambda group: False,
)
