"""The layout of the ANI-1x release: Smith et al., Sci. Data 7, 134 (2020)."""

from __future__ import annotations

from trainer.data.dataset import Molecule
from trainer.data.hdf5 import Group
from trainer.data.layout import Layout, Reading, name_of, structures_of_group

_ENERGIES = "wb97x_dz.energy"  # omegaB97X/6-31G(d), as ANI-1
_KEYS = ("atomic_numbers", "coordinates", _ENERGIES)


def _read(group: Group, high_energy: bool) -> list[Reading]:
    parts = structures_of_group(group, *_KEYS, missing_is_nan=True)
    readings = []
    for some in parts:
        # A group has all structures of a formula: isomers too.
        name = name_of(group, some.numbers, alone=len(parts) == 1)
        molecule = Molecule(name, "", some.numbers, some.coordinates, some.energies, isomers=True)
        readings.append(Reading(molecule, group.where, some.rows, len(some.rows), some.resolution))
    return readings


ANI1X = Layout(keys=_KEYS, optional=(), read=_read, has_high_energy=lambda group: False)
