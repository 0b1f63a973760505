"""Losses by name. It imports no torch before one is used: their names are the choices of a setting."""

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


@dataclass(frozen=True)
class LossFunction:
    """The mean over structures of weight times squared error, hartree^2.

    Attributes
    ----------
    summary : what it is, for the description of the setting
    weights : computes the weights, (n,), from the numbers of atoms, (n,)
    """

    summary: str
    weights: Callable[[Tensor], Tensor]


LOSSES: Final[Mapping[str, LossFunction]] = {
    "mse": LossFunction("squared error", lambda atoms: torch.ones_like(atoms)),
    # The error of a sum of N atoms grows like sqrt(N): this way large structures do not outweigh small ones.
    "mse_per_sqrt_atoms": LossFunction(
        "squared error over the square root of the number of atoms", lambda atoms: torch.rsqrt(atoms)
    ),
}
