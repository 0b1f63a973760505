"""The weights of a network as one vector."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

#: On a GPU each parameter begins at a multiple of this many numbers: matrices that do not begin at a multiple
#: of 16 bytes are multiplied by slower kernels.
ALIGNMENT = 64


def parameter_offsets(model: nn.Module, device: torch.device) -> tuple[tuple[int, ...], int]:
    """Return the parameters' offsets in the vector of :class:`FlatWeights` on ``device``, and its length."""
    alignment = ALIGNMENT if device.type == "cuda" else 1
    ends = list(
        itertools.accumulate((-(-p.numel() // alignment) * alignment for p in model.parameters()), initial=0)
    )
    return tuple(ends[:-1]), ends[-1]


class FlatWeights:
    """All parameters of a network, which are views of one vector.

    A step of the optimizer, a copy and an average are then one operation each. For networks as small as
    these, a call for each parameter would cost more than its arithmetic.

    On a GPU there are gaps between the parameters (:data:`ALIGNMENT`). They stay zero, as their gradients
    are zero. A checkpoint has no gaps, so that a training can continue on any device.

    Attributes
    ----------
    vector : (N,) parameter; writing to it changes the weights of the network
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = list(model.parameters())
        first = parameters[0]
        self._shapes = [p.shape for p in parameters]
        self._offsets, length = parameter_offsets(model, first.device)
        vector = first.new_zeros(length, requires_grad=False)
        for parameter, place in zip(parameters, self.views(vector), strict=True):
            place.copy_(parameter.detach())
            parameter.data = place
        self.vector = nn.Parameter(vector)

    def views(self, vector: Tensor) -> list[Tensor]:
        """Return the view of each parameter in a vector (N,), in the parameter's shape."""
        return [
            vector.narrow(0, offset, shape.numel()).view(shape)
            for offset, shape in zip(self._offsets, self._shapes, strict=True)
        ]

    def compact(self, vector: Tensor) -> Tensor:
        """Return a vector (N,) without its gaps, (P,); the vector itself if it has none."""
        if len(vector) == sum(shape.numel() for shape in self._shapes):
            return vector
        return torch.cat([view.flatten() for view in self.views(vector)])

    def spread(self, compact: Tensor) -> Tensor:
        """Return a vector (N,) on the device of the weights, from (P,): the inverse of :meth:`compact`."""
        vector = torch.zeros_like(self.vector)
        parts = torch.split(compact.to(vector.device, vector.dtype), [s.numel() for s in self._shapes])
        for view, part in zip(self.views(vector), parts, strict=True):
            view.copy_(part.view_as(view))
        return vector

    def copy(self) -> Tensor:
        """Return a copy of the current weights, (N,)."""
        return self.vector.detach().clone()

    def load(self, vector: Tensor) -> None:
        """Set the weights of the network to ``vector``, (N,)."""
        with torch.no_grad():
            self.vector.copy_(vector)


@torch.no_grad()
def load_weights(model: nn.Module, vector: Tensor) -> None:
    """Set the weights of a network without a shared vector to ``vector``, (P,) without gaps."""
    parameters = list(model.parameters())
    for parameter, weights in zip(
        parameters, torch.split(vector, [p.numel() for p in parameters]), strict=True
    ):
        parameter.copy_(weights.view_as(parameter))
