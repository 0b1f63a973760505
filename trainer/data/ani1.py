"""The layout of the ANI-1 release: Smith, Isayev, Roitberg, Sci. Data 4, 170193 (2017).

torchani's ``ANIDataset`` writes it too: with atomic numbers in place of symbols, a row of them for each
structure, groups by formula or by number of atoms, and charges of ions.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer.config import DataConfig
from trainer.data.dataset import Molecule
from trainer.data.hdf5 import Group
from trainer.data.layout import Layout, Reading, Structures, name_of, smiles_of, structures_of_group, units_of
from trainer.data.unusable import usable
from trainer.errors import DataError

_COORDINATES: Final = "coordinates"
_HIGH_ENERGY: Final = ("coordinatesHE", "energiesHE")
_CHARGES: Final = "charges"


def _uncharged(group: Group, data: DataConfig) -> npt.NDArray[np.bool_] | None:
    """Return which structures are used; None: all. Charges of atoms, under the same name, are ignored."""
    charges = group.read(_CHARGES) if _CHARGES in group else np.empty((0, 0))
    if charges.ndim != 1 or charges.dtype.kind not in "fiu":
        return None
    return usable(group.where, {"charged": charges != 0}, data)


def _read(group: Group, energy: str, data: DataConfig, elements: str) -> list[Reading]:
    units = units_of(data)
    low = _COORDINATES in group or energy in group
    high = (
        ANI1.has_high_energy(group) if elements == ANI1.elements and (data.high_energy or not low) else False
    )
    if high and not low and not data.high_energy:
        raise DataError(
            f"{group.where}: there are only high-energy structures ({' and '.join(_HIGH_ENERGY)}); ask "
            "for them with data.high_energy: true (--high-energy), or leave the group out"
        )
    parts: list[Structures] = []
    if low or not high:
        kept = _uncharged(group, data)
        parts = structures_of_group(group, elements, _COORDINATES, energy, units, usable=kept)
    more = structures_of_group(group, elements, *_HIGH_ENERGY, units) if high else []
    if parts and more and (len(parts) > 1 or len(more) > 1):
        raise DataError(
            f"{group.where}: '{elements}' has a row for each structure, but there are two kinds of"
            " structures; split it into two"
        )
    smiles, readings = smiles_of(group), []
    for some in parts or more:
        pieces = [some, *more] if parts else [some]
        molecule = Molecule(
            name_of(group, some.numbers, alone=len(parts or more) == 1),
            smiles,
            some.numbers,
            np.concatenate([each.coordinates for each in pieces]) if len(pieces) > 1 else some.coordinates,
            np.concatenate([each.energies for each in pieces]) if len(pieces) > 1 else some.energies,
            isomers=len(parts or more) > 1,
        )
        rows = np.concatenate([each.rows for each in pieces]) if len(pieces) > 1 else some.rows
        high_from = len(some.rows) if parts else 0
        readings.append(
            Reading(
                molecule, group.where, rows, high_from, max(p.resolution for p in pieces), group.file, units
            )
        )
    return readings


ANI1 = Layout(
    elements="species",
    coordinates=_COORDINATES,
    energies=("energies",),
    read=partial(_read, elements="species"),
    optional=("smiles", _CHARGES),
    high_energy=_HIGH_ENERGY,
)

#: Variant that torchani reads too, with another name for the elements.
TORCHANI = Layout(
    elements="numbers",
    coordinates=_COORDINATES,
    energies=("energies",),
    read=partial(_read, elements="numbers"),
    optional=("smiles", _CHARGES),
)
