"""What tells molecules apart where there is no SMILES: their bonds, and not what a group is called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainer.config import SplitConfig
from trainer.data.bonds import RADII, bond_graphs
from trainer.data.dataset import Dataset, Molecule
from trainer.data.elements import ATOMIC_NUMBERS
from trainer.data.readers import read_dataset
from trainer.data.shipped import SAMPLE
from trainer.data.splits import split_dataset

REAL = Path(__file__).parents[3] / "shared" / "data" / "ani_gdb_s01.h5"

#: Two isomers of C2H6O, and what is neither.
ETHANOL = (
    "CCOHHHHHH",
    [
        (1.17, -0.40, 0.0), (0.0, 0.56, 0.0), (-1.19, -0.21, 0.0), (2.11, 0.17, 0.0), (1.13, -1.04, 0.88),
        (1.13, -1.04, -0.88), (0.05, 1.20, 0.89), (0.05, 1.20, -0.89), (-1.95, 0.38, 0.0),
    ],
)  # fmt: skip
ETHER = (
    "OCCHHHHHH",
    [
        (0.0, 0.59, 0.0), (1.17, -0.20, 0.0), (-1.17, -0.20, 0.0), (2.02, 0.48, 0.0), (1.21, -0.83, 0.89),
        (1.21, -0.83, -0.89), (-2.02, 0.48, 0.0), (-1.21, -0.83, 0.89), (-1.21, -0.83, -0.89),
    ],
)  # fmt: skip


def molecule(
    kind: tuple[str, list[tuple[float, float, float]]],
    name: str,
    seed: int = 0,
    smiles: str = "",
    **more: bool,
) -> Molecule:
    """Three structures, the lowest of which is little distorted, with the atoms in an order of their own."""
    random = np.random.default_rng(seed)
    symbols, geometry = kind
    atoms = random.permutation(len(symbols))
    widths = np.array([0.4, 0.04, 0.4])
    coordinates = np.array(geometry) + widths[:, None, None] * random.normal(size=(3, len(symbols), 3))
    numbers = np.array([ATOMIC_NUMBERS[s] for s in symbols], np.uint8)
    energies = np.array([-154.5, -155.0, -154.6])
    return Molecule(name, smiles, numbers[atoms], coordinates[:, atoms].astype(np.float32), energies, **more)


def test_isomers_are_told_apart_whatever_their_groups_are_called() -> None:
    data = Dataset(
        tuple(
            molecule(kind, name, seed)
            for seed, (kind, name) in enumerate(
                [(ETHANOL, "a"), (ETHER, "a"), (ETHANOL, "b"), (ETHER, "c"), (ETHANOL, "d/e")]
            )
        )
    )
    one, other, *rest = data.identities()
    assert one != other
    assert rest == [one, other, one]
    assert one.startswith("C2H6O ")
    split = split_dataset(data, SplitConfig(by="molecule", fractions=(0.5, 0.5, 0.0)))
    parts = split.labels.reshape(5, 3)[:, 0].tolist()
    assert parts[0] == parts[2] == parts[4] != parts[1] == parts[3]


def test_a_smiles_tells_where_every_molecule_has_one() -> None:
    both = (molecule(ETHANOL, "a", smiles="CCO"), molecule(ETHANOL, "b", 1, smiles="OCC"))
    assert Dataset(both).identities() == ("CCO", "OCC")
    one, other = Dataset((both[0], molecule(ETHANOL, "b", 1))).identities()
    assert one == other != "CCO"


def test_a_group_of_all_isomers_is_one_with_each_of_them() -> None:
    data = Dataset((molecule(ETHANOL, "a"), molecule(ETHER, "b"), molecule(ETHANOL, "C2H6O", isomers=True)))
    assert data.identities() == ("C2H6O",) * 3


def test_studies_of_before_are_divided_by_names() -> None:
    some = (molecule(ETHANOL, "a"), molecule(ETHANOL, "b", 1))
    assert Dataset(some, told_apart_by="names").identities() == ("a", "b")
    mixed = (molecule(ETHANOL, "a", smiles="CCO"), molecule(ETHANOL, "b"))
    assert Dataset(mixed, told_apart_by="names").identities() == ("C2H6O", "C2H6O")


def test_bonds_and_smiles_of_the_shipped_data_agree() -> None:
    molecules = read_dataset([SAMPLE]).molecules
    graphs = bond_graphs(molecules)
    assert len(set(graphs)) == len({m.smiles for m in molecules}) == len(molecules)


@pytest.mark.skipif(not REAL.exists(), reason="the file of the ANI-1 release is not here")
def test_two_releases_of_one_molecule_are_in_one_subset() -> None:
    real = read_dataset([REAL]).molecules
    older = [
        Molecule(
            f"older-{m.formula}", "", m.atomic_numbers[::-1], m.coordinates[5:, ::-1] + 1, m.energies[5:]
        )
        for m in real
    ]
    identities = Dataset((*real, *older)).identities()
    assert identities[:3] == identities[3:]
    assert len(set(identities)) == 3


def test_radii_are_those_of_cordero() -> None:
    assert RADII[[1, 6, 7, 8, 16, 17, 96, 97]].tolist() == [0.31, 0.76, 0.71, 0.66, 1.05, 1.02, 1.69, 1.6]
