"""Files without groups: structures one after another, each with its own atoms.

Structures with the same atoms in the same order and of the same molecule are collected, like a group of an
HDF5 file. Molecules are in the order of their first structures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer.config import ISOLATED_ATOMS, DataConfig
from trainer.data.bonds import same_bonds
from trainer.data.dataset import Molecule, formula_of
from trainer.data.elements import SYMBOLS
from trainer.data.layout import Reading, Units
from trainer.data.unusable import usable
from trainer.errors import DataError

#: Fewer different energies may be numbers of float32 by chance.
FEWEST: Final = 10


@dataclass(frozen=True, eq=False)
class Frames:
    """All structures of a file, in the units of the file.

    Attributes
    ----------
    numbers : (A,) uint8 array, atomic numbers of the atoms of all structures
    coordinates : (A, 3) float64 array
    atoms : (F,) int64 array, number of atoms of each structure
    energies : (F,) float64 array; NaN where there is none
    periodic, charged, open_shell : (F,) bool arrays
    molecules : (F,) array of text: the molecule that each structure names; empty if it was not asked for
    keys : keys that structures without an energy have instead
    """

    numbers: npt.NDArray[np.uint8]
    coordinates: npt.NDArray[np.float64]
    atoms: npt.NDArray[np.int64]
    energies: npt.NDArray[np.float64]
    periodic: npt.NDArray[np.bool_]
    charged: npt.NDArray[np.bool_]
    open_shell: npt.NDArray[np.bool_]
    molecules: npt.NDArray[np.str_]
    keys: npt.NDArray[np.str_]


def readings_of(
    frames: Frames, where: str, data: DataConfig, units: Units, one: bool = False
) -> list[Reading]:
    """Return the molecules of a file, with finite values.

    Parameters
    ----------
    one : whether all structures belong to one molecule, whatever their bonds

    Raises
    ------
    DataError
        if there is no structure, or one that cannot be used and that the settings do not leave out.
    """
    if not len(frames.atoms):
        raise DataError(f"{where}: it contains no structure")
    open_shell = frames.open_shell
    if data.self_energies == ISOLATED_ATOMS:
        open_shell = open_shell & (frames.atoms > 1)  # most isolated atoms are, and no network learns them
    kept = usable(
        where,
        {
            "without_energy": np.isnan(frames.energies),
            "periodic": frames.periodic,
            "charged": frames.charged,
            "open_shell": open_shell,
        },
        data,
        f", name their key with data.energy (--energy){_others(frames)}",
    )
    ends = np.cumsum(frames.atoms)
    finite = np.isfinite(frames.energies) | ~kept
    if not finite.all():
        raise DataError(
            f"{where}: the energy of structure {int(np.argmin(finite))} (from 0) is infinite; remove it"
        )
    if not np.isfinite(frames.coordinates).all():
        atom = int(np.argmin(np.isfinite(frames.coordinates).all(axis=1)))
        number = int(np.searchsorted(ends, atom, side="right"))
        raise DataError(
            f"{where}: a coordinate of structure {number} (from 0) is NaN or infinite; remove that structure"
        )
    energies = frames.energies / units.energy
    resolution = _resolution(frames.energies[kept]) / units.energy
    alike: dict[bytes, list[int]] = {}
    raw, begins = frames.numbers.tobytes(), (ends - frames.atoms).tolist()
    for number, (begin, end) in enumerate(zip(begins, ends.tolist(), strict=True)):
        if kept[number]:
            alike.setdefault(raw[begin:end], []).append(number)
    found: list[
        tuple[int, str, str, npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.int64]]
    ] = []
    for key, members in alike.items():
        atoms, rows = np.frombuffer(key, np.uint8), np.array(members)
        places = np.array(begins)[rows][:, None] + np.arange(len(atoms))
        coordinates = (frames.coordinates[places] * units.length).astype(np.float32)
        formula = formula_of(SYMBOLS[n - 1] for n in atoms.tolist())
        if one or data.molecule is None:
            owners = np.zeros(len(rows), np.int64) if one else same_bonds(coordinates, atoms)
            names = [formula] * (int(owners.max()) + 1)
        else:
            named, owners = np.unique(frames.molecules[rows], return_inverse=True)
            names = named.tolist()
        order = np.argsort(owners, kind="stable")
        each = np.split(order, np.flatnonzero(np.diff(owners[order])) + 1)
        for name, own in zip(names, each, strict=True):
            some = (rows, coordinates) if len(names) == 1 else (rows[own], coordinates[own])
            found.append(
                (int(some[0][0]), name, "" if data.molecule is None else name, atoms, some[1], some[0])
            )
    found.sort(key=lambda each: each[0])
    readings, taken = [], dict[str, int]()
    for _, name, label, atoms, coordinates, rows in found:
        taken[name] = taken.get(name, 0) + 1
        alone = name if taken[name] == 1 else f"{name} {taken[name]}"
        molecule = Molecule(alone, "", atoms, coordinates, energies[rows], label=label)
        readings.append(Reading(molecule, where, rows, len(rows), resolution, where, units))
    return readings


def _resolution(energies: npt.NDArray[np.float64]) -> float:
    """Return the spacing of float32 at the largest energy if all of them were rounded to it, else 0."""
    with np.errstate(over="ignore"):
        rounded = energies.astype(np.float32)
    if len(np.unique(energies)) < FEWEST or not np.array_equal(rounded, energies):
        return 0.0
    return float(np.spacing(np.abs(rounded).max()))


def _others(frames: Frames) -> str:
    """List the keys that structures without an energy have instead, for a message."""
    return f" (they have {', '.join(frames.keys.tolist())})" if len(frames.keys) else ""
