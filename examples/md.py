"""Relax a molecule with a trained model, then let it move at constant energy, and say how well that is kept.

python examples/md.py MODEL molecule.xyz [--picoseconds 1] [--kelvin 300] [--step 0.5]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from ase import Atoms, units
from ase.io import read
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from trainer.inference.ase_calculator import AnituneCalculator


def relax(atoms: Atoms, steps: int = 200) -> bool:
    """Move the atoms to the nearest minimum of the energy; whether it was reached."""
    return bool(BFGS(atoms, logfile=None).run(fmax=0.01, steps=steps))


def run_dynamics(atoms: Atoms, picoseconds: float, kelvin: float, step: float) -> tuple[float, float, float]:
    """Let the atoms move at constant energy, with steps in femtoseconds.

    Returns
    -------
    The slope of the total energy over time, meV/atom/ps, its greatest departure, meV/atom, and the greatest
    novelty that was met
    """
    masses = atoms.get_masses()[:, None]
    # From a minimum half of the motion goes into the bonds.
    momenta = np.random.default_rng(0).normal(
        scale=np.sqrt(masses * units.kB * 2 * kelvin), size=(len(atoms), 3)
    )
    atoms.set_momenta(momenta - masses / masses.sum() * momenta.sum(0))
    dynamics = VelocityVerlet(atoms, timestep=step * units.fs)
    times, energies, novelties = [], [], []
    for _ in dynamics.irun(round(1000 * picoseconds / step)):
        times.append(dynamics.get_time() / (1000 * units.fs))
        energies.append(atoms.get_total_energy() / len(atoms) * 1000)
        novelties.append(atoms.calc.results["novelty"])
    departure = np.array(energies) - energies[0]
    return float(np.polyfit(times, departure, 1)[0]), float(np.abs(departure).max()), max(novelties)


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="model file, or folder of a training or an ensemble")
    parser.add_argument("molecule", help="a file that ASE reads")
    parser.add_argument("--picoseconds", type=float, default=1.0)
    parser.add_argument("--kelvin", type=float, default=300.0, help="of the motion about the minimum")
    parser.add_argument("--step", type=float, default=0.5, help="femtoseconds")
    options = parser.parse_args()
    torch.set_num_threads(1)  # operations on so few atoms are too small to be divided
    atoms = read(options.molecule, index=0)
    atoms.calc = AnituneCalculator(options.model)
    reached = relax(atoms)
    atoms.calc.get_property("energy", atoms)
    results = atoms.calc.results
    print(f"minimum     {results['energy']:.4f} eV{'' if reached else ' (not reached)'}")
    print(f"uncertainty {results['energy_spread']:.4f} eV")
    print(f"novelty     {results['novelty']:.2f} (above 1: far from the training data)")
    drift, departure, novelty = run_dynamics(atoms, options.picoseconds, options.kelvin, options.step)
    print(f"drift       {drift:+.4f} meV/atom/ps over {options.picoseconds:g} ps")
    print(f"departure   {departure:.4f} meV/atom at most")
    print(f"novelty     {novelty:.2f} at most")


if __name__ == "__main__":
    main()
