"""Energies and gradients of networks side by side, for the atoms of a batch sorted by element.

The number of operators does not depend on the number of networks and elements: each works on one depth, or on
all layers, of all of them. On a GPU an operator is one launch of a Triton kernel
(:mod:`trainer.fitting.grouped_kernels`). On the CPU, in float64, where Triton is missing and for activations
that the kernels do not compute, it is a loop over the layers in plain torch, which rounds where they round.

In a training, a network of one hidden layer takes five operators a step: ``linear``, ``atomic_energies``,
``output_gradient``, ``weight_gradient_partials`` and, for large batches, ``sum_partials``.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from trainer.config import Precision
from trainer.features.static_batches import ROWS
from trainer.fitting.grouped_jobs import KERNEL_ACTIVATIONS, LayerJob, flatten, make_plan
from trainer.fitting.grouped_operators import operators
from trainer.fitting.grouped_tables import layer_table, sum_table
from trainer.networks.model import ElementNetworks

logger = logging.getLogger("anitune")


class GroupedNetworks:
    """K networks and their gradients, for batches in which each element owns a fixed range of rows.

    Element e owns ``capacities[e]`` rows after those of the elements before it. All memory is allocated here
    and keeps its address, so that a CUDA graph can capture :meth:`forward` and :meth:`backward`. Sums over
    rows have a fixed order, and a network's numbers do not depend on the other networks of its pack.

    Parameters
    ----------
    models : networks of the same elements and features; widths, activations and dropouts may differ
    vectors : for each model, (N,) its weights in the layout of :class:`~trainer.fitting.weights.FlatWeights`;
        they are read at their current address
    capacities : rows of each element, multiples of :data:`ROWS`
    precision : precision of the products; not auto
    training : whether to apply dropout and compute gradients

    Attributes
    ----------
    energies : (C + 1, K) of the last forward, hartree; the last row is zero
    gradients : for each model, (N,) after :meth:`backward`; empty if not training
    generators : for each model with dropout, the generator of its noise; empty if not training
    noise : noise of the last forward; for each model with dropout, (C, W_k): a row for each row of the batch
        with the noise of its hidden layers side by side, each padded to a multiple of 16 columns
    """

    def __init__(
        self,
        models: Sequence[ElementNetworks],
        vectors: Sequence[Tensor],
        capacities: Sequence[int],
        precision: Precision,
        *,
        training: bool,
    ) -> None:
        if any(capacity % ROWS for capacity in capacities):
            raise ValueError(f"capacities must be multiples of {ROWS}: {list(capacities)}")
        first = vectors[0].detach()
        rows = sum(capacities)
        self._plan = plan = make_plan(models, capacities, first.device, training)
        self._rows = rows
        self._precision = precision
        # The last vector has the weight 1 and the bias 0 of output layers that pass on their input.
        self._vectors = [*(vector.detach() for vector in vectors), first.new_zeros(2)]
        self._vectors[-1][:1].fill_(1)
        self._keeps = [1.0 - model.config.dropout for model in models]
        hidden_dtype = torch.bfloat16 if precision == "bfloat16" else first.dtype
        self._hidden = first.new_zeros((rows, plan.columns), dtype=hidden_dtype)
        self.energies = first.new_zeros((rows + 1, len(models)))
        with_dropout = [model for model in models if training and model.config.dropout]
        self.generators = tuple(torch.Generator(first.device) for _ in with_dropout)
        self._noise = first.new_zeros(plan.noise[-1][1], dtype=torch.float32) if with_dropout else None
        self.noise: tuple[Tensor, ...] = ()
        if self._noise is not None:
            self.noise = tuple(self._noise[start:end].view(rows, -1) for start, end in plan.noise)
        self.gradients: tuple[Tensor, ...] = ()
        if training:
            self._hidden_gradient = torch.zeros_like(self._hidden)
            self._partials = first.new_zeros(plan.partials)
            self.gradients = torch.split(self._partials[: sum(plan.gradients)], list(plan.gradients))
        kernels = has_kernels(first) and all(map(_in_kernels, models))

        def launch(operator: str, jobs: Sequence[LayerJob]) -> tuple[list[int], Tensor | None]:
            table = (
                layer_table(operator, jobs, self._vectors, self._keeps, precision, rows) if kernels else None
            )
            return flatten(jobs), table

        self._linear = [launch("linear", jobs) for jobs in plan.depths]
        self._atomic_energies = launch("atomic_energies", plan.outputs)
        if training:
            layers = [job for jobs in plan.depths for job in jobs]
            self._output_gradient = launch("output_gradient", plan.outputs)
            self._input_gradients = [launch("input_gradient", jobs) for jobs in reversed(plan.depths[1:])]
            self._weight_gradient_partials = launch("weight_gradient_partials", layers)
            self._sum_partials = flatten(plan.sums), sum_table(plan.sums, first.device) if kernels else None

    @torch.no_grad()
    def forward(self, source: Tensor, rows: Tensor | None) -> Tensor:
        """Compute the energies of the atoms, (C + 1, K) hartree; the last row is zero.

        Parameters
        ----------
        source : (R, F) AEVs in float32, bfloat16 or float64
        rows : (C,) int32, index of the AEV of each row of the batch; None: row c has AEV c
        """
        for noise, generator in zip(self.noise, self.generators, strict=True):
            noise.uniform_(generator=generator)
        first_source: Tensor | None = source
        for jobs, table in self._linear:
            operators.linear(
                self._hidden,
                first_source,
                rows,
                self._noise,
                self._vectors,
                jobs,
                self._keeps,
                self._precision,
                table,
            )
            first_source = rows = None
        jobs, table = self._atomic_energies
        operators.atomic_energies(
            self.energies, self._hidden, self._noise, self._vectors, jobs, self._keeps, table
        )
        return self.energies

    @torch.no_grad()
    def backward(self, source: Tensor, rows: Tensor | None, grad_outputs: Tensor) -> None:
        """Compute ``gradients``, from the input of the last :meth:`forward`.

        Parameters
        ----------
        grad_outputs : (C, K): gradient of the loss by the energy of each atom; 0 for rows without an atom
        """
        shared = self._hidden, self._noise
        jobs, table = self._output_gradient
        operators.output_gradient(
            self._hidden_gradient,
            self._partials,
            *shared,
            grad_outputs,
            self._vectors,
            jobs,
            self._keeps,
            table,
        )
        for jobs, table in self._input_gradients:
            operators.input_gradient(
                self._hidden_gradient, *shared, self._vectors, jobs, self._keeps, self._precision, table
            )
        jobs, table = self._weight_gradient_partials
        operators.weight_gradient_partials(
            self._partials,
            self._hidden_gradient,
            self._hidden,
            source,
            rows,
            self._noise,
            jobs,
            self._keeps,
            self._precision,
            table,
        )
        if self._plan.sums:
            operators.sum_partials(self._partials, *self._sum_partials)


def has_kernels(weights: Tensor) -> bool:
    """Return whether Triton kernels support such weights. Where a GPU lacks them, a warning says why."""
    if weights.device.type != "cuda" or weights.dtype != torch.float32:
        return False
    if torch.version.cuda is None:
        return _without_kernels("this build of torch is not for CUDA")
    if importlib.util.find_spec("triton") is None:
        return _without_kernels("Triton is not installed")
    if torch.cuda.get_device_capability(weights.device) < (8, 0):
        return _without_kernels("the GPU is older than an A100")
    return (fault := _fault_of_triton()) is None or _without_kernels(fault)


def _in_kernels(model: ElementNetworks) -> bool:
    name = model.config.activation
    return name in KERNEL_ACTIVATIONS or _without_kernels(f"they do not compute the activation {name}")


@cache
def _fault_of_triton() -> str | None:
    """Return why Triton cannot launch kernels: for that it builds a library with the machine's C compiler."""
    try:
        _ = importlib.import_module("triton").runtime.driver.active.utils
    except Exception as error:
        return f"Triton cannot be used here: {str(error) or type(error).__name__}"
    return None


@cache
def _without_kernels(why: str) -> bool:
    logger.warning("no fused kernels on the GPU: %s; training is several times slower", why)
    return False
