"""Activations by name. It imports no torch before one is used: their names are the choices of a setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trainer.lazy_import import LazyImport

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyImport("torch")

#: The alpha of ANI-1x and ANI-2x.
CELU_ALPHA: Final = 0.1


@dataclass(frozen=True)
class ActivationFunction:
    """An elementwise activation function.

    Attributes
    ----------
    value : computes y from x; may overwrite x if ``backward`` does not need it
    backward : computes the gradient with respect to x from that with respect to y, x and y, with torch's own
        kernels where they exist; may overwrite the gradient with respect to y
    kinked : whether its slope jumps, so that forces jump where a structure crosses the kink; such an
        activation is not searched by default
    """

    value: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]
    kinked: bool = False


def gaussian(x: Tensor) -> Tensor:
    """exp(-x^2), as in the ANI-1 paper: Smith, Isayev, Roitberg, Chem. Sci. 8, 3192 (2017)."""
    return torch.exp(-x * x)


#: Every entry can be chosen; the smooth ones are searched by default.
ACTIVATIONS: Final[Mapping[str, ActivationFunction]] = {
    "relu": ActivationFunction(
        lambda x: torch.relu_(x),
        lambda g, x, y: torch.ops.aten.threshold_backward.grad_input(g, y, 0, grad_input=g),
        kinked=True,
    ),
    "sigmoid": ActivationFunction(
        lambda x: torch.sigmoid_(x), lambda g, x, y: torch.ops.aten.sigmoid_backward(g, y)
    ),
    "tanh": ActivationFunction(lambda x: torch.tanh_(x), lambda g, x, y: torch.ops.aten.tanh_backward(g, y)),
    "softplus": ActivationFunction(
        lambda x: torch.nn.functional.softplus(x),
        lambda g, x, y: torch.ops.aten.softplus_backward(g, x, 1, 20),
    ),
    "silu": ActivationFunction(
        lambda x: torch.nn.functional.silu(x), lambda g, x, y: torch.ops.aten.silu_backward(g, x)
    ),
    "gelu": ActivationFunction(
        lambda x: torch.nn.functional.gelu(x), lambda g, x, y: torch.ops.aten.gelu_backward(g, x)
    ),
    "celu": ActivationFunction(
        lambda x: torch.celu_(x, alpha=CELU_ALPHA),
        lambda g, x, y: torch.ops.aten.elu_backward(g, CELU_ALPHA, 1, 1 / CELU_ALPHA, True, y),
    ),
    "gaussian": ActivationFunction(gaussian, lambda g, x, y: g * (x * y).mul_(-2)),
}
