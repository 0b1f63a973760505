"""The layout of SPICE: Eastman et al., Sci. Data 10, 11 (2023). Coordinates are in bohr.

Beside total energies it has formation energies, which ``data.energy: formation_energy`` reads.
"""

from __future__ import annotations

import re

import numpy as np

from trainer.config import DataConfig
from trainer.data.dataset import Molecule
from trainer.data.hdf5 import Group
from trainer.data.layout import Layout, Reading, name_of, smiles_of, structures_of_group, units_of
from trainer.data.unusable import usable


def _charge(smiles: str) -> int:
    """Return the sum of the formal charges in a SMILES: ``[NH3+:1]``, ``[Ca+2]``, ``[O--]``."""
    found = re.findall(r"([+-]+)(\d*)(?::\d+)?\]", smiles)
    return sum(
        (len(signs) if not digits else int(digits)) * (1 if signs[0] == "+" else -1)
        for signs, digits in found
    )


def _read(group: Group, energy: str, data: DataConfig) -> list[Reading]:
    smiles = smiles_of(group)
    units = units_of(data, length=SPICE.length_unit)
    parts = structures_of_group(group, SPICE.elements, SPICE.coordinates, energy, units)
    readings = []
    for some in parts:
        kept = usable(group.where, {"charged": np.full(len(some.rows), _charge(smiles) != 0)}, data)
        name = name_of(group, some.numbers, alone=len(parts) == 1)
        molecule = Molecule(name, smiles, some.numbers, some.coordinates[kept], some.energies[kept])
        readings.append(
            Reading(
                molecule, group.where, some.rows[kept], int(kept.sum()), some.resolution, group.file, units
            )
        )
    return readings


SPICE = Layout(
    elements="atomic_numbers",
    coordinates="conformations",
    energies=("dft_total_energy",),
    read=_read,
    optional=("smiles",),
    length_unit="bohr",
)
