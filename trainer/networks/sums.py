"""Sums over the atoms of each structure."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.features.batches import AtomBatch


def sum_by_structure(energies: Tensor, batch: AtomBatch) -> Tensor:
    """Sum what each atom adds, (n,), to what each structure has, (B,).

    The order of the addends is fixed, on a GPU too, where ``index_add`` would leave it to chance.
    """
    summed: Tensor = _SumByStructure.apply(energies, batch.atoms, batch.owners)  # type: ignore[no-untyped-call]
    return summed


class _SumByStructure(torch.autograd.Function):
    """Each structure gathers its atoms; backward, each atom gathers from its structure."""

    @staticmethod
    def forward(ctx: Any, energies: Tensor, atoms: Tensor, owners: Tensor) -> Tensor:
        ctx.save_for_backward(owners)
        # What fills up the table of atoms points at the zero after the last one.
        return torch.cat([energies, energies.new_zeros(1)])[atoms].sum(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (owners,) = ctx.saved_tensors
        return gradients[0].index_select(0, owners), None, None
