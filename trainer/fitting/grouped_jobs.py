"""The layers of networks side by side as lists of integers: where each operator finds what it works on.

Atoms are sorted by element: an element owns a range of rows of the batch, and each of its layers in each
network is a job. Jobs are plain integers, because the schemas of operators know those.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch

from trainer.features.static_batches import ROWS
from trainer.fitting.weights import parameter_offsets
from trainer.networks.activations import ACTIVATIONS
from trainer.networks.model import ElementNetworks

#: The columns of a hidden layer are filled up to a multiple of this.
COLUMNS: Final = 16

#: The rows of a batch are divided into about so many splits, whose sums over rows run side by side: a program
#: for each of the 132 multiprocessors of an H100 or H200 at 384 features and a width of 128, as there is room
#: for one on each. More of them would write more partial sums.
SPLITS: Final = 44

#: A split has at least so many rows: up to here the loop over them costs less than a second operator.
SPLIT_ROWS: Final = 512

#: The partial sums of an element's network take at most so many numbers, where several splits are left.
PARTIALS_LIMIT: Final = 2**23

#: The code of an activation is its place here.
ACTIVATION_NAMES: Final = tuple(ACTIVATIONS)


class LayerJob(NamedTuple):
    """A layer of one element in one network.

    Attributes
    ----------
    network : k, the place of the network in its pack
    vector : which of the vectors holds the weights; not ``network`` if they are constant
    row, rows : the rows of the element in the batch
    input_column, inputs : where the pre-activations of its input are in ``hidden``, and how many, I; the
        column is -1 if the input is an AEV
    output_column, outputs : the same of its output, O; of an output layer the column of ``energies``
    weight, bias : where (O, I) weights and (O,) biases begin in the vector
    activation : code of the function of its input; -1 for an AEV
    noise, noise_width : where the noise of the first input of row 0 is, and from there to the next row; -1
        and 0 if nothing is dropped
    partial, partial_stride : where the gradient over the weights of the first split is in ``partials``, and
        from there to the next split; the biases are as far behind it as in the vector
    splits, split_rows : how the rows are divided for the sums over rows
    """

    network: int
    vector: int
    row: int
    rows: int
    input_column: int
    inputs: int
    output_column: int
    outputs: int
    weight: int
    bias: int
    activation: int
    noise: int
    noise_width: int
    partial: int
    partial_stride: int
    splits: int
    split_rows: int

    @property
    def trained(self) -> bool:
        return self.vector == self.network

    def split(self, number: int) -> LayerJob:
        """The job of one split alone: its rows and its partial sums."""
        start = number * self.split_rows
        return self._replace(
            row=self.row + start,
            rows=min(self.split_rows, self.rows - start),
            partial=self.partial + number * self.partial_stride,
        )


class SumJob(NamedTuple):
    """Partial sums of one element's network: ``splits`` times ``length`` numbers from ``partial`` on.

    Their sum goes to ``target``; all are places in ``partials``.
    """

    target: int
    partial: int
    length: int
    splits: int


@dataclass(frozen=True)
class KernelPlan:
    """All jobs of networks side by side.

    Attributes
    ----------
    depths : of each depth, the hidden layers of all elements and networks
    outputs : the output layers
    sums : what is added up after all partial sums are there
    columns : W, of the hidden layers of all networks
    noise : for each network with dropout, the begin and the end of its noise
    gradients : length of the gradient of each network; they are the begin of ``partials``
    partials : numbers in ``partials``
    """

    depths: tuple[tuple[LayerJob, ...], ...]
    outputs: tuple[LayerJob, ...]
    sums: tuple[SumJob, ...]
    columns: int
    noise: tuple[tuple[int, int], ...]
    gradients: tuple[int, ...]
    partials: int


def make_plan(
    models: Sequence[ElementNetworks], capacities: Sequence[int], device: torch.device, training: bool
) -> KernelPlan:
    """Jobs for the models, whose elements have so many rows each.

    How rows are divided depends on the capacities and on the network itself, never on its pack: so do
    its numbers.
    """
    layouts = [parameter_offsets(model, device) for model in models]
    gradients = tuple(length for _, length in layouts)
    batch = sum(capacities)
    layers: list[list[LayerJob]] = [[] for _ in range(max(_depth(model) for model in models))]
    outputs: list[LayerJob] = []
    sums: list[SumJob] = []
    noise: list[tuple[int, int]] = []
    column = 0
    partials = sum(gradients)
    for k, (model, (offsets, length)) in enumerate(zip(models, layouts, strict=True)):
        widths = _widths(model)
        columns = list(itertools.accumulate((-(-w // COLUMNS) * COLUMNS for w in widths), initial=column))
        noise_width = columns[-1] - column if training and model.config.dropout else 0
        noise_start = noise[-1][1] if noise else 0
        if noise_width:
            noise.append((noise_start, noise_start + batch * noise_width))
        ends = (*offsets[:: 2 * (len(model.config.hidden) + 1)], length)
        for e, (row, rows) in enumerate(
            zip(itertools.accumulate(capacities, initial=0), capacities, strict=False)
        ):
            if not rows:
                continue  # its gradient stays zero
            start, size = ends[e], ends[e + 1] - ends[e]
            splits, split_rows = _splits(rows, batch, size)
            target = sum(gradients[:k]) + start
            partial = target
            if splits > 1:
                partial = partials
                sums.append(SumJob(target, partial, size, splits))
                partials += splits * size
            first = 2 * e * (len(model.config.hidden) + 1)
            for depth, (inputs, width) in enumerate(itertools.pairwise((model.input_size, *widths, 1))):
                is_output = depth == len(widths)
                constant = is_output and model.config.activate_output
                weight, bias = (0, 1) if constant else offsets[first + 2 * depth :][:2]
                drops = depth > 0 and noise_width > 0
                job = LayerJob(
                    network=k,
                    vector=len(models) if constant else k,
                    row=row,
                    rows=rows,
                    input_column=columns[depth - 1] if depth else -1,
                    inputs=inputs,
                    output_column=k if is_output else columns[depth],
                    outputs=width,
                    weight=weight,
                    bias=bias,
                    activation=ACTIVATION_NAMES.index(model.config.activation) if depth else -1,
                    noise=noise_start + columns[depth - 1] - column if drops else -1,
                    noise_width=noise_width if drops else 0,
                    partial=0 if constant else partial + weight - start,
                    partial_stride=size,
                    splits=splits,
                    split_rows=split_rows,
                )
                (outputs if is_output else layers[depth]).append(job)
        column = columns[-1]
    return KernelPlan(
        depths=tuple(tuple(jobs) for jobs in layers),
        outputs=tuple(outputs),
        sums=tuple(sums),
        columns=column,
        noise=tuple(noise),
        gradients=gradients,
        partials=partials,
    )


def flatten(jobs: Sequence[LayerJob] | Sequence[SumJob]) -> list[int]:
    """Jobs as the argument ``int[]`` of an operator."""
    return list(itertools.chain.from_iterable(jobs))


def layer_jobs(numbers: Sequence[int]) -> list[LayerJob]:
    """The inverse of :func:`flatten`."""
    return [LayerJob(*some) for some in zip(*[iter(numbers)] * len(LayerJob._fields), strict=True)]


def sum_jobs(numbers: Sequence[int]) -> list[SumJob]:
    """The inverse of :func:`flatten`."""
    return [SumJob(*some) for some in zip(*[iter(numbers)] * len(SumJob._fields), strict=True)]


def _widths(model: ElementNetworks) -> tuple[int, ...]:
    """Of the hidden layers. An activated output is one of width 1, before an output that passes it on."""
    return (*model.config.hidden, 1) if model.config.activate_output else model.config.hidden


def _depth(model: ElementNetworks) -> int:
    return len(_widths(model))


def _splits(rows: int, batch: int, size: int) -> tuple[int, int]:
    """Number of splits of an element with so many rows and parameters, and rows of each."""
    wanted = max(SPLIT_ROWS, -(-batch // SPLITS))
    splits = max(1, min(-(-rows // wanted), PARTIALS_LIMIT // size))
    split_rows = -(-rows // splits // ROWS) * ROWS
    return -(-rows // split_rows), split_rows
