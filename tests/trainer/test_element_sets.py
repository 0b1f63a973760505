from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.config import AEVConfig
from trainer.data.dataset import Dataset, Molecule
from trainer.features.aev import AEVComputer, columns
from trainer.features.element_sets import find_element_sets

CONFIG = AEVConfig()


def molecule(*numbers: int) -> Molecule:
    noise = np.random.default_rng(3).normal(size=(4, len(numbers), 3))
    return Molecule("", "", np.array(numbers, dtype=np.uint8), noise.astype(np.float32), np.zeros(4))


def test_molecules_of_the_same_elements_are_of_one_set() -> None:
    sets = find_element_sets(
        Dataset((molecule(8, 1, 1), molecule(6, 1), molecule(1, 8), molecule(7))), CONFIG
    )
    assert [s.elements for s in sets.sets] == [(0, 1), (0, 3), (2,)]
    assert sets.of_molecule.tolist() == [1, 0, 1, 2]


@pytest.mark.parametrize("numbers", [(1, 1, 1), (8, 1, 1), (6, 6, 1, 8, 1), (7, 6, 8), (1, 6, 7, 8)])
def test_only_columns_that_are_zero_are_left_out(numbers: tuple[int, ...]) -> None:
    structures = molecule(*numbers)
    (some,) = find_element_sets(Dataset((structures,)), CONFIG).sets
    species = torch.tensor([(1, 6, 7, 8).index(n) for n in numbers]).repeat(4, 1)
    aevs = AEVComputer.like_1x()(species, torch.from_numpy(structures.coordinates)).flatten(0, 1)
    left_out = np.setdiff1d(np.arange(384), some.columns)
    assert not aevs[:, left_out].any()
    assert len(some.columns) == 16 * len(some.elements) + 16 * len(some.elements) * (len(some.elements) + 1)


def test_all_elements_have_all_columns() -> None:
    assert columns(CONFIG, (0, 1, 2, 3)).tolist() == list(range(384))
