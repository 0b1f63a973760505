"""The weights of a network as one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters


class FlatWeights:
    """All parameters of a network, laid out one after another in a vector that they are views of.

    A step of the optimizer, a copy and an average are then one operation each. For networks as small as
    these, a call for each parameter would cost more than its arithmetic.

    Attributes
    ----------
    vector : (P,) parameter; what is written to it the network has
    """

    def __init__(self, model: nn.Module) -> None:
        self.vector = nn.Parameter(parameters_to_vector(model.parameters()).detach())
        vector_to_parameters(self.vector.detach(), model.parameters())

    def copy(self) -> Tensor:
        """The weights as they are now, (P,)."""
        return self.vector.detach().clone()

    def load(self, vector: Tensor) -> None:
        """Give the network the weights ``vector``, (P,)."""
        with torch.no_grad():
            self.vector.copy_(vector)


@torch.no_grad()
def load_weights(model: nn.Module, vector: Tensor) -> None:
    """Give a network whose parameters are tensors of their own the weights ``vector``, (P,)."""
    parameters = list(model.parameters())
    for parameter, weights in zip(
        parameters, torch.split(vector, [p.numel() for p in parameters]), strict=True
    ):
        parameter.copy_(weights.view_as(parameter))
