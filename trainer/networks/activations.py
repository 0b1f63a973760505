"""Activation functions by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from trainer.config import Activation


def gaussian(x: Tensor) -> Tensor:
    """exp(-x^2), as in the ANI-1 paper: Smith, Isayev, Roitberg, Chem. Sci. 8, 3192 (2017)."""
    return torch.exp(-x * x)


ACTIVATIONS: Final[Mapping[Activation, Callable[[Tensor], Tensor]]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": functional.softplus,
    "silu": functional.silu,
    "gelu": functional.gelu,
    # The alpha of ANI-1x and ANI-2x.
    "celu": partial(functional.celu, alpha=0.1),
    "gaussian": gaussian,
}
