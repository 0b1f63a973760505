from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.config import AEVConfig
from trainer.data.dataset import Dataset, Molecule
from trainer.features.aev import AEVComputer, columns
from trainer.features.compositions import find_compositions

CONFIG = AEVConfig()


def molecule(*numbers: int) -> Molecule:
    noise = np.random.default_rng(3).normal(size=(4, len(numbers), 3))
    return Molecule("", "", np.array(numbers, dtype=np.uint8), noise.astype(np.float32), np.zeros(4))


def test_isomers_are_of_one_composition() -> None:
    found = find_compositions(
        Dataset((molecule(8, 1, 1), molecule(6, 1), molecule(1, 8, 1), molecule(7))), CONFIG
    )
    assert [(some.elements, some.counts) for some in found.each] == [
        ((2,), (1,)),
        ((0, 1), (1, 1)),
        ((0, 3), (2, 1)),
    ]
    assert found.of_molecule.tolist() == [2, 1, 2, 0]


@pytest.mark.parametrize(
    "numbers", [(8,), (1, 1), (1, 1, 1), (8, 1, 1), (6, 6, 1, 8, 1), (7, 6, 8), (1, 6, 7, 8), (8, 1, 8, 8)]
)
def test_only_columns_that_are_zero_are_left_out(numbers: tuple[int, ...]) -> None:
    structures = molecule(*numbers)
    (some,) = find_compositions(Dataset((structures,)), CONFIG).each
    species = torch.tensor([(1, 6, 7, 8).index(n) for n in numbers]).repeat(4, 1)
    aevs = AEVComputer.like_1x()(species, torch.from_numpy(structures.coordinates))
    for element, count, kept in zip(some.elements, some.counts, some.columns, strict=True):
        of_element = aevs[species == element]
        assert len(of_element) == 4 * count
        assert not of_element[:, np.setdiff1d(np.arange(384), kept)].any()
        # What is kept is a whole block for each element, and each pair of them, that is near in all four.
        assert (of_element[:, kept].view(-1, 16).sum(1) if kept.size else torch.ones(1)).any()


@pytest.mark.parametrize(
    ("numbers", "kept"),
    [
        # The only oxygen of water sees two hydrogens; each of these sees the other one and the oxygen.
        ((8, 1, 1), {0: 16 + 16 + 32, 3: 16 + 32}),
        ((1, 1), {0: 16}),
        ((8,), {3: 0}),
        ((6, 1, 1, 1, 1), {0: 32 + 32 + 32, 1: 16 + 32}),
    ],
)
def test_an_atom_is_not_its_own_neighbor(numbers: tuple[int, ...], kept: dict[int, int]) -> None:
    (some,) = find_compositions(Dataset((molecule(*numbers),)), CONFIG).each
    assert {e: len(columns) for e, columns in zip(some.elements, some.columns, strict=True)} == kept


def test_compositions_with_the_same_columns_are_of_a_kind() -> None:
    methane, ethane, propane, butane = ((6,) * n + (1,) * (2 * n + 2) for n in (1, 2, 3, 4))
    found = find_compositions(
        Dataset(tuple(molecule(*numbers) for numbers in (methane, ethane, propane, butane))), CONFIG
    )
    kinds = [some.kind for some in found.each]
    # From the third carbon on an atom can see two others.
    assert kinds[2] == kinds[3]
    assert len(set(kinds)) == 3


def test_two_neighbors_of_each_element_reach_all_columns() -> None:
    assert columns(CONFIG, (2, 2, 2, 2)).tolist() == list(range(384))
