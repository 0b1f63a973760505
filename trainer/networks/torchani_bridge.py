"""Conversion of our networks to torchani's."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from trainer.config import Activation
from trainer.networks.activations import ACTIVATIONS
from trainer.networks.model import ElementNetworks
from trainer.networks.widths import widths_of

with warnings.catch_warnings():
    # torchani warns that its CUDA extensions were not compiled; they are not used here.
    warnings.filterwarnings("ignore", message="The extensions", category=UserWarning)
    from torchani.nn import ANINetworks, AtomicNetwork


class NamedActivation(nn.Module):
    """An entry of ``ACTIVATIONS`` as a module: torchani only has names for gelu and celu."""

    def __init__(self, name: Activation) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.name].value(x)

    def extra_repr(self) -> str:
        return self.name


class ActivatedNetwork(AtomicNetwork):  # type: ignore[misc]
    """A network of torchani whose output passes through the activation too."""

    def forward(self, features: Tensor) -> Any:
        return self.activation(super().forward(features))


def to_torchani(model: ElementNetworks) -> ANINetworks:
    """Return a copy of the network for torchani's AEVComputer, in evaluation mode: without dropout.

    Its energies are in hartree, self-energies not included.
    """
    kind = ActivatedNetwork if model.config.activate_output else AtomicNetwork
    atomics = {}
    for element, layers in model.networks.items():
        dims = (model.input_size, *widths_of(model.config.hidden, element), 1)
        atomic = kind(dims, activation=NamedActivation(model.config.activation), bias=True)
        for ours, theirs in zip(layers.children(), (*atomic.layers, atomic.final_layer), strict=True):
            weights = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
            theirs.load_state_dict(weights, assign=True)
        atomics[element] = atomic
    return ANINetworks(atomics).eval()
