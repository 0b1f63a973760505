"""Sources of AEVs for a training on a GPU."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.config import FeatureConfig, TrainConfig
from trainer.evaluation.evaluate import evaluate
from trainer.features import source
from trainer.features.computed import Computed
from trainer.features.device_table import DeviceTable, StoredBlock, StoredSubset
from trainer.features.source import GPU_SHARE, ComputedFeatures, StoredFeatures, open_features
from trainer.features.static_batches import BatchShape, DeviceFeatures, Positions
from trainer.features.streaming import READERS, Streamed
from trainer.networks.model import ElementNetworks
from trainer.progress import no_progress
from trainer.task import Task

GPU = torch.device("cuda", 0)


def structures(task: Task) -> np.ndarray:
    """A hundred structures of the task in a random order."""
    return np.random.default_rng(2).permutation(task.dataset.structures)[:100]


def stored_subset(task: Task) -> StoredSubset:
    assert isinstance(task.features, StoredFeatures)
    return task.features.stored_subset(structures(task))


def batch_positions(count: int, size: int) -> Positions:
    """Batches of structures from the 100 of the subset, the last of which has padding."""
    random = np.random.default_rng(size)
    positions = np.append(random.permutation(100), random.permutation(100))[: count * size - size // 3]
    return np.append(positions, np.full(size // 3, 100)).reshape(count, size)


def shape_of(features: DeviceFeatures, size: int) -> BatchShape:
    return features.layouts.shape(size, features.layouts.capacities(size, sure=True))


def batches(features: DeviceFeatures, some: Positions) -> Iterator[torch.Tensor]:
    """Yield the AEVs of each batch, (C, F) on the host."""
    shape = shape_of(features, some.shape[1])
    found = torch.empty((len(some), shape.indices), dtype=torch.int32, device=GPU)
    features.layouts.lay_out(torch.from_numpy(some).to(GPU), shape, found)
    of_shape = features.batches(shape)
    for layout, _ in zip(found, of_shape.feed(lambda: some, len(some)), strict=True):
        rows, *_ = shape.divide(layout)
        yield (of_shape.source.index_select(0, rows) if of_shape.gathered else of_shape.source).cpu()


def test_streamed_batches_are_those_of_a_table_to_the_last_bit(task: Task) -> None:
    # More batches than slots, so that each slot is filled again.
    some = batch_positions(2 * READERS + 2, 5)
    table, streamed = (kind(stored_subset(task), GPU, torch.float32) for kind in (DeviceTable, Streamed))
    for one, other in zip(batches(table, some), batches(streamed, some), strict=True):
        assert torch.equal(one, other)


def test_computed_batches_are_those_of_a_table(task: Task, tmp_path: Path) -> None:
    features = open_features(task.dataset, FeatureConfig(store_limit_gib=0.0), tmp_path, no_progress)
    assert isinstance(features, ComputedFeatures)
    computed = features.device_subset(structures(task), GPU, torch.float32)
    table = DeviceTable(stored_subset(task), GPU, torch.float32)
    for one, other in zip(
        batches(table, batch_positions(3, 9)), batches(computed, batch_positions(3, 9)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_computed_aevs_stay_on_the_device(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    features = ComputedFeatures(task.dataset, task.aev).device_subset(structures(task), GPU, torch.float32)
    assert isinstance(features, Computed)
    shape = shape_of(features, 9)
    stage = features.batches(shape).source
    (positions,) = batch_positions(1, 9)
    features.compute(positions, shape, stage)  # sets up state for the molecules
    to, copied = torch.Tensor.to, []

    def watched(self: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        result: torch.Tensor = to(self, *args, **kwargs)
        if self.is_cuda != result.is_cuda:
            copied.append(self.numel() if not self.is_cuda else -1)
        return result

    monkeypatch.setattr(torch.Tensor, "to", watched)
    features.compute(positions, shape, stage)
    # Coordinates and positions of atoms are copied to the device, and nothing is copied back.
    assert 0 < max(copied) < stage.numel() / 10
    assert min(copied) > 0


def test_what_does_not_fit_is_streamed_and_a_line_says_so(
    task: Task, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(task.features, StoredFeatures)
    features = StoredFeatures(task.dataset, task.aev, task.features._tables)
    needed = stored_subset(task).atoms * features.length * 4
    free = [*[needed / GPU_SHARE - 1] * 2, needed / GPU_SHARE + 1]  # checked again after memory was released
    monkeypatch.setattr(source, "free_memory", lambda device: free.pop())
    with caplog.at_level(logging.WARNING, "anitune"):
        assert isinstance(features._new_device_subset(structures(task), GPU, torch.float32), DeviceTable)
        assert not caplog.records
        assert isinstance(features._new_device_subset(structures(task), GPU, torch.float32), Streamed)
    assert "they stay on the disk" in caplog.text


def test_a_network_predicts_what_it_does_on_the_cpu(task: Task) -> None:
    config = TrainConfig(hidden=(20, 7), precision="float64", activate_output=True)
    on_cpu = ElementNetworks(config, task.features.elements, task.features.length)
    on_gpu = ElementNetworks(config, task.features.elements, task.features.length, GPU)
    one, other = (evaluate(model, task, structures(task)) for model in (on_cpu, on_gpu))
    np.testing.assert_allclose(other.predicted, one.predicted, rtol=1e-12)
    rounded = dataclasses.replace(config, precision="bfloat16")
    model = ElementNetworks(rounded, task.features.elements, task.features.length, GPU)
    exact = evaluate(model, task, structures(task)).predicted
    np.testing.assert_allclose(exact, one.predicted, rtol=1e-5, atol=1e-4)  # in float32


def reading_threads() -> int:
    return sum(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())


def feed(task: Task, some: Positions) -> Generator[None]:
    features = Streamed(stored_subset(task), GPU, torch.float32)
    return features.batches(shape_of(features, some.shape[1])).feed(lambda: some, len(some))


def test_reading_ends_when_the_training_does(task: Task) -> None:
    before = reading_threads()
    fed = feed(task, batch_positions(20, 4))
    next(fed)
    assert reading_threads() > before
    fed.close()
    assert reading_threads() == before


def test_an_error_of_reading_reaches_the_training(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    some, before = batch_positions(20, 4), reading_threads()
    blocks, spoilt = StoredSubset.blocks, some[9, 0]

    def some_blocks(self: StoredSubset, positions: Positions, begins: Positions) -> Iterator[StoredBlock]:
        yield from blocks(self, positions, begins)
        if spoilt in positions:
            raise OSError("the disk is gone")

    monkeypatch.setattr(StoredSubset, "blocks", some_blocks)
    done: list[None] = []
    with pytest.raises(OSError, match="the disk is gone"):
        done.extend(feed(task, some))
    # Batches before the error were right, and are used.
    assert len(done) == 9
    assert reading_threads() == before
