"""Units of data files. Inside, energies are in hartree and coordinates in Å."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trainer.config import EnergyUnit, LengthUnit
from trainer.evaluation.units import HARTREE_TO_KCALMOL

#: Number of units per hartree. The constants are those of ASE (CODATA 2014), which most files in eV come
#: from, so that values that were multiplied by them come back unchanged.
ENERGY_UNITS: Final[Mapping[EnergyUnit, float]] = {
    "hartree": 1.0,
    "eV": 27.211386024367243,
    "kcal/mol": HARTREE_TO_KCALMOL,
    "kJ/mol": 2625.4996387552483,
}

#: Å per unit.
LENGTH_UNITS: Final[Mapping[LengthUnit, float]] = {"angstrom": 1.0, "bohr": 0.5291772105638411}
