from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainer.config import AEVConfig, FeatureConfig
from trainer.data.dataset import Dataset
from trainer.data.readers import read_dataset
from trainer.errors import DataError
from trainer.features import source as source_module
from trainer.features.aev import AEVComputer
from trainer.features.batches import AtomBatch
from trainer.features.source import (
    BY_SETS_FROM,
    ComputedFeatures,
    FeatureSource,
    StoredFeatures,
    open_features,
)
from trainer.progress import no_progress

CPU = torch.device("cpu")
CONFIG = AEVConfig()

#: Batches that go by element, and such that go by element set.
SIZES = pytest.mark.parametrize("batch_size", [16, BY_SETS_FROM], ids=["by element", "by element set"])


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
    part = opened.part(structures, CPU, dtype, batch_size)
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
    assert len(batches) == (3 if batch_size == BY_SETS_FROM else 1)
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
    # Several calls to lay out small batches, and several tiles of an element set.
    monkeypatch.setattr(source_module, "LAID_OUT", 40)
    monkeypatch.setattr(source_module, "TILE", 7)
    structures = np.arange(0, dataset.structures)
    order = np.random.default_rng(0).permutation(len(structures))
    found = pieces(open_features(dataset, FeatureConfig(), root, no_progress), structures, order, batch_size)
    for number, batch in enumerate(found):
        inside = np.sort(np.concatenate([piece.positions.numpy() for piece in batch]))
        assert np.array_equal(inside, np.sort(order[number * batch_size :][:batch_size]))
        if batch_size == BY_SETS_FROM:
            assert len(batch) > 3
            assert max(piece.size for piece in batch) == 7
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


def test_trainings_on_the_same_part_share_its_memory(dataset: Dataset, root: Path) -> None:
    opened = open_features(dataset, FeatureConfig(), root, no_progress)
    some = np.arange(50)
    part = opened.part(some, CPU, torch.float32, 16)
    assert opened.part(some.copy(), CPU, torch.float32, 32) is part
    assert opened.part(some + 1, CPU, torch.float32, 16) is not part
    assert opened.part(some, CPU, torch.float64, 16) is not part


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
