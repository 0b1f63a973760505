from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.config import Activation, TrainConfig
from trainer.features.batches import AtomBatch
from trainer.fitting.gradients import Gradient
from trainer.networks.activations import ACTIVATIONS
from trainer.networks.model import ElementNetworks
from trainer.task import Task

CPU = torch.device("cpu")


def make_model(task: Task, **settings: object) -> ElementNetworks:
    config = TrainConfig(precision="float64", **settings)  # type: ignore[arg-type]
    return ElementNetworks(config, task.features.elements, task.features.length)


def batches(task: Task, batch_size: int) -> Iterator[AtomBatch]:
    """Of all structures: a batch in one piece if it is small, else in a piece for each element set."""
    part = task.features.subset(np.arange(task.dataset.structures), torch.float64, batch_size)
    order = torch.randperm(task.dataset.structures, generator=torch.Generator().manual_seed(1))
    for pieces in part.steps(order, batch_size):
        yield from (load() for load in pieces)


def with_dropout(model: ElementNetworks, batch: AtomBatch, seed: int) -> Tensor:
    """Energies, by torch's own operations: linear map, dropout with scaling, activation."""
    generator = torch.Generator().manual_seed(seed)
    keep = 1 - model.config.dropout
    energies = []
    for element, columns, x in zip(batch.elements, batch.columns, batch.aevs, strict=True):
        *hidden, output = model.layers(element)
        for layer in (*hidden, output):
            weight = layer.weight
            if layer is hidden[0] and columns is not None:
                weight = weight[:, columns]
            x = x @ weight.t() + layer.bias
            if layer is not output or model.config.activate_output:
                drawn = torch.rand(x.shape, generator=generator, dtype=x.dtype)
                x = ACTIVATIONS[model.config.activation].value(x * (drawn < keep) / keep)
        energies.append(x)
    return batch.sums.over_structures(energies).squeeze(1)


@pytest.mark.parametrize("batch_size", [16, 8192], ids=["by element", "by element set"])
@pytest.mark.parametrize(
    "settings",
    [
        {"hidden": (7,)},
        {"hidden": (9, 5, 4)},
        {"hidden": (6, 3), "activate_output": True},
        {"hidden": (6, 3), "dropout": 0.4},
        {"hidden": (6,), "dropout": 0.4, "activate_output": True},
        {"hidden": {"H": (6, 3), "C": (4, 5), "N": (3, 3), "O": (5, 2)}, "dropout": 0.4},
    ],
    ids=str,
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_those_of_automatic_differentiation(
    task: Task, activation: Activation, settings: dict[str, object], batch_size: int
) -> None:
    model = make_model(task, activation=activation, **settings)
    gradient = Gradient(model)
    gradient.start()
    random = torch.Generator().manual_seed(2)
    expected = torch.zeros_like(gradient.vector)
    for seed, batch in enumerate(batches(task, batch_size)):
        target, weight = torch.rand(2, batch.size, generator=random, dtype=torch.float64)
        energies = with_dropout(model, batch, seed) if model.config.dropout else model(batch)
        loss = (weight * (energies - target) ** 2).sum()
        torch.testing.assert_close(gradient.add(batch, target, weight, seed), loss.detach()[None])
        over_weights = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        expected += torch.cat([g.flatten() for g in over_weights])
    assert expected.abs().max() > 1e-3
    gradient.finish()
    # torch itself rounds 1 / alpha to single precision in the derivative of celu.
    tolerance = 1e-6 if activation == "celu" else 1e-10
    torch.testing.assert_close(gradient.vector, expected, rtol=tolerance, atol=tolerance)


def test_the_share_that_is_dropped(task: Task) -> None:
    # With weights of 0 and a bias of 50, an atom's energy is sigmoid(50) = 1; 1/2 if dropped.
    model = make_model(task, hidden=(1,), activation="sigmoid", activate_output=True, dropout=0.25)
    with torch.no_grad():
        for e in range(len(model.elements)):
            model.layers(e)[-1].weight.zero_()
            model.layers(e)[-1].bias.fill_(50.0)
    dropped = atoms = 0.0
    gradient = Gradient(model)
    one = torch.ones(1, dtype=torch.float64)
    for seed, batch in enumerate(batches(task, 1)):
        loss = gradient.add(batch, torch.zeros_like(one), one, seed)
        atoms_of_batch = sum(len(aevs) for aevs in batch.aevs)
        dropped += 2 * (atoms_of_batch - loss.item() ** 0.5)
        atoms += atoms_of_batch
    assert dropped / atoms == pytest.approx(0.25, abs=0.04)
