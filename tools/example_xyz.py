"""Makes examples/small-molecules.extxyz from the shipped sample: extended XYZ, as ASE writes it.

::

    python -m tools.example_xyz
"""

from __future__ import annotations

from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from trainer.config import DataConfig
from trainer.data.readers import read_data
from trainer.evaluation.units import HARTREE_TO_EV
from trainer.progress import no_progress

OUT = Path(__file__).resolve().parent.parent / "examples" / "small-molecules.extxyz"
SMILES = ("C", "N", "O", "C#C", "CN", "C#N", "CO", "C=O")
STRUCTURES = 60
"""Number of structures of each molecule."""


def main() -> None:
    """Write the file."""
    frames = []
    for molecule in read_data(DataConfig(), no_progress).molecules:
        if molecule.smiles not in SMILES:
            continue
        chosen = np.linspace(0, molecule.structures - 1, STRUCTURES).astype(int)
        for positions, energy in zip(molecule.coordinates[chosen], molecule.energies[chosen], strict=True):
            atoms = ase.Atoms(molecule.atomic_numbers, positions.astype(float))
            atoms.calc = SinglePointCalculator(atoms, energy=float(energy) * HARTREE_TO_EV)
            frames.append(atoms)
    ase.io.write(OUT, frames, format="extxyz")


if __name__ == "__main__":
    main()
