"""Activation functions by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from trainer.config import Activation

#: The alpha of ANI-1x and ANI-2x.
CELU_ALPHA: Final = 0.1

_aten = torch.ops.aten


@dataclass(frozen=True)
class ActivationFunction:
    """An elementwise activation function.

    Attributes
    ----------
    value : computes y from x; may overwrite x if ``backward`` does not need it
    backward : computes the gradient with respect to x from that with respect to y, x and y, with torch's own
        kernels where they exist; may overwrite the gradient with respect to y
    """

    value: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]


def gaussian(x: Tensor) -> Tensor:
    """exp(-x^2), as in the ANI-1 paper: Smith, Isayev, Roitberg, Chem. Sci. 8, 3192 (2017)."""
    return torch.exp(-x * x)


ACTIVATIONS: Final[Mapping[Activation, ActivationFunction]] = {
    "relu": ActivationFunction(
        torch.relu_, lambda g, x, y: _aten.threshold_backward.grad_input(g, y, 0, grad_input=g)
    ),
    "sigmoid": ActivationFunction(torch.sigmoid_, lambda g, x, y: _aten.sigmoid_backward(g, y)),
    "tanh": ActivationFunction(torch.tanh_, lambda g, x, y: _aten.tanh_backward(g, y)),
    "softplus": ActivationFunction(functional.softplus, lambda g, x, y: _aten.softplus_backward(g, x, 1, 20)),
    "silu": ActivationFunction(functional.silu, lambda g, x, y: _aten.silu_backward(g, x)),
    "gelu": ActivationFunction(functional.gelu, lambda g, x, y: _aten.gelu_backward(g, x)),
    "celu": ActivationFunction(
        partial(torch.celu_, alpha=CELU_ALPHA),
        lambda g, x, y: _aten.elu_backward(g, CELU_ALPHA, 1, 1 / CELU_ALPHA, True, y),
    ),
    "gaussian": ActivationFunction(gaussian, lambda g, x, y: g * (x * y).mul_(-2)),
}
