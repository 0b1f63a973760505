"""Tables of the tile and layer that each program of a kernel computes, with a row of integers per program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.config import Precision
from trainer.features.batches import to_device
from trainer.fitting.grouped_jobs import LayerJob, SumJob

#: What a program needs to know: its rows of the batch; the first column of its tile and, for the gradient of
#: weights, the first output; and its layer (:class:`~trainer.fitting.grouped_jobs.LayerJob`), with addresses
#: in place of offsets. ``keep`` has the bits of a float32. ``noise``, ``partial`` and ``bias_partial`` are
#: :data:`NOWHERE` without dropout, without training, or if another program sums up the biases.
FIELDS: Final = (
    "row",
    "row_end",
    "tile_column",
    "tile_output",
    "input_column",
    "inputs",
    "output_column",
    "outputs",
    "weight",
    "bias",
    "activation",
    "noise",
    "noise_width",
    "keep",
    "partial",
    "bias_partial",
)

#: An offset that stays negative whatever is added to it.
NOWHERE: Final = -(2**40)

#: Batches with at least this many rows use large tiles.
LARGE_BATCH: Final = 16384

#: Number of columns that a program of ``sum_partials`` adds up.
SUM_COLUMNS: Final = 256


class Tiles(NamedTuple):
    """Tile size of a program: rows, columns, and the block size of the dimension that is summed over.

    For the gradient of weights the tile is outputs times inputs, and the sum is over rows of the batch. A
    program of ``output_gradient`` goes through the rows of its split. ``inner`` is 0 for operators without
    matrix products.
    """

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


def tiles(operator: str, precision: Precision, batch: int) -> Tiles:
    """Choose the tile size for a batch of ``batch`` rows.

    Large batches are bound by memory: up to 128 columns the input is read once. Small ones take as long as
    their longest program, so the work is divided among many programs.
    """
    large = batch >= LARGE_BATCH
    match operator:
        case "atomic_energies":
            return Tiles(32, 128, 0, 4, 1) if large else Tiles(16, 64, 0, 4, 1)
        case "output_gradient":
            return Tiles(64, 32, 0, 4, 3) if large else Tiles(32, 32, 0, 4, 3)
    if not large:
        return Tiles(32, 32, 32 if precision == "float32" else 64, 4, 3)
    if precision == "float32":
        return Tiles(64, 128, 16, 8, 3)
    # The activation that follows needs registers for the tile.
    return Tiles(64 if operator == "input_gradient" else 128, 128, 32, 8, 3)


def layer_table(
    operator: str,
    jobs: Sequence[LayerJob],
    vectors: Sequence[Tensor],
    keeps: Sequence[float],
    precision: Precision,
    batch: int,
) -> Tensor:
    """Build the table of an operator on layers, (programs, fields) int64 on the device of the vectors.

    Programs that read the same rows are adjacent, so that they find them in the cache.
    """
    addresses = [vector.data_ptr() for vector in vectors]
    programs = np.concatenate(
        [
            _programs(
                job, _places(operator, job, precision, batch), addresses[job.vector], keeps[job.network]
            )
            for job in jobs
        ]
    )
    programs = programs[np.argsort(programs[:, FIELDS.index("row")], kind="stable")]
    return to_device(torch.from_numpy(programs), vectors[0].device)


def sum_table(jobs: Sequence[SumJob], device: torch.device) -> Tensor:
    """Build the table of ``sum_partials``, (programs, 5) int64: a job and its first column."""
    programs = [(*job, column) for job in jobs for column in range(0, job.length, SUM_COLUMNS)]
    return to_device(torch.from_numpy(np.array(programs, dtype=np.int64)), device)


def _places(operator: str, job: LayerJob, precision: Precision, batch: int) -> np.ndarray:
    """Return the tiles of a job: first row, end of the rows, first column and first output, (tiles, 4)."""
    size = tiles(operator, precision, batch)
    step, columns, outputs = {
        "linear": (size.rows, range(0, job.outputs, size.columns), range(1)),
        "atomic_energies": (size.rows, range(1), range(1)),
        "output_gradient": (job.split_rows, range(0, job.inputs, size.columns), range(1)),
        "input_gradient": (size.rows, range(0, job.inputs, size.columns), range(1)),
        "weight_gradient_partials": (
            job.split_rows,
            range(0, job.inputs, size.columns),
            range(0, job.outputs, size.rows),
        ),
    }[operator]
    found = [
        (row, min(row + step, job.rows), column, output)
        for row in range(0, job.rows, step)
        for output in outputs
        for column in columns
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 4)


def _programs(job: LayerJob, places: np.ndarray, address: int, keep: float) -> np.ndarray:
    """Return the rows of the table for the tiles of a job, (tiles, fields)."""
    split = places[:, 0] // job.split_rows
    partial = np.where(job.trained, job.partial + split * job.partial_stride, NOWHERE)
    size = 4  # bytes of a weight
    values: dict[str, int | np.ndarray] = {
        "row": job.row + places[:, 0],
        "row_end": job.row + places[:, 1],
        "tile_column": places[:, 2],
        "tile_output": places[:, 3],
        "input_column": job.input_column,
        "inputs": job.inputs,
        "output_column": job.output_column,
        "outputs": job.outputs,
        "weight": address + size * job.weight,
        "bias": address + size * job.bias,
        "activation": job.activation,
        "noise": job.noise if job.noise >= 0 else NOWHERE,
        "noise_width": job.noise_width,
        "keep": int(np.float32(keep).view(np.int32)),
        "partial": partial,
        "bias_partial": np.where(places[:, 2] == 0, partial + job.bias - job.weight, NOWHERE),
    }
    programs = np.empty((len(places), len(FIELDS)), dtype=np.int64)
    for place, field in enumerate(FIELDS):
        programs[:, place] = values[field]
    return programs
