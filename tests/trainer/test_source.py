from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainer.config import AEVConfig, FeatureConfig, Precision, TrainConfig
from trainer.data.dataset import Dataset, Molecule
from trainer.data.readers import read_dataset
from trainer.errors import DataError
from trainer.features import micro_batches
from trainer.features import source as source_module
from trainer.features.aev import AEVComputer
from trainer.features.batches import AtomBatch
from trainer.features.source import (
    GROUPED_FROM,
    ComputedFeatures,
    FeatureSource,
    StoredFeatures,
    open_features,
)
from trainer.networks.model import ElementNetworks
from trainer.progress import no_progress

CPU = torch.device("cpu")
CONFIG = AEVConfig()

#: Batches that are one piece each, and such that are pieces of kinds of compositions.
GROUPED = GROUPED_FROM[torch.float32]
SIZES = pytest.mark.parametrize("batch_size", [16, GROUPED], ids=["whole", "grouped"])


@pytest.fixture(scope="module")
def dataset(data_file: Path) -> Dataset:
    return read_dataset([data_file])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


def open_kind(kind: str, dataset: Dataset, root: Path) -> FeatureSource:
    limit = 32.0 if kind == "stored" else 0.0
    opened = open_features(dataset, FeatureConfig(store_limit_gib=limit), root, no_progress)
    assert isinstance(opened, StoredFeatures if kind == "stored" else ComputedFeatures)
    return opened


def pieces(
    opened: FeatureSource,
    structures: NDArray[np.int64],
    order: NDArray[np.int64],
    batch_size: int,
    dtype: torch.dtype = torch.float32,
) -> list[list[AtomBatch]]:
    """The batches, each as its pieces."""
    part = opened.subset(structures, dtype, batch_size)
    return [[load() for load in step] for step in part.steps(torch.from_numpy(order), batch_size)]


@SIZES
@pytest.mark.parametrize("kind", ["stored", "computed"])
def test_a_batch_holds_the_atoms_of_its_structures(
    dataset: Dataset, root: Path, kind: str, batch_size: int
) -> None:
    # Methanol, water, methane, water; every part has its own positions.
    structures = np.array([3, 17, 45, 99, 119])
    order = np.array([4, 0, 2, 1])
    (batches,) = pieces(open_kind(kind, dataset, root), structures, order, batch_size)
    assert len(batches) == (3 if batch_size == GROUPED else 1)
    assert sorted(p for batch in batches for p in batch.positions.tolist()) == [0, 1, 2, 4]
    computer = AEVComputer.like_1x()
    for batch in batches:
        owners = batch.sums.to_atoms(torch.arange(batch.size)[:, None])
        for b, structure in enumerate(structures[batch.positions.numpy()]):
            m = int(dataset.molecule_of(np.array([structure]))[0])
            molecule = dataset.molecules[m]
            species = torch.tensor([[(1, 6, 7, 8).index(n) for n in molecule.atomic_numbers]])
            coordinates = torch.from_numpy(molecule.coordinates[[structure - dataset.offsets[m]]])
            wanted = computer(species, coordinates)[0]
            assert set(species[0].tolist()) <= set(batch.elements)
            for element, columns, aevs, of in zip(
                batch.elements, batch.columns, batch.aevs, owners, strict=True
            ):
                found = torch.zeros((int((of == b).sum()), wanted.shape[1]))
                found[:, slice(None) if columns is None else columns] = aevs[of[:, 0] == b]
                torch.testing.assert_close(found, wanted[species[0] == element], rtol=0, atol=1e-5)


@SIZES
def test_stored_and_computed_batches_are_equal_to_the_last_bit(
    dataset: Dataset, root: Path, batch_size: int
) -> None:
    random = np.random.default_rng(5)
    structures = np.sort(random.choice(dataset.structures, 70, replace=False))
    order = random.permutation(70)
    stored, computed = (
        pieces(open_kind(kind, dataset, root), structures, order, batch_size)
        for kind in ("stored", "computed")
    )
    assert len(stored) == len(computed) == -(-70 // batch_size)
    for one, other in zip(chain(*stored), chain(*computed), strict=True):
        assert one.elements == other.elements
        for a, b in zip(one.aevs, other.aevs, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(one.positions, other.positions)
        numbers = torch.arange(one.size)[:, None]
        for a, b in zip(one.sums.to_atoms(numbers), other.sums.to_atoms(numbers), strict=True):
            assert torch.equal(a, b)


@SIZES
def test_every_structure_is_in_its_batch_once(
    dataset: Dataset, root: Path, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several calls to lay out small batches, and several pieces of a composition.
    monkeypatch.setattr(micro_batches, "LAID_OUT", 40)
    monkeypatch.setattr(micro_batches, "MICRO_BATCH_BYTES", 10_000)
    structures = np.arange(0, dataset.structures)
    order = np.random.default_rng(0).permutation(len(structures))
    found = pieces(open_features(dataset, FeatureConfig(), root, no_progress), structures, order, batch_size)
    for number, batch in enumerate(found):
        inside = np.sort(np.concatenate([piece.positions.numpy() for piece in batch]))
        assert np.array_equal(inside, np.sort(order[number * batch_size :][:batch_size]))
        if batch_size == GROUPED:
            assert len(batch) > 3
            assert max(aevs.nbytes for piece in batch for aevs in piece.aevs) < 10_000
    assert len(found) == -(-len(order) // batch_size)


@SIZES
def test_precision_is_that_of_the_training(dataset: Dataset, root: Path, batch_size: int) -> None:
    opened = open_features(dataset, FeatureConfig(), root, no_progress)
    everything, order = np.arange(dataset.structures), np.array([0, 50])
    (precise,) = pieces(opened, everything, order, batch_size, torch.float64)
    (single,) = pieces(opened, everything, order, batch_size)
    for one, other in zip(precise, single, strict=True):
        for aevs, rounded in zip(one.aevs, other.aevs, strict=True):
            assert torch.equal(aevs, rounded.double())


def test_trainings_on_the_same_subset_share_its_memory(dataset: Dataset, root: Path) -> None:
    opened = open_features(dataset, FeatureConfig(), root, no_progress)
    some = np.arange(50)
    part = opened.subset(some, torch.float32, 16)
    assert opened.subset(some.copy(), torch.float32, 32) is part
    assert opened.subset(some + 1, torch.float32, 16) is not part
    assert opened.subset(some, torch.float64, 16) is not part


def test_an_element_without_features_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    config = FeatureConfig(aev=AEVConfig(elements=("H", "C")))
    with pytest.raises(DataError, match="the data holds O"):
        open_features(dataset, config, tmp_path, no_progress)
    assert list(tmp_path.iterdir()) == []


def test_a_store_above_the_limit_is_not_built_and_a_line_says_so(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "anitune"):
        opened = open_features(dataset, FeatureConfig(store_limit_gib=1e-6), tmp_path, no_progress)
    assert isinstance(opened, ComputedFeatures)
    assert list(tmp_path.iterdir()) == []
    (record,) = caplog.records
    assert "features.store_limit_gib = 1e-06: AEVs are computed batch by batch" in record.getMessage()


#: Isomers, a lone atom, all elements; equal elements in other numbers, with the same columns and with others.
MANY = (
    (8,),
    (1, 1),
    (6, 1, 8, 1),
    (8, 6, 1, 1),
    (6, 6, 6, *(1,) * 8),
    (6, 6, 6, 6, *(1,) * 10),
    (6, 1, 1, 1, 1),
    (6, 7, 8, 1, 1, 1),
    (6, 6, 7, 8, 1),
)


@pytest.mark.parametrize("alone_from", [1, 10**9], ids=["kinds of compositions", "pooled"])
@pytest.mark.parametrize("kind", ["stored", "computed"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_energies_do_not_depend_on_how_structures_are_grouped(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    alone_from: int,
    precision: Precision,
) -> None:
    monkeypatch.setattr(source_module, "ALONE_FROM", alone_from)
    monkeypatch.setattr(micro_batches, "MICRO_BATCH_BYTES", 40_000)
    random = np.random.default_rng(1)
    molecules = tuple(
        Molecule(
            str(numbers),
            "",
            np.array(numbers, dtype=np.uint8),
            random.normal(scale=1.5, size=(7, len(numbers), 3)).astype(np.float32),
            np.zeros(7),
        )
        for numbers in MANY
    )
    opened = open_kind(kind, Dataset(molecules), tmp_path)
    model = ElementNetworks(
        TrainConfig(hidden=(9, 4), precision=precision, seed=3), opened.elements, opened.length
    )
    order = random.permutation(7 * len(MANY))
    energies = []
    for batch_size in (16, GROUPED):
        found = torch.full((len(order),), torch.nan, dtype=torch.float64)
        dtype = next(model.parameters()).dtype
        for batch in chain(*pieces(opened, np.arange(len(order)), order, batch_size, dtype)):
            found[batch.positions] = model(batch).detach().double()
        energies.append(found)
    assert not energies[0].isnan().any()
    tolerance = 1e-5 if precision == "float32" else 1e-12
    torch.testing.assert_close(energies[1], energies[0], rtol=tolerance, atol=tolerance)
    assert energies[0].unique().numel() > 6 * len(MANY)


def test_a_large_batch_of_rounded_features_is_worked_on_in_micro_batches(
    dataset: Dataset, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(micro_batches, "WHOLE", 30)
    opened = open_features(dataset, FeatureConfig(), root, no_progress)
    order = np.random.default_rng(0).permutation(dataset.structures)
    batches = pieces(opened, np.arange(len(order)), order, 70, torch.bfloat16)
    assert [[piece.size for piece in batch] for batch in batches] == [[30, 30, 10], [30, 20]]
    assert np.array_equal(np.concatenate([piece.positions.numpy() for piece in chain(*batches)]), order)
    assert {aevs.dtype for piece in chain(*batches) for aevs in piece.aevs} == {torch.bfloat16}
