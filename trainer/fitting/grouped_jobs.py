"""The layers of networks side by side as lists of integers, which tell each operator where its data is.

Atoms are sorted by element: an element owns a range of rows of the batch, and each of its layers in each
network is a job. Jobs are plain integers, because operator schemas support those.
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
from trainer.networks.widths import Widths, widest, widths_of

#: The columns of a hidden layer are padded to a multiple of this.
COLUMNS: Final = 16

#: The rows of a batch are divided into about this many splits, whose sums over rows are computed in parallel:
#: one program for each of the 132 multiprocessors of an H100 or H200, at 384 features and a width of 128, as
#: each has room for one. More splits would write more partial sums.
SPLITS: Final = 44

#: Least number of rows of a split: up to here the loop over them costs less than a second operator.
SPLIT_ROWS: Final = 512

#: Limit of the numbers in the partial sums of an element's network, if it has several splits.
PARTIALS_LIMIT: Final = 2**23

#: Activations that the kernels compute, in the order of their codes there. Networks with another one are
#: computed in plain torch, side by side with such networks only.
KERNEL_ACTIVATIONS: Final = ("relu", "sigmoid", "tanh", "softplus", "silu", "gelu", "celu", "gaussian")


def activation_names() -> tuple[str, ...]:
    """Return the names of all activations; the code of an activation is its index here."""
    return (*KERNEL_ACTIVATIONS, *(name for name in ACTIVATIONS if name not in KERNEL_ACTIVATIONS))


class LayerJob(NamedTuple):
    """A layer of one element in one network.

    Attributes
    ----------
    network : k, the index of the network in its pack
    vector : index of the vector that holds the weights; differs from ``network`` if they are constant
    row, rows : first row and number of rows of the element in the batch
    input_column, inputs : first column of the pre-activations of its input in ``hidden``, and their number,
        I; the column is -1 if the input is an AEV
    output_column, outputs : the same for its output, O; for an output layer the column of ``energies``
    weight, bias : offsets of the (O, I) weights and (O,) biases in the vector
    activation : code of the activation of its input; -1 for an AEV
    noise, noise_width : offset of the noise of the first input of row 0, and the stride between rows; -1
        and 0 without dropout
    partial, partial_stride : offset of the weight gradient of the first split in ``partials``, and the
        stride between splits; the bias gradient follows at the same distance as in the vector
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
        """Return the job of a single split: its rows and its partial sums."""
        start = number * self.split_rows
        return self._replace(
            row=self.row + start,
            rows=min(self.split_rows, self.rows - start),
            partial=self.partial + number * self.partial_stride,
        )


class SumJob(NamedTuple):
    """Partial sums of one element's network: ``splits`` times ``length`` numbers from ``partial`` on.

    Their sum is written to ``target``; both are offsets in ``partials``.
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
    depths : for each depth, the hidden layers of all elements and networks
    outputs : the output layers
    sums : the sums to compute after all partial sums are there
    columns : W, the columns of the hidden layers of all networks
    noise : for each network with dropout, the start and the end of its noise
    gradients : length of the gradient of each network; the gradients are at the start of ``partials``
    partials : length of ``partials``
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
    """Plan the jobs for the models; ``capacities`` are the numbers of rows of their elements.

    How rows are divided depends on the capacities and on the network itself, never on its pack. So its
    numbers do not depend on its pack either.
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
        # Elements own different rows, so their layers of one depth share the columns of the widest.
        width_of_columns = _with_output(model, widest(model.config.hidden))
        columns = list(
            itertools.accumulate((-(-w // COLUMNS) * COLUMNS for w in width_of_columns), initial=column)
        )
        noise_width = columns[-1] - column if training and model.config.dropout else 0
        noise_start = noise[-1][1] if noise else 0
        if noise_width:
            noise.append((noise_start, noise_start + batch * noise_width))
        layers_of_element = len(widest(model.config.hidden)) + 1
        ends = (*offsets[:: 2 * layers_of_element], length)
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
            first = 2 * e * layers_of_element
            widths = _with_output(model, widths_of(model.config.hidden, model.elements[e]))
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
                    activation=activation_names().index(model.config.activation) if depth else -1,
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
    """Flatten jobs to the argument ``int[]`` of an operator."""
    return list(itertools.chain.from_iterable(jobs))


def layer_jobs(numbers: Sequence[int]) -> list[LayerJob]:
    """Invert :func:`flatten` for layer jobs."""
    return [LayerJob(*some) for some in zip(*[iter(numbers)] * len(LayerJob._fields), strict=True)]


def sum_jobs(numbers: Sequence[int]) -> list[SumJob]:
    """Invert :func:`flatten` for sum jobs."""
    return [SumJob(*some) for some in zip(*[iter(numbers)] * len(SumJob._fields), strict=True)]


def _with_output(model: ElementNetworks, widths: Widths) -> Widths:
    """Add an activated output: a hidden layer of width 1, before a constant output layer."""
    return (*widths, 1) if model.config.activate_output else widths


def _depth(model: ElementNetworks) -> int:
    return len(_with_output(model, widest(model.config.hidden)))


def _splits(rows: int, batch: int, size: int) -> tuple[int, int]:
    """Return the number of splits and the rows of each, for an element with these rows and parameters."""
    wanted = max(SPLIT_ROWS, -(-batch // SPLITS))
    splits = max(1, min(-(-rows // wanted), PARTIALS_LIMIT // size))
    split_rows = -(-rows // splits // ROWS) * ROWS
    return -(-rows // split_rows), split_rows
