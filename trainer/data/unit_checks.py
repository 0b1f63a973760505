"""Checks that energies and coordinates are in the unit in which they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer.config import DataConfig
from trainer.data.bonds import RADII
from trainer.data.layout import Reading
from trainer.data.units import ENERGY_UNITS, LENGTH_UNITS
from trainer.errors import DataError

#: Energies of atoms, hartree, rounded: levels of theory differ in them by less than a thousandth.
ATOMS: Final = {
    1: -0.50, 2: -2.90, 3: -7.48, 4: -14.66, 5: -24.65, 6: -37.84, 7: -54.58, 8: -75.06, 9: -99.72,
    10: -128.9, 11: -162.2, 12: -200.0, 13: -242.3, 14: -289.3,
    15: -341.2, 16: -398.1, 17: -460.1, 18: -527.5,
}  # fmt: skip

#: Total energies are between these multiples of the sum of the energies of their atoms. Units that can be
#: mistaken for each other differ by a factor of at least 4.184.
TOTAL: Final = (0.5, 2.0)

#: The nearest atom is between these multiples of the sum of the covalent radii, for at least this share of
#: the atoms.
BOND: Final = (0.8, 1.3)
MOST: Final = 0.9

#: With fewer atoms nothing can be concluded.
FEWEST: Final = 24

#: Number of structures of each molecule whose distances are checked.
LOOKED_AT: Final = 16


def refuse_other_units(readings: Sequence[Reading], data: DataConfig) -> None:
    """Raise an error if the values of a file look like another unit.

    Raises
    ------
    DataError
        with one line that names the file, and the unit that its values look like.
    """
    if data.unusual == "keep":
        return
    files: dict[str, list[Reading]] = {}
    for reading in readings:
        files.setdefault(reading.file, []).append(reading)
    for file, of_file in files.items():
        _refuse_lengths(file, of_file)
        _refuse_energies(file, of_file)


def _refuse_energies(file: str, readings: Sequence[Reading]) -> None:
    shares, units = [], {reading.units.energy for reading in readings}
    for reading in readings:
        numbers, energies = reading.molecule.atomic_numbers.tolist(), reading.molecule.energies
        # Equal energies are reported as such by another check, not as another unit.
        if all(n in ATOMS for n in numbers) and (len(energies) < 3 or (energies != energies[0]).any()):
            shares.append(energies / sum(ATOMS[n] for n in numbers))
    if not shares:
        return
    share, (read_as,) = float(np.median(np.concatenate(shares))), units
    if TOTAL[0] < share < TOTAL[1] or share == 0:  # zeros are reported as equal energies
        return
    name = next(unit for unit, factor in ENERGY_UNITS.items() if factor == read_as)
    for unit, factor in ENERGY_UNITS.items():
        if TOTAL[0] < share * read_as / factor < TOTAL[1]:
            raise DataError(
                f"{file}: its energies are {_times(share)} those of the atoms if they are in {name}: these "
                f"look like {unit}; set data.unit: {unit} (--unit {unit}), or if they have another zero, set"
                " data.unusual: keep (--unusual keep)"
            )
    raise DataError(
        f"{file}: its energies are {_times(share)} those of the atoms, in {name}, and in no other unit near "
        "them (H has -0.5 hartree): if they have another zero, as formation energies do, set "
        "data.unusual: keep (--unusual keep)"
    )


def _times(share: float) -> str:
    return f"{share:.3g} times"


def _refuse_lengths(file: str, readings: Sequence[Reading]) -> None:
    (read_as,) = {reading.units.length for reading in readings}
    nearest = [_nearest(reading) for reading in readings if reading.molecule.atoms > 1]
    apart = np.concatenate([np.empty(0), *nearest])
    if len(apart) < FEWEST or _share_of_bonds(apart) >= MOST:
        return
    name = next(unit for unit, factor in LENGTH_UNITS.items() if factor == read_as)
    for unit, factor in LENGTH_UNITS.items():
        if _share_of_bonds(apart / read_as * factor) >= MOST:
            raise DataError(
                f"{file}: the nearest atom is at {np.median(apart):.2f} times the length of a bond if "
                f"coordinates are in {name}: these look like {unit}; set data.length_unit: {unit} "
                f"(--length-unit {unit})"
            )


def _share_of_bonds(apart: npt.NDArray[np.float64]) -> float:
    return float(np.mean((apart > BOND[0]) & (apart < BOND[1])))


def _nearest(reading: Reading) -> npt.NDArray[np.float64]:
    """Return the least distance of each atom over the sum of the radii, for some structures of a molecule."""
    molecule = reading.molecule
    some = molecule.coordinates[:: max(1, molecule.structures // LOOKED_AT)].astype(np.float64)
    radii = RADII[molecule.atomic_numbers]
    found = []
    for each in some:
        apart = np.linalg.norm(each[:, None] - each[None], axis=2) / (radii[:, None] + radii[None])
        apart[np.diag_indices(len(radii))] = np.inf
        found.append(apart.min(axis=1))
    return np.concatenate(found)
