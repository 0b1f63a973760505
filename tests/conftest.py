from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import settings

# The time of one example says more of the machine than of the code.
settings.register_profile("anitune", deadline=None)
settings.load_profile("anitune")

SELF_ENERGIES = {"H": -0.6, "C": -38.1, "O": -75.2}  # hartree
RADII = {"H": 0.31, "C": 0.76, "O": 0.66}  # Å

#: SMILES, symbols and an approximate geometry in Å.
MOLECULES = (
    ("O", "OHH", [(0, 0, 0.12), (0, 0.76, -0.47), (0, -0.76, -0.47)]),
    (
        "C",
        "CHHHH",
        [(0, 0, 0), (0.63, 0.63, 0.63), (-0.63, -0.63, 0.63), (-0.63, 0.63, -0.63), (0.63, -0.63, -0.63)],
    ),
    (
        "CO",
        "COHHHH",
        [
            (-0.05, 0.66, 0),
            (-0.05, -0.76, 0),
            (0.98, 0.99, 0),
            (-0.56, 1.04, 0.89),
            (-0.56, 1.04, -0.89),
            (0.88, -1.04, 0),
        ],
    ),
)
STRUCTURES_A_MOLECULE = 40


def pair_energy(symbols: str, coordinates: np.ndarray) -> np.ndarray:
    """Self-energies and a Morse curve for each pair of atoms, (Nc,) hartree for (Nc, Na, 3) Å."""
    energy = np.full(len(coordinates), sum(SELF_ENERGIES[s] for s in symbols))
    for i in range(len(symbols)):
        for j in range(i):
            bond = RADII[symbols[i]] + RADII[symbols[j]]
            distance = np.linalg.norm(coordinates[:, i] - coordinates[:, j], axis=1)
            energy += 0.12 * ((1 - np.exp(-1.5 * (distance - bond))) ** 2 - 1)
    return energy


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Water, methane and methanol, 40 perturbed structures each, in the ANI-1 layout."""
    random = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("data") / "molecules.h5"
    with h5py.File(path, "w") as file:
        for number, (smiles, symbols, geometry) in enumerate(MOLECULES):
            noise = random.normal(scale=0.06, size=(STRUCTURES_A_MOLECULE, len(symbols), 3))
            coordinates = (np.array(geometry) + noise).astype(np.float32)
            group = file.create_group(f"molecules/molecules-{number}")
            group["species"] = np.array(list(symbols), dtype="S1")
            group["smiles"] = np.array(list(smiles), dtype="S1")
            group["coordinates"] = coordinates
            group["energies"] = pair_energy(symbols, coordinates.astype(np.float64))
    return path
