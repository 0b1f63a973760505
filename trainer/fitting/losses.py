"""Losses by name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from trainer.config import Loss

#: From errors (B,) in hartree and numbers of atoms (B,) to the loss in hartree^2.
LOSSES: dict[Loss, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mse": lambda errors, atoms: errors.square().mean(),
    # The error of a sum of N atoms grows like sqrt(N): so large structures do not outweigh small ones.
    "mse_per_sqrt_atoms": lambda errors, atoms: (errors.square() / atoms.sqrt()).mean(),
}
