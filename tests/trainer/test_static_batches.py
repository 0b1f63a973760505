from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.features import static_batches
from trainer.features.batches import AtomBatch
from trainer.features.device_table import DeviceTable, StoredSubset
from trainer.features.source import StoredFeatures
from trainer.features.static_batches import BatchShape, DeviceLayouts
from trainer.task import Task

#: The operations are those of a GPU.
CPU = torch.device("cpu")


def structures(task: Task) -> np.ndarray:
    """All structures but some, in an order of their own."""
    return np.random.default_rng(2).permutation(task.dataset.structures)[:100]


def stored_subset(task: Task) -> StoredSubset:
    assert isinstance(task.features, StoredFeatures)
    return task.features.stored_subset(structures(task))


def plain_batch(task: Task, positions: Tensor) -> AtomBatch:
    ((load,),) = task.features.subset(structures(task), torch.float64, 1).steps(positions, len(positions))
    return load()


def batch_positions(count: int, size: int, seed: int) -> Tensor:
    """Batches of structures from the 100 of the subset, the last of which has padding."""
    random = torch.Generator().manual_seed(seed)
    positions = torch.randperm(100, generator=random)[: count * size - size // 3]
    padding = torch.full((count * size - len(positions),), 100)
    return torch.cat([positions, padding]).view(count, size)


def lay_out(layouts: DeviceLayouts, some: Tensor, capacities: tuple[int, ...]) -> tuple[BatchShape, Tensor]:
    shape = layouts.shape(some.shape[1], capacities)
    found = torch.empty((len(some), shape.indices), dtype=torch.int32)
    layouts.lay_out(some, shape, found)
    return shape, found


@pytest.mark.parametrize("at_once", [1, static_batches.LAID_OUT])
@hypothesis.given(size=st.integers(2, 30), seed=st.integers(0, 99))
@hypothesis.settings(max_examples=20, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_a_batch_has_the_atoms_of_its_structures_and_padding(
    task: Task, at_once: int, size: int, seed: int
) -> None:
    features = DeviceTable(stored_subset(task), CPU, torch.float64)
    layouts, some = features.layouts, batch_positions(3, size, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static_batches, "LAID_OUT", at_once)
        shape, found = lay_out(layouts, some, layouts.capacities(size, sure=True))
    for positions, layout in zip(some, found, strict=True):
        rows, owners, atoms = shape.divide(layout)
        aevs, true = features.table[rows.long()], positions[positions < 100]
        plain = plain_batch(task, true)
        numbers = torch.arange(size)[:, None]
        for block, owner, wanted, its in zip(
            aevs.split(list(shape.capacities)),
            owners.split(list(shape.capacities)),
            plain.aevs,
            plain.sums.to_atoms(numbers[: len(true)]),
            strict=True,
        ):
            assert torch.equal(block[owner < size], wanted)
            assert torch.equal(owner[owner < size], its[:, 0].int())
            assert not block[owner == size].any()
        # What is in rows without an atom reaches no sum.
        energies = torch.where(owners[:, None] < size, aevs[:, :5].exp(), 1e6)
        energies = torch.cat([energies, energies.new_zeros(1, 5)])
        sums = shape.over_structures(energies, atoms)
        wanted_sums = plain.sums.over_structures([aevs[:, :5].exp() for aevs in plain.aevs])
        torch.testing.assert_close(sums[: len(true)], wanted_sums, rtol=1e-14, atol=0)
        assert not sums[len(true) :].any()


@pytest.mark.parametrize("size", [1, 7, 100])
def test_no_batch_has_more_atoms_than_the_sure_capacities(task: Task, size: int) -> None:
    part = stored_subset(task)
    layouts = DeviceTable(part, CPU, torch.float32).layouts
    sure, usual = layouts.capacities(size, sure=True), layouts.capacities(size, sure=False)
    assert all(few <= most for few, most in zip(usual, sure, strict=True))
    for of_element in part.counts[part.molecule].T:
        largest = np.argsort(-of_element)[:size].copy()[None]
        assert layouts.fit(torch.from_numpy(largest), sure)
        needed = layouts.capacities_of(largest)
        assert all(rows <= capacity for rows, capacity in zip(needed, sure, strict=True))


def test_batches_that_exceed_the_capacities_are_seen(task: Task) -> None:
    part = stored_subset(task)
    layouts = DeviceTable(part, CPU, torch.float32).layouts
    some = batch_positions(3, 20, 0)
    counts = [part.counts[part.molecule[batch[batch < 100].numpy()]].sum(0) for batch in some]
    most = np.max(counts, axis=0)
    assert layouts.fit(some, most.tolist())
    for element in np.flatnonzero(most):
        less = most.copy()
        less[element] -= 1
        assert not layouts.fit(some, less.tolist())
    rounded = -(-most // static_batches.ROWS) * static_batches.ROWS
    assert layouts.capacities_of(some.numpy()) == tuple(np.maximum(rounded, static_batches.ROWS))
