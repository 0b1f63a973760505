"""Summary of a data set in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from trainer.data.dataset import Dataset, Molecule
from trainer.data.outliers import FAR, deviations
from trainer.data.stoichiometry import balance_text, balances
from trainer.evaluation.units import HARTREE_TO_KCALMOL


@dataclass(frozen=True)
class HeavyAtomsSummary:
    """The molecules with one number of heavy atoms.

    Energies are in hartree; ``widest_kcalmol`` is the largest span of the energies of one molecule.
    """

    heavy_atoms: int
    molecules: int
    structures: int
    atoms_min: int
    atoms_max: int
    energy_min_hartree: float
    energy_max_hartree: float
    widest_kcalmol: float


@dataclass(frozen=True)
class Outlier:
    """A structure whose energy is far from all others of its molecule.

    ``structure`` is its index in the molecule, from 0; ``deviations`` is the distance from the median in
    robust standard deviations.
    """

    molecule: str
    structure: int
    energy_hartree: float
    deviations: float


@dataclass(frozen=True)
class DatasetSummary:
    """Summary of a whole data set.

    ``atoms`` counts the atoms of all structures. ``balances`` are equations that hold for every composition,
    like ``H = 2 O``: energies by element are then not determined. ``isolated_atoms`` counts the structures of
    one atom that are trained on, by element. ``self_energies_hartree`` are the energies of the isolated atoms
    that are the self-energies instead; empty if there are none. ``duplicates`` counts the duplicate
    structures of the files that are left out.
    """

    fingerprint: str
    molecules: int
    structures: int
    atoms: int
    atoms_per_structure: float
    elements: tuple[str, ...]
    energy_min_hartree: float
    energy_max_hartree: float
    by_heavy_atoms: tuple[HeavyAtomsSummary, ...]
    balances: tuple[str, ...]
    outliers: tuple[Outlier, ...]
    isolated_atoms: dict[str, int]
    self_energies_hartree: dict[str, float]
    duplicates: int


def summarize(dataset: Dataset) -> DatasetSummary:
    """Count molecules, structures and atoms, and find the range of the energies."""
    atoms = sum(m.atoms * m.structures for m in dataset.molecules)
    by_heavy: dict[int, list[Molecule]] = {}
    for molecule in dataset.molecules:
        by_heavy.setdefault(molecule.heavy_atoms, []).append(molecule)
    return DatasetSummary(
        fingerprint=dataset.fingerprint,
        molecules=len(dataset.molecules),
        structures=dataset.structures,
        atoms=atoms,
        atoms_per_structure=atoms / dataset.structures,
        elements=dataset.elements,
        energy_min_hartree=min(float(m.energies.min()) for m in dataset.molecules),
        energy_max_hartree=max(float(m.energies.max()) for m in dataset.molecules),
        by_heavy_atoms=tuple(_of_heavy_atoms(heavy, by_heavy[heavy]) for heavy in sorted(by_heavy)),
        balances=tuple(
            balance_text(each)
            for each in balances((m.composition for m in dataset.molecules), dataset.elements)
        ),
        outliers=tuple(
            Outlier(molecule.name, number, float(molecule.energies[number]), float(far[number]))
            for molecule in dataset.molecules
            for far in [deviations(molecule)]
            for number in np.flatnonzero(far > FAR).tolist()
        ),
        isolated_atoms=_isolated_atoms(dataset),
        self_energies_hartree=dataset.isolated_energies,
        duplicates=dataset.duplicates,
    )


def _isolated_atoms(dataset: Dataset) -> dict[str, int]:
    counts = Counter[str]()
    for molecule in dataset.molecules:
        if molecule.atoms == 1:
            counts[molecule.formula] += molecule.structures
    return dict(counts)


def _of_heavy_atoms(heavy: int, molecules: list[Molecule]) -> HeavyAtomsSummary:
    return HeavyAtomsSummary(
        heavy_atoms=heavy,
        molecules=len(molecules),
        structures=sum(m.structures for m in molecules),
        atoms_min=min(m.atoms for m in molecules),
        atoms_max=max(m.atoms for m in molecules),
        energy_min_hartree=min(float(m.energies.min()) for m in molecules),
        energy_max_hartree=max(float(m.energies.max()) for m in molecules),
        widest_kcalmol=max(float(m.energies.max() - m.energies.min()) for m in molecules)
        * HARTREE_TO_KCALMOL,
    )
