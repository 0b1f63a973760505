"""Normal-mode sampling: distorted structures about an optimized geometry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

BOHR_IN_ANGSTROM = 0.529177210544
ELECTRON_MASSES_PER_DALTON = 1822.888486
BOLTZMANN_HARTREE_PER_KELVIN = 3.166811563e-6


@dataclass(frozen=True)
class NormalModes:
    """The vibrations of a molecule about a minimum of its energy.

    Attributes
    ----------
    equilibrium : (Na, 3) array, Å
    displacements : (Nf, Na, 3) array, unit vectors of Cartesian displacement
    force_constants : (Nf,) array, hartree / Å^2, all positive
    """

    equilibrium: FloatArray
    displacements: FloatArray
    force_constants: FloatArray


def normal_modes(equilibrium: FloatArray, masses: FloatArray, hessian: FloatArray) -> NormalModes:
    """Diagonalize a mass-weighted Hessian with translations and rotations projected out.

    Parameters
    ----------
    equilibrium : (Na, 3) array, Å
    masses : (Na,) array, dalton
    hessian : (3 Na, 3 Na) array, hartree / bohr^2

    Raises
    ------
    ValueError
        if the geometry is not a minimum (a vibration with a negative force constant).
    """
    atoms = len(masses)
    root_mass = np.repeat(np.sqrt(masses * ELECTRON_MASSES_PER_DALTON), 3)
    weighted = hessian / np.outer(root_mass, root_mass)

    centred = equilibrium - np.average(equilibrium, axis=0, weights=masses)
    rigid = []
    for axis in np.eye(3):
        rigid.append((np.tile(axis, (atoms, 1))).ravel() * root_mass)
        rigid.append(np.cross(axis, centred).ravel() * root_mass)
    # A linear molecule has only two rotations: the rank is the number of rigid motions.
    u, singular, _ = np.linalg.svd(np.array(rigid).T, full_matrices=True)
    rank = int(np.sum(singular > 1e-4 * singular[0]))
    internal = u[:, rank:]

    eigenvalues, vectors = np.linalg.eigh(internal.T @ weighted @ internal)
    if np.any(eigenvalues <= 0):
        raise ValueError("the optimized geometry is not a minimum: a vibration is imaginary")
    cartesian = (internal @ vectors) / root_mass[:, None]
    lengths = np.linalg.norm(cartesian, axis=0)
    reduced_masses = 1.0 / lengths**2
    unit = (cartesian / lengths).T
    # A mode's sign is arbitrary: fix it, so that the same molecule gives the same modes.
    largest = unit[np.arange(len(unit)), np.argmax(np.abs(unit).round(6), axis=1)]
    unit *= np.sign(largest)[:, None]
    return NormalModes(
        equilibrium=equilibrium,
        displacements=unit.reshape(-1, atoms, 3),
        force_constants=reduced_masses * eigenvalues / BOHR_IN_ANGSTROM**2,
    )


def sample_structure(
    modes: NormalModes, temperature_range: tuple[float, float], rng: np.random.Generator
) -> tuple[FloatArray, float]:
    """Draw one distorted structure, (Na, 3) Å; return it with the temperature at which it was drawn, K.

    Every mode i is displaced by R_i = ±sqrt(3 c_i Na kB T / K_i), where the c_i are random, positive
    and sum to at most one: the harmonic energy is at most 3/2 Na kB T
    (Smith, Isayev, Roitberg, Chem. Sci. 8, 3192 (2017), section 3.1).
    """
    atoms = len(modes.equilibrium)
    count = len(modes.force_constants)
    temperature = rng.uniform(*temperature_range)
    shares = rng.dirichlet(np.ones(count)) * rng.uniform()
    signs = rng.choice([-1.0, 1.0], size=count)
    thermal = BOLTZMANN_HARTREE_PER_KELVIN * temperature
    lengths = signs * np.sqrt(3.0 * shares * atoms * thermal / modes.force_constants)
    return modes.equilibrium + np.einsum("m,mac->ac", lengths, modes.displacements), float(temperature)
