from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import SplitConfig
from trainer.data.dataset import Dataset, Molecule
from trainer.data.splits import Split, share_training, split_dataset
from trainer.errors import DataError

FRACTIONS = [(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.6, 0.4, 0.0), (0.34, 0.33, 0.33)]


def molecule(name: str, structures: int, smiles: str = "") -> Molecule:
    return Molecule(
        name=name,
        smiles=smiles,
        atomic_numbers=np.array([8, 1, 1], dtype=np.uint8),
        coordinates=np.zeros((structures, 3, 3), dtype=np.float32),
        energies=np.zeros(structures),
    )


def dataset(*structures: int) -> Dataset:
    return Dataset(tuple(molecule(f"m{i}", n) for i, n in enumerate(structures)), told_apart_by="names")


sizes = st.lists(st.integers(1, 12), min_size=12, max_size=30)
seeds = st.integers(0, 2**32 - 1)
fractions = st.sampled_from(FRACTIONS)
ways = st.sampled_from(["structure", "molecule"])


def parts(split: Split) -> list[set[int]]:
    return [set(indices.tolist()) for indices in (split.train, split.validation, split.test)]


@given(sizes, ways, fractions, seeds, st.sampled_from([None, 2, 5]))
def test_subsets_are_disjoint_complete_and_not_empty(
    sizes: list[int], by: str, fractions: tuple[float, float, float], seed: int, folds: int | None
) -> None:
    data = dataset(*sizes)
    split = split_dataset(data, SplitConfig(by=by, fractions=fractions, seed=seed, folds=folds))
    found = parts(split)
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(found, 2))
    assert set.union(*found) == set(range(data.structures))
    assert found[0]
    assert found[1]
    assert bool(found[2]) == (fractions[2] > 0)


@given(sizes, fractions, seeds)
def test_sizes_by_structure_are_the_fractions(
    sizes: list[int], fractions: tuple[float, float, float], seed: int
) -> None:
    data = dataset(*sizes)
    split = split_dataset(data, SplitConfig(fractions=fractions, seed=seed))
    for part, fraction in zip(parts(split), fractions, strict=True):
        assert abs(len(part) - fraction * data.structures) <= 1 + 1e-9


@given(sizes, fractions, seeds, st.sampled_from([None, 3]))
def test_by_molecule_no_molecule_is_in_two_subsets(
    sizes: list[int], fractions: tuple[float, float, float], seed: int, folds: int | None
) -> None:
    data = dataset(*sizes)
    split = split_dataset(data, SplitConfig(by="molecule", fractions=fractions, seed=seed, folds=folds))
    molecules = [set(data.molecule_of(np.array(sorted(p), dtype=np.int64)).tolist()) for p in parts(split)]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(molecules, 2))
    if folds is None:
        for part, fraction in zip(molecules, fractions, strict=True):
            assert abs(len(part) - fraction * len(sizes)) <= 1 + 1e-9


@given(st.lists(st.sampled_from("ABCDEFGHIJKL"), min_size=24, max_size=40), st.booleans(), seeds)
def test_groups_of_one_molecule_stay_together(labels: list[str], with_smiles: bool, seed: int) -> None:
    """A molecule may be spread over several groups or files: its SMILES, or else its name, tells."""
    labels = [*labels, *"ABCDEFGHIJKL"]
    groups = [
        molecule(f"group {i}", 3, smiles=label) if with_smiles else molecule(label, 3)
        for i, label in enumerate(labels)
    ]
    split = split_dataset(
        Dataset(tuple(groups), told_apart_by="names"), SplitConfig(by="molecule", seed=seed)
    )
    of_label: dict[str, set[int]] = {}
    for label, values in zip(labels, split.labels.reshape(-1, 3), strict=True):
        of_label.setdefault(label, set()).update(values.tolist())
    assert all(len(values) == 1 for values in of_label.values())


def test_where_only_some_have_a_smiles_the_formula_tells() -> None:
    """Water with a SMILES and water under its formula are not known to be two molecules."""
    data = Dataset((molecule("gdb11_s01-2", 3, smiles="[H]O[H]"), molecule("H2O", 3)))
    assert len(set(data.identities())) == 1


@given(sizes, ways, st.sampled_from([2, 3, 5]), seeds)
def test_every_structure_validates_once_over_the_folds(
    sizes: list[int], by: str, folds: int, seed: int
) -> None:
    data = dataset(*sizes)
    splits = [
        split_dataset(data, SplitConfig(by=by, folds=folds, fold=fold, seed=seed)) for fold in range(folds)
    ]
    for split in splits:
        np.testing.assert_array_equal(split.test, splits[0].test)
    validated = np.concatenate([split.validation for split in splits])
    assert len(splits[0].test) > 0
    assert sorted([*validated, *splits[0].test]) == list(range(data.structures))


@given(sizes, ways, seeds)
def test_one_fixed_validation_set_and_folds_share_the_test_set(sizes: list[int], by: str, seed: int) -> None:
    data = dataset(*sizes)
    fixed = split_dataset(data, SplitConfig(by=by, seed=seed))
    fold = split_dataset(data, SplitConfig(by=by, seed=seed, folds=3))
    np.testing.assert_array_equal(fixed.test, fold.test)


@given(ways, seeds)
def test_the_seed_decides(by: str, seed: int) -> None:
    data = dataset(*[4] * 60)
    one = split_dataset(data, SplitConfig(by=by, seed=seed))
    again = split_dataset(data, SplitConfig(by=by, seed=seed))
    other = split_dataset(data, SplitConfig(by=by, seed=(seed + 1) % 2**32))
    np.testing.assert_array_equal(one.labels, again.labels)
    assert one.fingerprint == again.fingerprint
    assert one.fingerprint != other.fingerprint


def test_a_seed_means_the_same_split_for_ever() -> None:
    """A study that goes on with another version of NumPy must not meet another split."""
    split = split_dataset(dataset(10), SplitConfig(fractions=(0.6, 0.2, 0.2), seed=7))
    assert split.labels.tolist() == [0, 0, 0, 2, 1, 0, 2, 0, 0, 1]


@pytest.mark.parametrize(
    ("sizes", "config", "what"),
    [
        ((1,), SplitConfig(), "structures (1)"),
        ((2,), SplitConfig(), "structures (2)"),
        ((100, 100), SplitConfig(by="molecule"), "molecules (2)"),
        ((1,), SplitConfig(fractions=(0.5, 0.5, 0.0)), "structures (1)"),
        ((3,), SplitConfig(folds=5), "5 folds"),
        ((100, 100, 100), SplitConfig(by="molecule", folds=3), "3 folds"),
    ],
)
def test_too_little_data_for_the_subsets(sizes: tuple[int, ...], config: SplitConfig, what: str) -> None:
    with pytest.raises(DataError, match="too few") as caught:
        split_dataset(dataset(*sizes), config)
    assert what in str(caught.value)


def test_three_structures_are_enough_for_three_subsets() -> None:
    split = split_dataset(dataset(3), SplitConfig())
    assert [len(p) for p in parts(split)] == [1, 1, 1]


@given(sizes, ways, seeds, st.sampled_from([None, 3]))
def test_shares_of_the_training_set_are_nested_and_keep_molecules_whole(
    sizes: list[int], by: str, seed: int, folds: int | None
) -> None:
    data, config = dataset(*sizes), SplitConfig(by=by, seed=seed, folds=folds)
    split = split_dataset(data, config)
    trained = [split]
    for share in (0.5, 0.25, 0.125):
        trained.append(share_training(data, split, config, share))
        train, validation, test = parts(trained[-1])
        assert train < parts(trained[-2])[0]
        assert (validation, test) == tuple(parts(split)[1:])
        if by == "structure":
            assert len(train) == round(share * len(split.train))
        else:
            kept = set(data.molecule_of(trained[-1].train).tolist())
            assert train == {s for s in split.train.tolist() if data.molecule_of(np.array([s]))[0] in kept}
            assert len(kept) == round(share * len(set(data.molecule_of(split.train).tolist())))
    assert (share_training(data, split, config, 1.0).labels == split.labels).all()
    with pytest.raises(DataError, match="to train on is none"):
        share_training(data, split, config, 0.001)
