"""The layout of the ANI-1 release: Smith, Isayev, Roitberg, Sci. Data 4, 170193 (2017).

Its variants of torchani are read too: atomic numbers in place of symbols, and a row of them for each
structure.
"""

from __future__ import annotations

import numpy as np

from trainer.data.dataset import Molecule
from trainer.data.hdf5 import Group
from trainer.data.layout import Layout, Reading, name_of, structures_of_group
from trainer.errors import DataError

_LOW_ENERGY = ("coordinates", "energies")
_HIGH_ENERGY = ("coordinatesHE", "energiesHE")


def _has_high_energy(group: Group) -> bool:
    present = [key for key in _HIGH_ENERGY if key in group]
    if len(present) == 1:
        raise DataError(
            f"{group.where}: there is '{present[0]}' alone; {' and '.join(_HIGH_ENERGY)} belong together"
        )
    return bool(present)


def _smiles(group: Group) -> str:
    """The release keeps a SMILES as an array of single characters; a plain string is met too."""
    if "smiles" not in group:
        return ""
    return b"".join(
        piece if isinstance(piece, bytes) else str(piece).encode()
        for piece in np.ravel(group.read("smiles")).tolist()
    ).decode(errors="replace")


def _read(group: Group, high_energy: bool) -> list[Reading]:
    low = any(key in group for key in _LOW_ENERGY)
    high = _has_high_energy(group) if high_energy or not low else False
    if high and not low and not high_energy:
        raise DataError(
            f"{group.where}: there are high-energy structures alone ({' and '.join(_HIGH_ENERGY)}); ask "
            "for them with "
            "data.high_energy: true (--high-energy), or leave the group out"
        )
    parts = structures_of_group(group, "species", *_LOW_ENERGY) if low or not high else []
    more = structures_of_group(group, "species", *_HIGH_ENERGY) if high else []
    if parts and more and (len(parts) > 1 or len(more) > 1):
        raise DataError(
            f"{group.where}: 'species' has a row for each structure, and there are two kinds of "
            "structures; divide it"
        )
    smiles, readings = _smiles(group), []
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
        readings.append(Reading(molecule, group.where, rows, high_from, max(p.resolution for p in pieces)))
    return readings


ANI1 = Layout(
    keys=("species", *_LOW_ENERGY),
    optional=("smiles", *_HIGH_ENERGY),
    read=_read,
    has_high_energy=_has_high_energy,
)
