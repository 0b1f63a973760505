"""Operators on the layers of networks side by side, in plain torch or, on a GPU, as Triton kernels.

Each takes its jobs as integers (:func:`trainer.fitting.grouped_jobs.flatten`), and for its kernel a table of
what each program works on. Without a table, it loops over the jobs in plain torch: on the CPU, in float64 and
where Triton is missing. It rounds where the kernels round.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from trainer.config import Precision
from trainer.fitting.grouped_jobs import LayerJob, activation_names, layer_jobs, sum_jobs
from trainer.networks.activations import ACTIVATIONS, ActivationFunction


def linear(
    hidden: Tensor,
    source: Tensor | None,
    rows: Tensor | None,
    noise: Tensor | None,
    vectors: Sequence[Tensor],
    jobs: Sequence[int],
    keeps: Sequence[float],
    precision: Precision,
    table: Tensor | None,
) -> None:
    """Write pre-activations of hidden layers of one depth to ``hidden``; first layers read ``source``."""
    for job in layer_jobs(jobs):
        weight, bias = _weights(job, vectors[job.vector])
        x = _rounded(_input(job, hidden, source, rows, noise, keeps, weight.dtype), precision)
        _columns(job, hidden, job.output_column, job.outputs).copy_(
            torch.addmm(bias, x, _rounded(weight, precision).t())
        )


def atomic_energies(
    energies: Tensor,
    hidden: Tensor,
    noise: Tensor | None,
    vectors: Sequence[Tensor],
    jobs: Sequence[int],
    keeps: Sequence[float],
    table: Tensor | None,
) -> None:
    """Compute the energies of all atoms, always from unrounded numbers."""
    for job in layer_jobs(jobs):
        weight, bias = _weights(job, vectors[job.vector])
        x = _input(job, hidden, None, None, noise, keeps, energies.dtype)
        _columns(job, energies, job.output_column, 1).copy_(torch.addmm(bias, x, weight.t()))


def output_gradient(
    hidden_gradient: Tensor,
    partials: Tensor,
    hidden: Tensor,
    noise: Tensor | None,
    grad_outputs: Tensor,
    vectors: Sequence[Tensor],
    jobs: Sequence[int],
    keeps: Sequence[float],
    table: Tensor | None,
) -> None:
    """Compute the gradients of last hidden layers and, in ``partials``, of the weights of output layers."""
    for job in layer_jobs(jobs):
        weight, _ = _weights(job, vectors[job.vector])
        grad_output = _columns(job, grad_outputs, job.output_column, 1)
        if job.trained:
            for number in range(job.splits):
                some = job.split(number)
                x = _input(some, hidden, None, None, noise, keeps, partials.dtype)
                _store_partials(some, partials, _columns(some, grad_outputs, some.output_column, 1), x)
        _store_input_gradient(job, hidden_gradient, hidden, noise, keeps, grad_output * weight)


def input_gradient(
    hidden_gradient: Tensor,
    hidden: Tensor,
    noise: Tensor | None,
    vectors: Sequence[Tensor],
    jobs: Sequence[int],
    keeps: Sequence[float],
    precision: Precision,
    table: Tensor | None,
) -> None:
    """Compute the gradients of the inputs of hidden layers of one depth, from those of their outputs."""
    for job in layer_jobs(jobs):
        weight, _ = _weights(job, vectors[job.vector])
        over_output = _columns(job, hidden_gradient, job.output_column, job.outputs).to(weight.dtype)
        over_activation = _rounded(over_output.contiguous(), precision) @ _rounded(weight, precision)
        _store_input_gradient(job, hidden_gradient, hidden, noise, keeps, over_activation)


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
    table: Tensor | None,
) -> None:
    """Compute the gradients of the weights of all hidden layers, summed over the rows of each split."""
    for job in layer_jobs(jobs):
        for number in range(job.splits):
            some = job.split(number)
            x = _input(some, hidden, source, rows, noise, keeps, partials.dtype)
            over_output = _columns(some, hidden_gradient, job.output_column, job.outputs).to(x.dtype)
            _store_partials(some, partials, over_output.contiguous(), x, precision)


def sum_partials(partials: Tensor, jobs: Sequence[int], table: Tensor | None) -> None:
    """Add up the sums of the splits, in their order."""
    for target, partial, length, splits in sum_jobs(jobs):
        total = partials[target : target + length]
        total.copy_(partials[partial : partial + length])
        for number in range(1, splits):
            total.add_(partials[partial + number * length : partial + (number + 1) * length])


def _weights(job: LayerJob, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights (O, I) and biases (O,)."""
    weight = vector[job.weight : job.weight + job.outputs * job.inputs].view(job.outputs, job.inputs)
    return weight, vector[job.bias : job.bias + job.outputs]


def _columns(job: LayerJob, table: Tensor, column: int, count: int) -> Tensor:
    """Return the rows of the job in these columns, (n, count)."""
    return table[job.row : job.row + job.rows, column : column + count]


def _input(
    job: LayerJob,
    hidden: Tensor,
    source: Tensor | None,
    rows: Tensor | None,
    noise: Tensor | None,
    keeps: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """Return the input that a layer multiplies with its weights, (n, I)."""
    if job.input_column < 0:
        assert source is not None
        place = slice(job.row, job.row + job.rows)
        return (source[place] if rows is None else source.index_select(0, rows[place])).to(dtype)
    before, _ = _before_activation(job, hidden, noise, keeps, dtype)
    return _activation(job).value(before)


def _before_activation(
    job: LayerJob, hidden: Tensor, noise: Tensor | None, keeps: Sequence[float], dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Return a copy of a layer's input before the activation, (n, I), and the factors of its dropout."""
    before = _columns(job, hidden, job.input_column, job.inputs).to(dtype, copy=True).contiguous()
    if job.noise < 0:
        return before, None
    assert noise is not None
    keep = keeps[job.network]
    drawn = noise.as_strided(before.shape, (job.noise_width, 1), job.noise + job.row * job.noise_width)
    scale = (drawn < keep).to(dtype).mul_(1 / keep)
    return before.mul_(scale), scale


def _activation(job: LayerJob) -> ActivationFunction:
    return ACTIVATIONS[activation_names()[job.activation]]


def _store_input_gradient(
    job: LayerJob,
    hidden_gradient: Tensor,
    hidden: Tensor,
    noise: Tensor | None,
    keeps: Sequence[float],
    over_activation: Tensor,
) -> None:
    """Backpropagate through activation and dropout of a layer's input; may overwrite the gradient (n, I)."""
    before, scale = _before_activation(job, hidden, noise, keeps, over_activation.dtype)
    activation = _activation(job)
    over_input = activation.backward(over_activation, before, activation.value(before))
    if scale is not None:
        over_input.mul_(scale)
    _columns(job, hidden_gradient, job.input_column, job.inputs).copy_(over_input)


def _store_partials(
    job: LayerJob, partials: Tensor, over_output: Tensor, x: Tensor, precision: Precision = "float32"
) -> None:
    """Store the gradients of weights and biases, from (n, O) and (n, I)."""
    product = _rounded(over_output, precision).t() @ _rounded(x, precision)
    bias = job.partial + job.bias - job.weight
    partials[job.partial : job.partial + product.numel()].copy_(product.flatten())
    partials[bias : bias + job.outputs].copy_(over_output.sum(0))


def _rounded(factor: Tensor, precision: Precision) -> Tensor:
    """Round an operand of a product as the hardware takes it; return it in the dtype of the sums."""
    if precision == "bfloat16":
        return factor.to(torch.bfloat16).to(factor.dtype)
    if precision == "tf32":
        # Ten bits of the mantissa remain; rounds to the nearest number, ties away from zero.
        return factor.contiguous().view(torch.int32).add(1 << 12).bitwise_and_(-(1 << 13)).view(torch.float32)
    return factor


@cache
def _launches() -> ModuleType:
    return importlib.import_module("trainer.fitting.grouped_launches")


def _choose(plain: Callable[..., None]) -> Callable[..., None]:
    """Return a function that calls the kernel of the same name if the last argument, the table, is given."""

    def run(*arguments: Any) -> None:
        function = plain if arguments[-1] is None else getattr(_launches(), plain.__name__)
        function(*arguments)

    return run


_JOBS: Final = "int[] jobs, float[] keeps"

_SCHEMAS: Final[Mapping[Callable[..., None], str]] = {
    linear: "Tensor(a!) hidden, Tensor? source, Tensor? rows, Tensor? noise, Tensor[] vectors, "
    f"{_JOBS}, str precision, Tensor? table",
    atomic_energies: f"Tensor(a!) energies, Tensor hidden, Tensor? noise, Tensor[] vectors, {_JOBS}, "
    "Tensor? table",
    output_gradient: "Tensor(a!) hidden_gradient, Tensor(b!) partials, Tensor hidden, Tensor? noise, "
    f"Tensor grad_outputs, Tensor[] vectors, {_JOBS}, Tensor? table",
    input_gradient: "Tensor(a!) hidden_gradient, Tensor hidden, Tensor? noise, Tensor[] vectors, "
    f"{_JOBS}, str precision, Tensor? table",
    weight_gradient_partials: "Tensor(a!) partials, Tensor hidden_gradient, Tensor hidden, Tensor source, "
    f"Tensor? rows, Tensor? noise, {_JOBS}, str precision, Tensor? table",
    sum_partials: "Tensor(a!) partials, int[] jobs, Tensor? table",
}

_library = torch.library.Library("anitune", "DEF")  # type: ignore[no-untyped-call]
for _plain, _arguments in _SCHEMAS.items():
    _library.define(f"{_plain.__name__}({_arguments}) -> ()")  # type: ignore[no-untyped-call]
    for _key in ("CPU", "CUDA"):
        _library.impl(_plain.__name__, _choose(_plain), _key)  # type: ignore[no-untyped-call]
operators = torch.ops.anitune
