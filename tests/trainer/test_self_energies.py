from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from trainer.config import SplitConfig
from trainer.data.dataset import Dataset, Molecule
from trainer.data.elements import ATOMIC_NUMBERS
from trainer.data.self_energies import fit_self_energies, subtract
from trainer.data.splits import Split, split_dataset
from trainer.errors import DataError

ELEMENTS = ("H", "C", "N", "O")
TRUE = {"H": -0.5, "C": -37.8, "N": -54.6, "O": -75.0}
MOLECULES = ("CHHHH", "OHH", "NHHH", "COHH", "CCHH", "CNH")


def molecule(symbols: str, energies: npt.ArrayLike) -> Molecule:
    values = np.asarray(energies, dtype=np.float64)
    return Molecule(
        name=symbols,
        smiles=symbols,
        atomic_numbers=np.array([ATOMIC_NUMBERS[s] for s in symbols], dtype=np.uint8),
        coordinates=np.zeros((len(values), len(symbols), 3), dtype=np.float32),
        energies=values,
    )


def atoms_alone(symbols: str) -> float:
    return sum(TRUE[s] for s in symbols)


def noisy(seed: int, structures: int = 20) -> Dataset:
    rng = np.random.default_rng(seed)
    return Dataset(
        tuple(molecule(s, atoms_alone(s) - rng.uniform(0, 0.3, size=structures)) for s in MOLECULES)
    )


def all_training(data: Dataset) -> Split:
    return Split(np.zeros(data.structures, dtype=np.uint8))


def test_energies_of_lone_atoms_are_found_again() -> None:
    data = Dataset(tuple(molecule(s, [atoms_alone(s)] * (i + 1)) for i, s in enumerate(MOLECULES)))
    fitted = fit_self_energies(data, all_training(data), ELEMENTS)
    assert fitted == pytest.approx(TRUE, abs=1e-9)
    np.testing.assert_allclose(subtract(data, fitted), 0.0, atol=1e-9)


def test_it_is_the_least_squares_solution_over_structures() -> None:
    """Molecules with many structures weigh more: as one row a structure would make it."""
    rng = np.random.default_rng(0)
    data = Dataset(
        tuple(
            molecule(s, atoms_alone(s) - rng.uniform(0, 0.3, size=n))
            for s, n in zip(MOLECULES, [40, 3, 1, 9, 2, 30], strict=True)
        )
    )
    split = split_dataset(data, SplitConfig(seed=5))
    rows = [[m.composition.get(e, 0) for e in ELEMENTS] for m in data.molecules for _ in m.energies]
    expected = np.linalg.lstsq(np.array(rows)[split.train], data.energies()[split.train], rcond=None)[0]
    fitted = fit_self_energies(data, split, ELEMENTS)
    assert list(fitted) == list(ELEMENTS)
    np.testing.assert_allclose(list(fitted.values()), expected, atol=1e-9)


@given(st.integers(0, 1000), st.sampled_from(["structure", "molecule"]), st.floats(-1e6, 1e6))
def test_no_energy_outside_the_training_set_is_looked_at(seed: int, by: str, value: float) -> None:
    data = noisy(0)
    split = split_dataset(data, SplitConfig(by=by, fractions=(0.6, 0.2, 0.2), seed=seed))
    try:
        before = fit_self_energies(data, split, ELEMENTS)
    except DataError:  # by molecule, one element may be outside the training part
        reject()
    energies = data.energies()
    energies[split.validation] = value
    energies[split.test] = -value
    pieces = np.split(energies, data.offsets[1:-1])
    changed = Dataset(tuple(molecule(m.name, e) for m, e in zip(data.molecules, pieces, strict=True)))
    assert fit_self_energies(changed, split, ELEMENTS) == before


def test_a_training_energy_does_matter() -> None:
    data = noisy(0)
    split = split_dataset(data, SplitConfig())
    before = fit_self_energies(data, split, ELEMENTS)
    data.molecules[0].energies[:] += 1.0
    assert fit_self_energies(data, split, ELEMENTS) != before


def test_one_molecule_has_the_solution_of_minimum_norm() -> None:
    data = Dataset((molecule("OHH", [-76.0, -76.2]),))
    fitted = fit_self_energies(data, all_training(data), ELEMENTS)
    assert fitted == pytest.approx({"H": -76.1 * 2 / 5, "O": -76.1 / 5})
    np.testing.assert_allclose(subtract(data, fitted), [0.1, -0.1], atol=1e-12)


def test_an_element_outside_the_training_set_only() -> None:
    data = Dataset((molecule("OHH", [-76.0] * 3), molecule("NHHH", [-56.0] * 2)))
    split = Split(np.array([0, 0, 1, 1, 2], dtype=np.uint8))
    with pytest.raises(DataError, match="N occurs in the validation or test set but not in the training set"):
        fit_self_energies(data, split, ELEMENTS)


def test_an_element_that_there_are_no_features_for() -> None:
    data = Dataset((molecule("OHH", [-76.0] * 3), molecule("SHH", [-399.0] * 2)))
    with pytest.raises(DataError, match="the data holds S, but the features are for H, C, N, O only"):
        fit_self_energies(data, all_training(data), ELEMENTS)


def test_given_self_energies_are_used_as_they_are() -> None:
    data = Dataset((molecule("OHH", [-76.5]), molecule("CHHHH", [-40.25, -40.0])))
    np.testing.assert_array_equal(subtract(data, {"H": -0.5, "C": -38.0, "O": -75.0}), [-0.5, -0.25, 0.0])


def test_given_self_energies_that_lack_an_element() -> None:
    data = Dataset((molecule("OHH", [-76.5]),))
    with pytest.raises(DataError, match=r"data\.self_energies lacks O"):
        subtract(data, {"H": -0.5})


def test_energies_keep_their_precision() -> None:
    """At -150 hartree a float32 has lost 0.01 kcal/mol."""
    data = Dataset((molecule("OO", [-150.000_000_001, -150.000_000_002]),))
    left = subtract(data, {"O": -75.0})
    assert left.dtype == np.float64
    np.testing.assert_allclose(left, [-1e-9, -2e-9], atol=1e-13)
