"""The network of a potential: a multilayer perceptron for each element, whose atomic energies are summed."""

from __future__ import annotations

import itertools
import math
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.features.batches import AtomBatch
from trainer.networks.activations import ACTIVATIONS
from trainer.networks.sums import sum_by_structure

DTYPES: Final = {"float32": torch.float32, "float64": torch.float64}

#: What the seed of a training is used for here; each use has random numbers of its own.
WEIGHTS_STREAM: Final = 0
DROPOUT_STREAM: Final = 1


class ElementNetworks(nn.Module):
    """Energies of structures from the AEVs of their atoms, self-energies not included.

    A hidden layer is a linear map, dropout and the activation, in this order. The initial weights follow
    from the seed of ``config`` alone, whatever the device and the state of torch's own generator.

    Parameters
    ----------
    config : widths, activation, dropout, precision and seed
    elements : symbols, in the order of ``AtomBatch.aevs``
    input_size : numbers in the AEV of an atom, F
    device : where it runs; it stays there, as its dropout's random numbers are drawn there

    Attributes
    ----------
    dropout_generator : draws what is dropped; its state belongs in a checkpoint
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
        self._activation = ACTIVATIONS[config.activation]
        self._keep = 1.0 - config.dropout
        self.dropout_generator = torch.Generator(device).manual_seed(
            _stream_seed(config.seed, DROPOUT_STREAM)
        )
        generator = torch.Generator().manual_seed(_stream_seed(config.seed, WEIGHTS_STREAM))
        sizes = (input_size, *config.hidden, 1)
        self.networks = nn.ModuleDict(
            {
                element: nn.ModuleList(_linear(*shape, generator) for shape in itertools.pairwise(sizes))
                for element in elements
            }
        )
        self.to(device, DTYPES[config.precision])

    @property
    def parameter_count(self) -> int:
        """Number of weights and biases of all elements."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, batch: AtomBatch) -> Tensor:
        """Energies in hartree, (B,), without self-energies."""
        energies = [
            self._atomic_energies(layers, aevs)
            for layers, aevs in zip(self.networks.values(), batch.aevs, strict=True)
        ]
        return sum_by_structure(torch.cat(energies).squeeze(1), batch)

    def _atomic_energies(self, layers: nn.Module, aevs: Tensor) -> Tensor:
        """(n_e, 1) for (n_e, F)."""
        *hidden, output = layers.children()
        x = aevs
        for layer in hidden:
            x = self._activation(self._drop(layer(x)))
        x = output(x)
        if self.config.activate_output:
            x = self._activation(self._drop(x))
        return x

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training or self._keep == 1.0:
            return x
        # On a CPU this takes half the time of ``bernoulli_``.
        drawn = torch.rand(x.shape, generator=self.dropout_generator, device=x.device, dtype=x.dtype)
        return x * drawn.lt_(self._keep).div_(self._keep)


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A layer with torch's usual distribution, but drawn from ``generator``."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def _stream_seed(seed: int, stream: int) -> int:
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0] >> np.uint64(1))
