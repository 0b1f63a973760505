from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from trainer.config import AEVConfig, RunConfig, load_config
from trainer.data.dataset import Dataset, Molecule
from trainer.errors import ConfigError, DataError
from trainer.features.aev import (
    AEVComputer,
    MoleculeFeatures,
    aev_length,
    columns_of_set,
    make_aev_computer,
    refuse_other_elements,
)

CPU = torch.device("cpu")
ETHANOL_AND_WATER = (8, 6, 6, 1, 1, 1, 1, 1, 1, 8, 1, 1)


def molecule(numbers: tuple[int, ...], structures: int = 5) -> Molecule:
    """Atoms on a distorted grid: some pairs lie beyond either cutoff."""
    grid = np.array([(i % 2, i // 2 % 2, i // 4) for i in range(len(numbers))]) * 1.4
    noise = np.random.default_rng(7).normal(scale=0.2, size=(structures, len(numbers), 3))
    return Molecule(
        name="molecule",
        smiles="",
        atomic_numbers=np.array(numbers, dtype=np.uint8),
        coordinates=(grid + noise).astype(np.float32),
        energies=np.zeros(structures),
    )


def torchani_aevs(structures: Molecule) -> npt.NDArray[np.float32]:
    """(Nc, Na, 384) from torchani's own ANI-1x computer, in the file's order of the atoms."""
    species = torch.tensor([[(1, 6, 7, 8).index(n) for n in structures.atomic_numbers]])
    coordinates = torch.from_numpy(structures.coordinates)
    aevs: torch.Tensor = AEVComputer.like_1x()(species.repeat(len(coordinates), 1), coordinates)
    return aevs.numpy()


def test_constants_are_those_of_ani1x() -> None:
    ours, theirs = make_aev_computer(AEVConfig()).state_dict(), AEVComputer.like_1x().state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6)
    assert aev_length(AEVConfig()) == 384


def test_length_follows_the_settings() -> None:
    config = AEVConfig(
        elements=("H", "C", "O"), radial_shifts=(0.9, 2.0), angular_shifts=(1.0,), angle_sections=3
    )
    computed = MoleculeFeatures(config, CPU).compute(molecule((8, 1, 1)), slice(None))
    assert computed.shape[-1] == aev_length(config) == 3 * 2 + 6 * 3


def test_atoms_are_sorted_by_element_in_the_order_of_the_networks() -> None:
    structures = molecule(ETHANOL_AND_WATER)
    computed = MoleculeFeatures(AEVConfig(), CPU).compute(structures, np.array([3, 1]))
    # H, then C, then O, those of one element as in the file.
    order = [3, 4, 5, 6, 7, 8, 10, 11, 1, 2, 0, 9]
    np.testing.assert_allclose(computed, torchani_aevs(structures)[[3, 1]][:, order], atol=1e-5)


@pytest.mark.parametrize("numbers", [(8,), (1, 1), (8, 1, 1)])
def test_small_molecules_have_features(numbers: tuple[int, ...]) -> None:
    structures = molecule(numbers)
    order = np.argsort(structures.atomic_numbers, kind="stable")
    computed = MoleculeFeatures(AEVConfig(), CPU).compute(structures, slice(None))
    np.testing.assert_allclose(computed, torchani_aevs(structures)[:, order], atol=1e-5)


@pytest.mark.parametrize("numbers", [(8,), (8, 1, 1), ETHANOL_AND_WATER, (1, 6, 7, 8, 1)])
def test_compact_features_are_the_columns_of_the_elements(numbers: tuple[int, ...]) -> None:
    structures, features = molecule(numbers), MoleculeFeatures(AEVConfig(), CPU)
    kept = columns_of_set(AEVConfig(), [(1, 6, 7, 8).index(n) for n in set(numbers)])
    full, compact = (f(structures, slice(None)) for f in (features.compute, features.compact))
    assert torch.equal(full[..., kept], compact)
    assert torch.count_nonzero(full) == torch.count_nonzero(compact)


def test_features_are_those_of_torchani_to_the_precision_of_float32() -> None:
    structures = molecule(ETHANOL_AND_WATER, structures=200)
    order = np.argsort(structures.atomic_numbers, kind="stable")
    species = torch.tensor([(1, 6, 7, 8).index(n) for n in structures.atomic_numbers[order]])
    computer = make_aev_computer(AEVConfig()).double()
    coordinates = torch.from_numpy(structures.coordinates[:, order].astype(np.float64, order="C"))
    exact = computer(species.repeat(200, 1), coordinates)
    computed = MoleculeFeatures(AEVConfig(), CPU).compute(structures, slice(None))
    torch.testing.assert_close(computed.double(), exact, rtol=1e-5, atol=5e-6)


def test_atoms_in_the_same_place_have_the_features_that_torchani_gives_them() -> None:
    structures = molecule((6, 1, 1, 1))
    structures.coordinates[:, 1] = structures.coordinates[:, 2]
    computed = MoleculeFeatures(AEVConfig(), CPU).compute(structures, slice(None))
    np.testing.assert_allclose(
        computed,
        torchani_aevs(structures)[:, np.argsort(structures.atomic_numbers, kind="stable")],
        atol=1e-5,
    )


def test_features_do_not_depend_on_what_is_computed_with_them_or_on_threads() -> None:
    structures, random = molecule(ETHANOL_AND_WATER, structures=150), np.random.default_rng(2)
    features = MoleculeFeatures(AEVConfig(), CPU)
    together = features.compact(structures, slice(None))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            assert torch.equal(features.compact(structures, slice(None)), together)
            for size in (1, 2, 7, 31, 100):
                some = random.choice(150, size, replace=False)
                assert torch.equal(features.compact(structures, some), together[some])
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)


def test_chunks_bound_the_memory_however_large_the_molecule() -> None:
    small, large = molecule((8, 1, 1)), molecule((6,) * 120, structures=1)
    assert MoleculeFeatures.chunk(small) > 1000
    assert MoleculeFeatures.chunk(large) == 1


def test_other_elements_are_named() -> None:
    dataset = Dataset((molecule((6, 1, 17)), molecule((9, 1))))
    with pytest.raises(
        DataError, match=r"holds F, Cl, but the features are for H, C, N, O only: .*features.aev.elements"
    ):
        refuse_other_elements(dataset, AEVConfig())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"elements": ["H", "Xx"]}, "Xx is not the symbol"),
        ({"elements": ["H", "H"]}, "each element once"),
        ({"angular_cutoff": 5.2}, "angular_cutoff must be below radial_cutoff = 5.2"),
    ],
)
def test_impossible_constants_are_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"study.yaml: features.aev: .*{message}"):
        load_config(RunConfig, {"features": {"aev": setting}}, "study.yaml")
