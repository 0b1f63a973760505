"""Launches of the kernels, one for each operator of :mod:`trainer.fitting.grouped_operators` on a GPU.

Imported only where they are used, as Triton comes only with torch's builds for GPUs. Tile sizes depend only
on the number of rows of the batch, so that a network's numbers do not depend on its pack, except for the
order in which a GPU's threads add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from trainer.config import Precision
from trainer.fitting import grouped_kernels as kernels
from trainer.fitting.grouped_jobs import COLUMNS, layer_jobs
from trainer.fitting.grouped_tables import SUM_COLUMNS, tiles


def linear(
    hidden: Tensor,
    source: Tensor | None,
    rows: Tensor | None,
    noise: Tensor | None,
    vectors: Sequence[Tensor],
    jobs: Sequence[int],
    keeps: Sequence[float],
    precision: Precision,
    table: Tensor,
) -> None:
    x = hidden if source is None else source
    options = _options("linear", precision, len(hidden))
    with _device(hidden):
        kernels.linear_kernel[(len(table),)](
            table,
            hidden,
            hidden.stride(0),
            x,
            x.stride(0),
            x.shape[1],
            _given(rows, hidden),
            _given(noise, hidden),
            FIRST=source is not None,
            GATHER=rows is not None,
            DROPS=noise is not None,
            ALIGNED=_aligned(jobs),
            PRECISION=precision,
            **options,
        )


def atomic_energies(
    energies: Tensor,
    hidden: Tensor,
    noise: Tensor | None,
    vectors: Sequence[Tensor],
    jobs: Sequence[int],
    keeps: Sequence[float],
    table: Tensor,
) -> None:
    options = _options("atomic_energies", "float32", len(hidden))
    with _device(hidden):
        kernels.atomic_energies_kernel[(len(table),)](
            table,
            energies,
            energies.stride(0),
            hidden,
            hidden.stride(0),
            _given(noise, hidden),
            DROPS=noise is not None,
            ALIGNED=_aligned(jobs, outputs=False),
            **options,
        )


def output_gradient(
    hidden_gradient: Tensor,
    partials: Tensor,
    hidden: Tensor,
    noise: Tensor | None,
    grad_outputs: Tensor,
    vectors: Sequence[Tensor],
    jobs: Sequence[int],
    keeps: Sequence[float],
    table: Tensor,
) -> None:
    options = _options("output_gradient", "float32", len(hidden))
    with _device(hidden):
        kernels.output_gradient_kernel[(len(table),)](
            table,
            hidden_gradient,
            partials,
            hidden,
            hidden.stride(0),
            _given(noise, hidden),
            grad_outputs,
            grad_outputs.stride(0),
            DROPS=noise is not None,
            ALIGNED=_aligned(jobs, outputs=False),
            **options,
        )


def input_gradient(
    hidden_gradient: Tensor,
    hidden: Tensor,
    noise: Tensor | None,
    vectors: Sequence[Tensor],
    jobs: Sequence[int],
    keeps: Sequence[float],
    precision: Precision,
    table: Tensor,
) -> None:
    options = _options("input_gradient", precision, len(hidden))
    with _device(hidden):
        kernels.input_gradient_kernel[(len(table),)](
            table,
            hidden_gradient,
            hidden,
            hidden.stride(0),
            _given(noise, hidden),
            DROPS=noise is not None,
            ALIGNED=_aligned(jobs),
            PRECISION=precision,
            **options,
        )


def weight_gradient_partials(
    partials: Tensor,
    hidden_gradient: Tensor,
    hidden: Tensor,
    source: Tensor,
    rows: Tensor | None,
    noise: Tensor | None,
    jobs: Sequence[int],
    keeps: Sequence[float],
    precision: Precision,
    table: Tensor,
) -> None:
    options = _options("weight_gradient_partials", precision, len(hidden))
    with _device(hidden):
        kernels.weight_gradient_kernel[(len(table),)](
            table,
            partials,
            hidden_gradient,
            hidden,
            hidden.stride(0),
            source,
            source.stride(0),
            source.shape[1],
            _given(rows, hidden),
            _given(noise, hidden),
            DEEP=any(job.input_column >= 0 for job in layer_jobs(jobs)),
            GATHER=rows is not None,
            DROPS=noise is not None,
            ALIGNED=_aligned(jobs),
            PRECISION=precision,
            **options,
        )


def sum_partials(partials: Tensor, jobs: Sequence[int], table: Tensor) -> None:
    with _device(partials):
        kernels.sum_partials_kernel[(len(table),)](
            table, partials, BLOCK=SUM_COLUMNS, num_warps=4, enable_fp_fusion=True
        )


def _device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's device current, because Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _given(tensor: Tensor | None, other: Tensor) -> Tensor:
    """Return the tensor, or ``other`` as a placeholder for a tensor that the kernel does not read."""
    return other if tensor is None else tensor


def _aligned(jobs: Sequence[int], outputs: bool = True) -> bool:
    """Return whether the widths of hidden layers are multiples of ``COLUMNS``, so that they have no padding.

    ``outputs``: whether the outputs of the jobs are hidden layers
    """
    return all(
        (job.input_column < 0 or job.inputs % COLUMNS == 0) and (not outputs or job.outputs % COLUMNS == 0)
        for job in layer_jobs(jobs)
    )


def _options(operator: str, precision: Precision, batch: int) -> dict[str, int]:
    size = tiles(operator, precision, batch)
    options = {
        "BLOCK_ROWS": size.rows,
        "BLOCK_COLUMNS": size.columns,
        "num_warps": size.warps,
        "num_stages": size.stages,
        # Triton's default changes with its version.
        "enable_fp_fusion": True,
    }
    return {**options, "BLOCK_INNER": size.inner} if size.inner else options
