"""Bytes that the operators of :mod:`trainer.fitting.grouped_operators` move in the memory of a GPU.

As for torch's own operators, each number that an operator reads or writes counts once. Programs that share
rows or weights read them again, from the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from torch import Tensor

from trainer.fitting.grouped_jobs import LayerJob, layer_jobs, sum_jobs


def _linear(
    hidden: Tensor,
    source: Tensor | None,
    rows: Tensor | None,
    noise: Tensor | None,
    vectors: Sequence[Tensor],
    jobs: Sequence[int],
    *_: object,
) -> int:
    return _aevs(hidden, source, rows) + sum(
        _hidden_input(job, hidden) + _weights(job, vectors[job.vector]) + _hidden_output(job, hidden)
        for job in layer_jobs(jobs)
    )


def _atomic_energies(
    energies: Tensor,
    hidden: Tensor,
    noise: Tensor | None,
    vectors: Sequence[Tensor],
    jobs: Sequence[int],
    *_: object,
) -> int:
    return sum(
        _hidden_input(job, hidden) + _weights(job, energies) + job.rows * energies.element_size()
        for job in layer_jobs(jobs)
    )


def _output_gradient(
    hidden_gradient: Tensor,
    partials: Tensor,
    hidden: Tensor,
    noise: Tensor | None,
    grad_outputs: Tensor,
    vectors: Sequence[Tensor],
    jobs: Sequence[int],
    *_: object,
) -> int:
    return sum(
        _hidden_input(job, hidden)
        + job.rows * (grad_outputs.element_size() + job.inputs * hidden_gradient.element_size())
        + _weights(job, partials) * (1 + job.splits * job.trained)
        for job in layer_jobs(jobs)
    )


def _input_gradient(
    hidden_gradient: Tensor,
    hidden: Tensor,
    noise: Tensor | None,
    vectors: Sequence[Tensor],
    jobs: Sequence[int],
    *_: object,
) -> int:
    return sum(
        _hidden_input(job, hidden)
        + _weights(job, vectors[job.vector])
        + job.rows * (job.inputs + job.outputs) * hidden_gradient.element_size()
        for job in layer_jobs(jobs)
    )


def _weight_gradient_partials(
    partials: Tensor,
    hidden_gradient: Tensor,
    hidden: Tensor,
    source: Tensor,
    rows: Tensor | None,
    noise: Tensor | None,
    jobs: Sequence[int],
    *_: object,
) -> int:
    return _aevs(hidden, source, rows) + sum(
        _hidden_input(job, hidden)
        + _hidden_output(job, hidden_gradient)
        + _weights(job, partials) * job.splits
        for job in layer_jobs(jobs)
    )


def _sum_partials(partials: Tensor, jobs: Sequence[int], *_: object) -> int:
    return sum(length * (splits + 1) for _, _, length, splits in sum_jobs(jobs)) * partials.element_size()


def _aevs(hidden: Tensor, source: Tensor | None, rows: Tensor | None) -> int:
    """Bytes of all AEVs of the batch, and of their indices."""
    if source is None:
        return 0
    index = 0 if rows is None else rows.element_size()
    return len(hidden) * (source.shape[1] * source.element_size() + index)


def _hidden_input(job: LayerJob, hidden: Tensor) -> int:
    """Bytes of the input of a layer other than the first, and of the noise that decides on dropout."""
    if job.input_column < 0:
        return 0
    return job.rows * job.inputs * (hidden.element_size() + 4 * (job.noise >= 0))


def _hidden_output(job: LayerJob, hidden: Tensor) -> int:
    return job.rows * job.outputs * hidden.element_size()


def _weights(job: LayerJob, vector: Tensor) -> int:
    return (job.inputs + 1) * job.outputs * vector.element_size()


#: For each operator, a function of its arguments that returns the bytes.
TRAFFIC: Final[Mapping[str, Callable[..., int]]] = {
    "anitune::linear": _linear,
    "anitune::atomic_energies": _atomic_energies,
    "anitune::output_gradient": _output_gradient,
    "anitune::input_gradient": _input_gradient,
    "anitune::weight_gradient_partials": _weight_gradient_partials,
    "anitune::sum_partials": _sum_partials,
}
