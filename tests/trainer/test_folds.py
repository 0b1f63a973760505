"""Folds of what is not test: they never hold a test structure, and keep together what they should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import FoldConfig, SplitConfig, load_config
from trainer.data.dataset import Dataset, Molecule
from trainer.data.splits import TEST, TRAINING, VALIDATION, Split, split_dataset, split_fold
from trainer.errors import ConfigError, DataError


def dataset(structures: list[int]) -> Dataset:
    """Molecules of so many structures; the last one is the first one again, in another group."""
    names = [f"m{number}" for number in range(len(structures))]
    return Dataset(
        tuple(
            Molecule(
                name=name,
                smiles=name if number < len(names) - 1 else names[0],
                atomic_numbers=np.array([8, 1, 1], np.uint8),
                coordinates=np.zeros((count, 3, 3), np.float32),
                energies=np.zeros(count),
            )
            for number, (name, count) in enumerate(zip(names, structures, strict=True))
        )
    )


def all_folds(data: Dataset, split: Split, by: str, folds: int, seed: int = 0) -> list[Split]:
    configs = [
        load_config(FoldConfig, {"by": by, "folds": folds, "fold": fold, "seed": seed}, "test")
        for fold in range(folds)
    ]
    return [split_fold(data, split, config) for config in configs]


@given(
    structures=st.lists(st.integers(2, 9), min_size=6, max_size=12),
    by=st.sampled_from(["structure", "molecule"]),
    split_by=st.sampled_from(["structure", "molecule"]),
    folds=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_the_test_set_is_in_no_fold_and_all_else_validates_once(
    structures: list[int], by: str, split_by: str, folds: int, seed: int
) -> None:
    data = dataset(structures)
    split = split_dataset(data, load_config(SplitConfig, {"by": split_by, "seed": seed}, "test"))
    parts = [fold.labels for fold in all_folds(data, split, by, folds, seed)]
    for fold in parts:
        assert np.array_equal(fold == TEST, split.labels == TEST)
        assert (fold == TRAINING).any()
    validated = np.sum([fold == VALIDATION for fold in parts], axis=0)
    assert np.array_equal(validated, (split.labels != TEST).astype(int))


@given(structures=st.lists(st.integers(2, 9), min_size=6, max_size=12), folds=st.integers(2, 4))
def test_folds_of_molecules_keep_each_together(structures: list[int], folds: int) -> None:
    data = dataset(structures)
    split = split_dataset(data, SplitConfig(seed=3))
    identities = np.array(data.identities())[data.molecule_of(np.arange(data.structures))]
    for fold in all_folds(data, split, "molecule", folds):
        assert not set(identities[fold.validation]) & set(identities[fold.train])


def test_folds_of_structures_are_equally_large_and_follow_from_the_seed() -> None:
    data = dataset([20] * 6)
    split = split_dataset(data, SplitConfig())
    first, again, other = (all_folds(data, split, "structure", 5, seed) for seed in (0, 0, 1))
    sizes = [len(fold.validation) for fold in first]
    assert max(sizes) - min(sizes) <= 1
    assert [fold.fingerprint for fold in first] == [fold.fingerprint for fold in again]
    assert [fold.fingerprint for fold in first] != [fold.fingerprint for fold in other]


def test_too_few_molecules_and_no_such_fold() -> None:
    data = dataset([5, 5, 5])
    split = split_dataset(data, SplitConfig())
    with pytest.raises(DataError, match="2 molecules are not in the test set: too few for 3 folds"):
        all_folds(data, split, "molecule", 3)
    with pytest.raises(ConfigError, match=r"fold.fold must be below fold.folds = 2"):
        load_config(FoldConfig, {"by": "molecule", "folds": 2, "fold": 2}, "test")
