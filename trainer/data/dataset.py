"""The data of a study in memory: molecules, each with many structures, as arrays."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from trainer.data.bonds import bond_graphs
from trainer.data.elements import SYMBOLS


@dataclass(frozen=True, eq=False)
class Molecule:
    """One molecule and its structures.

    Attributes
    ----------
    name : the group that holds it in its file
    smiles : its SMILES, or an empty string where the file has none
    atomic_numbers : (Na,) uint8 array
    coordinates : (Nc, Na, 3) float32 array, Å
    energies : (Nc,) float64 array, hartree
    isomers : whether the structures are of all molecules of a formula, as in the ANI-1x release
    label : what its file says to tell it from others (``data.molecule``); empty: its SMILES or bonds tell
    """

    name: str
    smiles: str
    atomic_numbers: npt.NDArray[np.uint8]
    coordinates: npt.NDArray[np.float32]
    energies: npt.NDArray[np.float64]
    isomers: bool = False
    label: str = ""

    @property
    def structures(self) -> int:
        """Number of structures, Nc."""
        return len(self.energies)

    @property
    def atoms(self) -> int:
        """Number of atoms of one structure, Na."""
        return len(self.atomic_numbers)

    @property
    def heavy_atoms(self) -> int:
        """Number of atoms other than hydrogen."""
        return int(np.sum(self.atomic_numbers > 1))

    @cached_property
    def composition(self) -> dict[str, int]:
        """Number of atoms by element, in the order of the atomic numbers."""
        counts = Counter(self.atomic_numbers.tolist())
        return {SYMBOLS[number - 1]: counts[number] for number in sorted(counts)}

    @property
    def element_set(self) -> str:
        """Its elements in alphabetical order, like ``CHO``."""
        return "".join(sorted(self.composition))

    @property
    def formula(self) -> str:
        """Its composition in alphabetical order, like ``C2H6O``."""
        return formula_of(self.composition)


def formula_of(atoms: Mapping[str, int] | Iterable[str]) -> str:
    """The formula of some atoms, which are counted or symbols, in alphabetical order, like ``C2H6O``."""
    return "".join(f"{s}{n if n > 1 else ''}" for s, n in sorted(Counter(atoms).items()))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Molecules in the order of their files.

    A structure's index is global: those of molecule m are ``offsets[m]`` to ``offsets[m + 1] - 1``.

    Attributes
    ----------
    told_apart_by : what tells molecules without SMILES apart: their bonds, or the names of their groups
    """

    molecules: tuple[Molecule, ...]
    told_apart_by: Literal["bonds", "names"] = "bonds"

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """(M + 1,) array: where the structures of each molecule begin, and their total number."""
        return np.cumsum([0, *(m.structures for m in self.molecules)], dtype=np.int64)

    @property
    def structures(self) -> int:
        """Number of structures of all molecules, S."""
        return int(self.offsets[-1])

    @cached_property
    def elements(self) -> tuple[str, ...]:
        """The symbols that occur, in the order of the atomic numbers."""
        numbers = {int(n) for m in self.molecules for n in np.unique(m.atomic_numbers)}
        return tuple(SYMBOLS[n - 1] for n in sorted(numbers))

    def molecule_of(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The positions in ``molecules`` of the structures with these global indices, (n,) for (n,)."""
        return np.searchsorted(self.offsets, indices, side="right") - 1

    def energies(self) -> npt.NDArray[np.float64]:
        """Energies of all structures, (S,) float64, hartree."""
        return np.concatenate([m.energies for m in self.molecules])

    def heavy_atoms(self) -> npt.NDArray[np.int64]:
        """Number of heavy atoms of each molecule, (M,)."""
        return np.array([m.heavy_atoms for m in self.molecules], dtype=np.int64)

    def identities(self) -> tuple[str, ...]:
        """What tells each molecule from the others, (M,): groups that share it are one molecule.

        It is the label where there is one, else the SMILES where every molecule has one, else the bond graph.
        A group that holds all isomers of a formula is one with every molecule of that formula: then no
        molecule is met twice.

        With ``told_apart_by="names"`` it is the name where no molecule has a SMILES, and the formula where
        some have: so studies were divided before bonds were looked at.
        """
        with_smiles = [bool(m.smiles) for m in self.molecules]
        if self.told_apart_by == "names" and not all(with_smiles):
            return tuple(m.formula if any(with_smiles) else m.name for m in self.molecules)
        smiles = [m.smiles for m in self.molecules]
        mixed = {m.formula for m in self.molecules if m.isomers}
        found = smiles if all(with_smiles) else bond_graphs(self.molecules)
        return tuple(
            m.label or (m.formula if m.formula in mixed else identity)
            for m, identity in zip(self.molecules, found, strict=True)
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all names, elements, coordinates and energies in their order."""
        digest = hashlib.sha256()
        for molecule in self.molecules:
            head = [molecule.name, molecule.smiles, molecule.atomic_numbers.tolist(), molecule.structures]
            digest.update(json.dumps(head).encode())
            digest.update(np.ascontiguousarray(molecule.coordinates, dtype="<f4").data)
            digest.update(np.ascontiguousarray(molecule.energies, dtype="<f8").data)
        return digest.hexdigest()
