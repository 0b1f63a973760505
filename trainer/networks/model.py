"""The network of a potential: a multilayer perceptron for each element, whose atomic energies are summed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.config import Precision, TrainConfig
from trainer.features.batches import AtomBatch
from trainer.networks.activations import ACTIVATIONS
from trainer.networks.widths import by_element, widths_of

#: Types of the weights, by ``TrainConfig.precision``.
WEIGHT_DTYPES: Final[Mapping[Precision, torch.dtype]] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "tf32": torch.float32,
    "bfloat16": torch.float32,
}


def weight_shapes(
    config: TrainConfig, elements: tuple[str, ...], input_size: int
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights of :class:`ElementNetworks` by name, without allocating them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for element in elements:
        sizes = (input_size, *widths_of(config.hidden, element), 1)
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            shapes[f"networks.{element}.{layer}.weight"] = (outputs, inputs)
            shapes[f"networks.{element}.{layer}.bias"] = (outputs,)
    return shapes


class ElementNetworks(nn.Module):
    """Predicts energies of structures from the AEVs of their atoms, self-energies not included.

    A hidden layer is a linear map, dropout and the activation, in this order; dropout is not applied here but
    in training (:mod:`trainer.fitting.gradients`). The initial weights depend only on the seed of ``config``,
    not on the device or the state of torch's global generator.

    Parameters
    ----------
    config : widths, activation, dropout, precision and seed
    elements : symbols, in the order of ``AtomBatch.aevs``
    input_size : numbers in the AEV of an atom, F
    device : where it runs
    """

    def __init__(
        self,
        config: TrainConfig,
        elements: tuple[str, ...],
        input_size: int,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (a constant)
    ) -> None:
        super().__init__()
        self.config = config
        self.elements = elements
        self.input_size = input_size
        generator = torch.Generator().manual_seed(_weights_seed(config.seed))
        self.networks = nn.ModuleDict(
            {
                element: nn.ModuleList(
                    _linear(*shape, generator) for shape in itertools.pairwise((input_size, *widths, 1))
                )
                for element, widths in by_element(config.hidden, elements).items()
            }
        )
        self.to(device, WEIGHT_DTYPES[config.precision])

    @property
    def parameter_count(self) -> int:
        """Number of weights and biases of all elements."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, batch: AtomBatch) -> Tensor:
        """Return energies in hartree, (B,), without self-energies."""
        energies = [
            self._atomic_energies(self.layers(element), columns, aevs)
            for element, columns, aevs in zip(batch.elements, batch.columns, batch.aevs, strict=True)
        ]
        return batch.sums.over_structures(energies).squeeze(1)

    def layers(self, element: int) -> list[nn.Linear]:
        """Return the layers of an element, by its index in ``elements``; the output layer is last."""
        return list(self.networks[self.elements[element]].children())  # type: ignore[arg-type]

    def _atomic_energies(self, layers: list[nn.Linear], columns: Tensor | None, aevs: Tensor) -> Tensor:
        """Map AEVs (n_e, F_e) to atomic energies (n_e, 1)."""
        activation = ACTIVATIONS[self.config.activation].value
        first, *others = layers
        weight = first.weight if columns is None else first.weight.index_select(1, columns)
        x = functional.linear(aevs, weight, first.bias)
        for layer in others:
            x = layer(activation(x))
        return activation(x) if self.config.activate_output else x


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Return a layer with torch's usual initial distribution, drawn from ``generator``."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def _weights_seed(seed: int) -> int:
    return int(np.random.SeedSequence([seed, 0]).generate_state(1, np.uint64)[0] >> np.uint64(1))
