"""Losses by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from trainer.config import Loss

#: A loss is the mean over structures of weight times squared error, hartree^2. The functions compute the
#: weights, (n,), from the numbers of atoms, (n,).
LOSS_WEIGHTS: Final[Mapping[Loss, Callable[[Tensor], Tensor]]] = {
    "mse": torch.ones_like,
    # The error of a sum of N atoms grows like sqrt(N): this way large structures do not outweigh small ones.
    "mse_per_sqrt_atoms": torch.rsqrt,
}
