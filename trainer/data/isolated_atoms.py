"""Isolated atoms: structures of one atom, whose energies can serve as self-energies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trainer.data.dataset import Molecule
from trainer.data.duplicates import SAME_ENERGY
from trainer.data.elements import SYMBOLS
from trainer.data.layout import Reading
from trainer.errors import DataError


def take_isolated_atoms(readings: Sequence[Reading]) -> tuple[tuple[Molecule, ...], list[Reading]]:
    """Separate the isolated atoms from the other structures.

    Returns
    -------
    One isolated atom of each element of the other structures, in the order of the atomic numbers; and the
    readings of the other structures.

    Raises
    ------
    DataError
        if an element has no isolated atom or two different energies, or if there is no other structure.
    """
    first: dict[int, Reading] = {}
    rest: list[Reading] = []
    for reading in readings:
        if reading.molecule.atoms > 1:
            rest.append(reading)
            continue
        number = int(reading.molecule.atomic_numbers[0])
        _refuse_other_energies(first.setdefault(number, reading), reading)
    if not rest:
        raise DataError(
            f"{readings[0].file}: all structures are of one atom, and data.self_energies: isolated_atoms "
            "trains on the others alone; add molecules"
        )
    needed = sorted({number for reading in rest for number in reading.molecule.atomic_numbers.tolist()})
    if missing := [SYMBOLS[number - 1] for number in needed if number not in first]:
        files = ", ".join(dict.fromkeys(reading.file for reading in readings))
        raise DataError(
            f"{files}: data.self_energies: isolated_atoms needs a structure of one atom of each element, and "
            f"there is none of {', '.join(missing)}; add it, or give data.self_energies by element"
        )
    return tuple(_one(first[number].molecule) for number in needed), rest


def _refuse_other_energies(one: Reading, reading: Reading) -> None:
    """Raise an error if the energy of an isolated atom is not that of the first one of its element."""
    energy = float(one.molecule.energies[0])
    same = SAME_ENERGY + max(one.resolution, reading.resolution)
    for index, other in enumerate(reading.molecule.energies.tolist()):
        if abs(other - energy) > same:
            symbol = SYMBOLS[int(one.molecule.atomic_numbers[0]) - 1]
            raise DataError(
                f"{one.place(0)}, and {reading.place(index)}: the isolated {symbol} atom has two energies, "
                f"{energy:.6f} and {other:.6f} hartree; keep the one of the level of theory of the molecules"
            )


def _one(molecule: Molecule) -> Molecule:
    """Return the first structure of an isolated atom."""
    return replace(molecule, coordinates=molecule.coordinates[:1], energies=molecule.energies[:1])
