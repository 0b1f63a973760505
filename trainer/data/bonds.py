"""Assignment of structures to molecules by their bonds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from trainer.data.dataset import Molecule

#: Two atoms are bonded up to this many times the sum of their radii.
BONDED: Final = 1.25

#: Structures of one molecule may differ by this many broken and formed bonds.
DISTORTED: Final = 2

#: Covalent radii, Å, from hydrogen on: Cordero et al., Dalton Trans. 2008, 2832. Elements without one: 1.6.
_RADII = """
    .31 .28 1.28 .96 .84 .76 .71 .66 .57 .58 1.66 1.41 1.21 1.11 1.07 1.05 1.02 1.06 2.03 1.76 1.70 1.60
    1.53 1.39 1.39 1.32 1.26 1.24 1.32 1.22 1.22 1.20 1.19 1.20 1.20 1.16 2.20 1.95 1.90 1.75 1.64 1.54 1.47
    1.46 1.42 1.39 1.45 1.44 1.42 1.39 1.39 1.38 1.39 1.40 2.44 2.15 2.07 2.04 2.03 2.01 1.99 1.98 1.98 1.96
    1.94 1.92 1.92 1.89 1.90 1.87 1.87 1.75 1.70 1.62 1.51 1.44 1.41 1.36 1.36 1.32 1.45 1.46 1.48 1.40 1.50
    1.50 2.60 2.21 2.15 2.06 2.00 1.96 1.90 1.87 1.80 1.69
"""
RADII: Final = np.full(256, 1.6)
RADII[1 : len(_RADII.split()) + 1] = [float(radius) for radius in _RADII.split()]

#: Limit of the number of molecules whose graphs are in memory at once, times the squared number of atoms.
NUMBERS: Final = 2**20


def bond_graphs(molecules: Sequence[Molecule]) -> tuple[str, ...]:
    """Return a name for the bond graph of each molecule, (M,), which molecules with the same bonds share.

    The bonds are those of the structure with the lowest energy. Graphs are distinguished by the
    Weisfeiler-Lehman test (Shervashidze et al., J. Mach. Learn. Res. 12, 2539 (2011)). The few graphs that it
    cannot distinguish, and stereoisomers, count as one molecule, which is then in one subset of a split.
    """
    names = [""] * len(molecules)
    by_atoms: dict[int, list[int]] = {}
    for number, molecule in enumerate(molecules):
        by_atoms.setdefault(molecule.atoms, []).append(number)
    for atoms, numbers in by_atoms.items():
        step = max(1, NUMBERS // atoms**2)
        for begin in range(0, len(numbers), step):
            some = numbers[begin : begin + step]
            lowest = [molecules[n].coordinates[molecules[n].energies.argmin()] for n in some]
            kinds = np.array([molecules[n].atomic_numbers for n in some])
            for n, graph in zip(some, _graphs(np.array(lowest, np.float64), kinds).tolist(), strict=True):
                names[n] = f"{molecules[n].formula} {graph:016x}"
    return tuple(names)


def _graphs(coordinates: npt.NDArray[np.float64], numbers: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return a number for each bond graph, (n,), from coordinates (n, Na, 3) in Å and numbers (n, Na)."""
    apart = np.linalg.norm(coordinates[:, :, None] - coordinates[:, None], axis=3)
    radii = RADII[numbers]
    bonded = (apart < BONDED * (radii[:, :, None] + radii[:, None])) & ~np.eye(numbers.shape[1], dtype=bool)
    labels = _mixed(numbers.astype(np.uint64))
    for _ in range(numbers.shape[1]):
        neighbors = np.where(bonded, _mixed(labels)[:, None, :], np.uint64(0)).sum(axis=2, dtype=np.uint64)
        labels = _mixed(labels * np.uint64(3) + neighbors)
    graphs: npt.NDArray[np.uint64] = _mixed(labels).sum(axis=1, dtype=np.uint64)
    return graphs


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply SplitMix64 (Steele et al., OOPSLA 2014): sums of results differ where sets of values differ."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def same_bonds(coordinates: npt.NDArray[np.float32], numbers: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the molecule, (n,) numbered from 0, of structures with the same atoms in the same order.

    Structures belong to one molecule if their bonds are the same. A structure with rarer bonds belongs to the
    most common molecule from which it differs by at most ``DISTORTED`` bonds, or only by broken or only by
    formed bonds. So a bond that a vibration stretches does not make a separate molecule. Isomers that are
    this similar count as one.

    Parameters
    ----------
    coordinates : (n, Na, 3) Å
    """
    one, other = np.triu_indices(len(numbers), k=1)
    longest = (BONDED * (RADII[numbers[one]] + RADII[numbers[other]])) ** 2
    bits = np.empty((len(coordinates), -(-len(one) // 8)), np.uint8)
    step = max(1, NUMBERS // max(1, len(one)))
    for begin in range(0, len(coordinates), step):
        some = slice(begin, begin + step)
        apart = coordinates[some, one] - coordinates[some, other]
        bits[some] = np.packbits(np.einsum("npi,npi->np", apart, apart) < longest, axis=1)
    kinds, kind, counts = np.unique(bits, axis=0, return_inverse=True, return_counts=True)
    commonest = np.argsort(-counts, kind="stable")
    known, owner = np.empty_like(kinds), np.empty(len(kinds), np.int64)
    molecules = 0
    for number in commonest.tolist():
        bonds, others = kinds[number], known[:molecules]
        broken = np.bitwise_count(others & ~bonds).sum(axis=1)
        formed = np.bitwise_count(bonds & ~others).sum(axis=1)
        near = np.flatnonzero((broken == 0) | (formed == 0) | (broken + formed <= DISTORTED))
        if not len(near):
            known[molecules] = bonds
            owner[number], molecules = molecules, molecules + 1
        else:
            owner[number] = near[0]
    found: npt.NDArray[np.int64] = owner[kind.ravel()]
    return found
