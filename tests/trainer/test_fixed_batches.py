from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.evaluation.evaluate import predict
from trainer.features import source
from trainer.features.batches import AtomBatch
from trainer.features.fixed_batches import FixedFeatures, Frame
from trainer.features.resident import Resident, StoredBlock, StoredPart
from trainer.features.source import GPU_SHARE, StoredFeatures
from trainer.features.streaming import READERS, Streamed
from trainer.fitting.threads import Threads
from trainer.networks.model import ElementNetworks
from trainer.task import Task

CPU = torch.device("cpu")
KINDS = pytest.mark.parametrize("kind", [Resident, Streamed])

Kind = Callable[[StoredPart, torch.device, torch.dtype], FixedFeatures]


def stored_part(task: Task) -> StoredPart:
    """Of all structures but some, in an order of their own."""
    assert isinstance(task.features, StoredFeatures)
    return task.features.stored_part(structures(task))


def structures(task: Task) -> np.ndarray:
    return np.random.default_rng(2).permutation(task.dataset.structures)[:100]


def plain_batch(task: Task, positions: Tensor) -> AtomBatch:
    """The batch as one piece on the CPU."""
    part = task.features.part(structures(task), CPU, torch.float64, 1)
    ((load,),) = part.steps(positions, len(positions))
    return load()


def orders(count: int, size: int, seed: int) -> Tensor:
    """Batches of structures from the 100 of the part, the last of which is filled up."""
    random = torch.Generator().manual_seed(seed)
    positions = torch.randperm(100, generator=random)[: count * size - size // 3]
    empty = torch.full((count * size - len(positions),), 100)
    return torch.cat([positions, empty]).view(count, size)


@KINDS
@hypothesis.given(size=st.integers(2, 30), seed=st.integers(0, 99))
@hypothesis.settings(max_examples=20, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_what_fills_up_a_batch_reaches_no_sum(task: Task, kind: Kind, size: int, seed: int) -> None:
    features = kind(stored_part(task), CPU, torch.float64)
    capacities = features.layouts.capacities(size, sure=True)
    batches = features.batches(Frame(features.layouts, size, capacities))
    some = orders(3, size, seed)
    for positions, _ in zip(some, batches.feed(some), strict=True):
        batch = batches.load(positions)
        true = positions[positions < 100]
        plain = plain_batch(task, true)
        assert tuple(map(len, batch.aevs)) == capacities
        numbers = 1.0 + torch.arange(size)[:, None]
        owners = batch.sums.to_atoms(numbers)
        for aevs, owner, wanted, its in zip(
            batch.aevs, owners, plain.aevs, plain.sums.to_atoms(numbers[: len(true)]), strict=True
        ):
            assert torch.equal(aevs[owner[:, 0] > 0], wanted)
            assert torch.equal(owner[owner > 0], its[:, 0])
        # What no structure owns may be anything.
        of_atoms = [
            torch.where(owner > 0, aevs[:, :5].exp(), 1e6)
            for aevs, owner in zip(batch.aevs, owners, strict=True)
        ]
        sums = batch.sums.over_structures(of_atoms)
        wanted_sums = plain.sums.over_structures([aevs[:, :5].exp() for aevs in plain.aevs])
        torch.testing.assert_close(sums[: len(true)], wanted_sums, rtol=1e-14, atol=0)
        assert not sums[len(true) :].any()


def test_rows_without_an_atom_are_zero(task: Task) -> None:
    features = Resident(stored_part(task), CPU, torch.float64)
    batches = features.batches(Frame(features.layouts, 8, features.layouts.capacities(8, sure=True)))
    batch = batches.load(torch.arange(8))
    owners = batch.sums.to_atoms(torch.ones((8, 1)))
    assert not any(aevs[owner[:, 0] == 0].any() for aevs, owner in zip(batch.aevs, owners, strict=True))


@pytest.mark.parametrize("size", [1, 7, 100])
def test_no_batch_has_more_atoms_than_the_sure_capacities(task: Task, size: int) -> None:
    part = stored_part(task)
    layouts = Resident(part, CPU, torch.float32).layouts
    sure, usual = layouts.capacities(size, sure=True), layouts.capacities(size, sure=False)
    assert all(few <= most for few, most in zip(usual, sure, strict=True))
    for of_element in part.counts[part.molecule].T:
        largest = torch.from_numpy(np.argsort(-of_element)[:size].copy())[None]
        assert layouts.fit(largest, sure)
        assert all(
            rows <= capacity for rows, capacity in zip(layouts.sizes(largest[0].numpy()), sure, strict=True)
        )


def test_batches_that_exceed_the_capacities_are_seen(task: Task) -> None:
    layouts = Resident(stored_part(task), CPU, torch.float32).layouts
    some = orders(3, 20, 0)
    most = np.max([layouts.sizes(batch.numpy()) for batch in (some[0], some[1], some[2][:14])], axis=0)
    assert layouts.fit(some, most.tolist())
    for element in np.flatnonzero(most):
        less = most.copy()
        less[element] -= 1
        assert not layouts.fit(some, less.tolist())


@KINDS
def test_a_network_predicts_the_same_from_each_kind_of_part(task: Task, kind: Kind) -> None:
    model = ElementNetworks(TrainConfig(precision="float64"), task.features.elements, task.features.length)
    part = task.features.part(structures(task), CPU, torch.float64, 2048)
    wanted = predict(model, part, 100, Threads(1))
    features = kind(stored_part(task), CPU, torch.float64)
    torch.testing.assert_close(predict(model, features, 100, Threads(1)), wanted, rtol=1e-12, atol=1e-12)
    # In several batches of other sizes.
    found = torch.empty(100, dtype=torch.float64)
    for (load,) in features.steps(torch.arange(100), 33):
        batch = load()
        found[batch.positions] = model(batch).detach()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_streamed_batches_are_those_that_are_resident_to_the_last_bit(task: Task) -> None:
    part = stored_part(task)
    features = [kind(part, CPU, torch.float32) for kind in (Resident, Streamed)]
    frame = Frame(features[0].layouts, 5, features[0].layouts.capacities(5, sure=True))
    resident, streamed = (some.batches(frame) for some in features)
    # More batches than slots, so that each slot is filled anew.
    some = orders(2 * READERS + 2, 5, 1)
    for positions, _, _ in zip(some, resident.feed(some), streamed.feed(some), strict=True):
        one, other = resident.load(positions), streamed.load(positions)
        numbers = torch.arange(5)[:, None] + 1
        for a, b, owner in zip(one.aevs, other.aevs, one.sums.to_atoms(numbers), strict=True):
            assert torch.equal(a[owner[:, 0] > 0], b[owner[:, 0] > 0])


def test_what_does_not_fit_into_the_memory_of_a_gpu_is_streamed_and_a_line_says_so(
    task: Task, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    features = task.features
    assert isinstance(features, StoredFeatures)
    part = features.stored_part(structures(task))
    needed = part.atoms * features.length * 4
    monkeypatch.setattr(source, "free_memory", lambda device: free)
    with caplog.at_level(logging.WARNING, "anitune"):
        free = needed / GPU_SHARE + 1
        assert isinstance(features._fixed_part(structures(task), CPU, torch.float32), Resident)
        assert not caplog.records
        free = needed / GPU_SHARE - 1
        assert isinstance(features._fixed_part(structures(task), CPU, torch.float32), Streamed)
    assert "they stay on the disk" in caplog.text


def reading_threads() -> int:
    return sum(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())


def test_reading_ends_when_the_training_does(task: Task) -> None:
    features = Streamed(stored_part(task), CPU, torch.float32)
    batches = features.batches(Frame(features.layouts, 4, features.layouts.capacities(4, sure=True)))
    before = reading_threads()
    fed = batches.feed(orders(20, 4, 0))
    next(fed)
    assert reading_threads() > before
    fed.close()
    assert reading_threads() == before


def test_an_error_of_reading_reaches_the_training(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    features = Streamed(stored_part(task), CPU, torch.float32)
    batches = features.batches(Frame(features.layouts, 4, features.layouts.capacities(4, sure=True)))
    some, before = orders(20, 4, 0), reading_threads()
    blocks, spoilt = StoredPart.blocks, some[9, 0].item()

    def some_blocks(self: StoredPart, positions: np.ndarray, begins: np.ndarray) -> Iterator[StoredBlock]:
        yield from blocks(self, positions, begins)
        if spoilt in positions:
            raise OSError("the disk is gone")

    monkeypatch.setattr(StoredPart, "blocks", some_blocks)
    done: list[None] = []
    with pytest.raises(OSError, match="the disk is gone"):
        done.extend(batches.feed(some))
    # Those before it were right, and are used.
    assert len(done) == 9
    assert reading_threads() == before
