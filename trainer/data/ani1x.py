"""The layout of the ANI-1x and ANI-1ccx release: Smith et al., Sci. Data 7, 134 (2020).

torchani writes ``energies`` with the same names for elements and coordinates.
"""

from __future__ import annotations

from typing import Final

from trainer.config import DataConfig
from trainer.data.dataset import Molecule
from trainer.data.hdf5 import Group
from trainer.data.layout import Layout, Reading, name_of, structures_of_group, units_of

#: omegaB97X/6-31G(d), like ANI-1. The energies of ANI-1ccx are called ccsd(t)_cbs.energy.
ENERGIES: Final = "wb97x_dz.energy"


def _read(group: Group, energy: str, data: DataConfig) -> list[Reading]:
    units = units_of(data)
    parts = structures_of_group(group, *ANI1X.structure, energy, units, missing_is_nan=True)
    readings = []
    for some in parts:
        # A group has all structures of a formula, including isomers.
        name = name_of(group, some.numbers, alone=len(parts) == 1)
        molecule = Molecule(name, "", some.numbers, some.coordinates, some.energies, isomers=True)
        readings.append(
            Reading(molecule, group.where, some.rows, len(some.rows), some.resolution, group.file, units)
        )
    return readings


ANI1X = Layout(
    elements="atomic_numbers", coordinates="coordinates", energies=(ENERGIES, "energies"), read=_read
)
