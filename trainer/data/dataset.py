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
    smiles : its SMILES, or an empty string if the file has none
    atomic_numbers : (Na,) uint8 array
    coordinates : (Nc, Na, 3) float32 array, Å
    energies : (Nc,) float64 array, hartree
    isomers : whether the structures are of all molecules with this formula, as in the ANI-1x release
    label : name in its file that distinguishes it from others (``data.molecule``); empty: SMILES or bonds do
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
    """Return the formula of counts or symbols of atoms, in alphabetical order, like ``C2H6O``."""
    return "".join(f"{s}{n if n > 1 else ''}" for s, n in sorted(Counter(atoms).items()))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Molecules in the order of their files.

    A structure's index is global: those of molecule m are ``offsets[m]`` to ``offsets[m + 1] - 1``.

    Attributes
    ----------
    told_apart_by : how molecules without SMILES are distinguished: by bonds, or by the names of their groups
    isolated_atoms : structures of one atom whose energies are the self-energies; ``molecules`` does not
        include them
    duplicates : number of duplicate structures that the files held and that are left out
    """

    molecules: tuple[Molecule, ...]
    told_apart_by: Literal["bonds", "names"] = "bonds"
    isolated_atoms: tuple[Molecule, ...] = ()
    duplicates: int = 0

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """(M + 1,) array: the first structure of each molecule, and the total number of structures."""
        return np.cumsum([0, *(m.structures for m in self.molecules)], dtype=np.int64)

    @property
    def structures(self) -> int:
        """Number of structures of all molecules, S."""
        return int(self.offsets[-1])

    @cached_property
    def elements(self) -> tuple[str, ...]:
        """Symbols that occur, in the order of the atomic numbers."""
        numbers = {int(n) for m in self.molecules for n in np.unique(m.atomic_numbers)}
        return tuple(SYMBOLS[n - 1] for n in sorted(numbers))

    @property
    def isolated_energies(self) -> dict[str, float]:
        """Energies of the isolated atoms by element, hartree; empty if they are no self-energies."""
        return {SYMBOLS[int(m.atomic_numbers[0]) - 1]: float(m.energies[0]) for m in self.isolated_atoms}

    def molecule_of(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the index in ``molecules`` of each structure with these global indices, (n,)."""
        return np.searchsorted(self.offsets, indices, side="right") - 1

    def energies(self) -> npt.NDArray[np.float64]:
        """Return the energies of all structures, (S,) float64, hartree."""
        return np.concatenate([m.energies for m in self.molecules])

    def heavy_atoms(self) -> npt.NDArray[np.int64]:
        """Return the number of heavy atoms of each molecule, (M,)."""
        return np.array([m.heavy_atoms for m in self.molecules], dtype=np.int64)

    def identities(self) -> tuple[str, ...]:
        """Return a key for each molecule, (M,); groups with the same key are one molecule.

        The key is the label if there is one, else the SMILES if every molecule has one, else the bond graph.
        A group that holds all isomers of a formula counts as one with every molecule of that formula, so that
        no molecule occurs twice.

        With ``told_apart_by="names"`` it is the name if no molecule has a SMILES, and the formula if some
        have: this is how studies were divided before bonds were considered.
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
