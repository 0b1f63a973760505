"""Density-functional theory with PySCF (extra ``dft``): energies, optimized geometries, Hessians.

Functions import what is in that extra, so that anitune can be installed without it.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from trainer.data.normal_modes import FloatArray, NormalModes, normal_modes

FUNCTIONAL = "wb97x"
BASIS = "6-31g(d)"
GRID_LEVEL = 2
SCF_TOLERANCE = 1e-9  # hartree


@dataclass(frozen=True)
class SinglePoint:
    """Energy in hartree, whether the SCF converged, and its final density matrix."""

    energy: float
    converged: bool
    density: FloatArray


def provenance() -> dict[str, str | int | float]:
    """Return everything about the level of theory that is needed to reproduce an energy."""
    return {
        "functional": "omegaB97X",
        "basis": "6-31G(d), Cartesian d functions",
        "grid": f"PySCF level {GRID_LEVEL}, no symmetry, restricted Kohn-Sham",
        "scf_tolerance_hartree": SCF_TOLERANCE,
        "pyscf": version("pyscf"),
        "geometric": version("geometric"),
        "rdkit": version("rdkit"),
    }


def _mean_field(symbols: tuple[str, ...], coordinates: FloatArray) -> Any:
    """Set up a restricted Kohn-Sham calculation of a neutral molecule in one thread, coordinates in Å."""
    from pyscf import dft, gto, lib
    from pyscf.scf import hf

    class LongRangeInCore(dft.rks.RKS):  # type: ignore[misc]
        """Caches the long-range integrals, which PySCF recomputes in each iteration (half of the time)."""

        _keys: ClassVar = {"_long_range"}
        _long_range: Any = None

        def reset(self, mol: Any = None) -> Any:
            self._long_range = None
            return super().reset(mol)

        def get_jk(
            self,
            mol: Any = None,
            dm: Any = None,
            hermi: int = 1,
            with_j: bool = True,
            with_k: bool = True,
            omega: float | None = None,
        ) -> Any:
            if not omega or (mol is not None and mol is not self.mol):
                return super().get_jk(mol, dm, hermi, with_j, with_k, omega)
            if self._long_range is None:
                with self.mol.with_range_coulomb(omega):
                    self._long_range = self.mol.intor("int2e", aosym="s8")
            dm = self.make_rdm1() if dm is None else dm
            return hf.dot_eri_dm(self._long_range, dm, hermi, with_j, with_k)

    # More threads would change the last bits of a sum; the generator runs one process per core instead.
    lib.num_threads(1)
    molecule = gto.M(
        atom=list(zip(symbols, coordinates.tolist(), strict=True)),
        basis=BASIS,
        cart=True,
        unit="Angstrom",
        verbose=0,
    )
    mean_field = LongRangeInCore(molecule)
    mean_field.xc = FUNCTIONAL
    mean_field.grids.level = GRID_LEVEL
    mean_field.conv_tol = SCF_TOLERANCE
    mean_field.max_cycle = 100
    return mean_field


def single_point(
    symbols: tuple[str, ...], coordinates: FloatArray, guess: FloatArray | None = None
) -> SinglePoint:
    """Compute the energy of one structure.

    Parameters
    ----------
    symbols : Na chemical symbols
    coordinates : (Na, 3) array, Å
    guess : density matrix to start from, of the same molecule in a nearby structure
    """
    mean_field = _mean_field(symbols, coordinates)
    mean_field.kernel(dm0=guess)
    return SinglePoint(
        float(mean_field.e_tot), bool(mean_field.converged), np.asarray(mean_field.make_rdm1())
    )


def initial_geometry(smiles: str) -> tuple[tuple[str, ...], FloatArray]:
    """Return symbols and a force-field geometry, (Na, 3) Å, of a molecule with its hydrogens."""
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    # The seed of the embedding need not be a setting: the geometry is optimized afterwards.
    if rdDistGeom.EmbedMolecule(molecule, randomSeed=7) != 0:
        raise ValueError(f"no three-dimensional geometry could be embedded for {smiles}")
    rdForceFieldHelpers.MMFFOptimizeMolecule(molecule)
    symbols = tuple(atom.GetSymbol() for atom in molecule.GetAtoms())
    return symbols, np.asarray(molecule.GetConformer().GetPositions(), dtype=np.float64)


def optimized_modes(symbols: tuple[str, ...], coordinates: FloatArray) -> NormalModes:
    """Optimize a geometry and compute its vibrations from the analytic Hessian; coordinates (Na, 3) in Å."""
    from pyscf.geomopt.geometric_solver import optimize

    start = _mean_field(symbols, coordinates)
    start.kernel()
    # geomeTRIC prints its log and writes scratch files beside its prefix; both are discarded.
    with (
        tempfile.TemporaryDirectory() as scratch,
        contextlib.chdir(scratch),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        molecule = optimize(start, maxsteps=200, prefix=str(Path(scratch) / "opt"))
    equilibrium = np.asarray(molecule.atom_coords(unit="Angstrom"))
    final = _mean_field(symbols, equilibrium)
    final.kernel()
    if not final.converged:
        raise ValueError(f"the SCF of the optimized {''.join(symbols)} did not converge")
    hessian = np.asarray(final.Hessian().kernel()).transpose(0, 2, 1, 3).reshape(3 * len(symbols), -1)
    return normal_modes(equilibrium, np.asarray(molecule.atom_mass_list()), hessian)
