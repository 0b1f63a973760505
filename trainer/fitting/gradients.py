"""Gradients of the loss of a network on the CPU, written out layer by layer.

The networks are so small that the bookkeeping of automatic differentiation takes longer than the arithmetic.
Here each product of matrices is one call that adds to its place in the gradient. On a GPU
:mod:`trainer.fitting.grouped_networks` does the same for many networks at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from trainer.config import Precision, TrainConfig
from trainer.features.batches import AtomBatch
from trainer.networks.activations import ACTIVATIONS
from trainer.networks.model import ElementNetworks

#: Type that the operands of the products of hidden layers are rounded to, by ``TrainConfig.precision``; sums
#: are float32.
OPERAND_DTYPES: Final[Mapping[Precision, torch.dtype]] = {"bfloat16": torch.bfloat16}

#: The number of rows of rounded operands is padded to a multiple of this.
ROWS: Final = 64

Backward = Callable[[Tensor], Tensor]
"""Maps the gradient of an output to that of the input, and adds the gradients of the weights on the way."""


class Gradient:
    """The gradient of the loss of a network, summed up over micro-batches of a batch.

    Each thread that works on a batch has its own instance.

    Attributes
    ----------
    vector : (P,) the gradient in the order of the network's parameters, after :meth:`finish`
    """

    def __init__(self, model: ElementNetworks) -> None:
        parameters = list(model.parameters())
        self.vector = parameters[0].new_zeros(model.parameter_count)
        self._drops = bool(model.config.dropout)
        self._dropout = torch.Generator(parameters[0].device)
        parts = torch.split(self.vector, [p.numel() for p in parameters])
        views = (part.view_as(p) for part, p in zip(parts, parameters, strict=True))
        self._elements = [
            _ElementNetwork(
                [_Layer(layer, next(views), next(views)) for layer in model.layers(e)],
                model.config,
                self._dropout,
            )
            for e in range(len(model.elements))
        ]

    def start(self) -> None:
        """Reset the sum, and read the current weights."""
        self.vector.zero_()
        for element in self._elements:
            element.start()

    def add(self, batch: AtomBatch, target: Tensor, weight: Tensor, seed: int) -> Tensor:
        """Add the gradient of the sum of ``weight`` times squared error over the structures of ``batch``.

        Parameters
        ----------
        target, weight : (B,) energies, hartree, and the weight of the squared error of each structure
        seed : decides which neurons are dropped

        Returns
        -------
        The sum of the weighted squared errors, (1,).
        """
        if self._drops:
            self._dropout.manual_seed(seed)
        passes = [
            self._elements[element].forward(aevs, columns)
            for element, columns, aevs in zip(batch.elements, batch.columns, batch.aevs, strict=True)
        ]
        energies = batch.sums.over_structures([of_atoms for of_atoms, _ in passes])
        error = energies - target[:, None]
        weighted = error * weight[:, None]
        grad_outputs = batch.sums.to_atoms(weighted * 2)
        for (_, backward), grad_output in zip(passes, grad_outputs, strict=True):
            backward(grad_output)
        return (weighted * error).sum(0)

    def finish(self) -> None:
        """Write the accumulated gradient to ``vector``."""
        for element in self._elements:
            element.finish()


class _Layer:
    """A layer with views of the gradient for its weight (O, I) and bias (O,)."""

    def __init__(self, layer: torch.nn.Linear, weight_gradient: Tensor, bias_gradient: Tensor) -> None:
        self.weight, self.bias = layer.weight.detach(), layer.bias.detach()
        self.weight_gradient, self.bias_gradient = weight_gradient, bias_gradient


class _ElementNetwork:
    """The network of one element."""

    def __init__(self, layers: list[_Layer], config: TrainConfig, dropout: torch.Generator) -> None:
        self._first, *self._later = layers
        self._config = config
        self._dropout = dropout
        self._low = OPERAND_DTYPES.get(config.precision)
        # The operand and its gradient for each choice of columns since the start.
        self._chosen: dict[int, tuple[Tensor | None, Tensor, Tensor]] = {}
        self.start()

    def start(self) -> None:
        """Read the current weights."""
        self._chosen.clear()
        self._operands = [self._operand(layer) for layer in self._later]

    def _operand(self, layer: _Layer) -> Tensor:
        """Return the weight as an operand. The single column of an output gains nothing from rounding."""
        if self._low is None or layer is self._later[-1]:
            return layer.weight
        return layer.weight.to(self._low)

    def forward(self, aevs: Tensor, columns: Tensor | None) -> tuple[Tensor, Callable[[Tensor], None]]:
        """Compute the energies of the atoms, (n, 1) from (n, F_e); return them and a backward function."""
        x = aevs if self._low is None else _rounded(aevs, self._low)
        weight, gradient = self._choose(columns)
        output, activation_back = self._activate(_linear(x, weight, self._first.bias, len(aevs)))
        backs: list[Backward] = []
        for layer, operand in zip(self._later, self._operands, strict=True):
            output, back = self._pass(layer, operand, output)
            backs.append(back)

        def backward(grad_output: Tensor) -> None:
            for back in reversed(backs):
                grad_output = back(grad_output)
            grad_output = activation_back(grad_output)
            self._first.bias_gradient.add_(grad_output.sum(0))
            _add_product(gradient, grad_output, x)

        return output, backward

    def _pass(self, layer: _Layer, operand: Tensor, x: Tensor) -> tuple[Tensor, Backward]:
        """Compute a later layer, and return its activated output with its backward function."""
        rows, low = len(x), operand.dtype != layer.weight.dtype
        if low:
            x = _rounded(x, operand.dtype)
        output = _linear(x, operand, layer.bias, rows)
        activation_back: Backward | None = None
        if layer is not self._later[-1] or self._config.activate_output:
            output, activation_back = self._activate(output)

        def backward(grad_output: Tensor) -> Tensor:
            if activation_back is not None:
                grad_output = activation_back(grad_output)
            layer.bias_gradient.add_(grad_output.sum(0))
            _add_product(layer.weight_gradient, grad_output, x)
            return _times(grad_output, operand) if low else grad_output @ operand

        return output, backward

    def _activate(self, before: Tensor) -> tuple[Tensor, Backward]:
        """Apply dropout and activation to the output of a layer."""
        scale: Tensor | None = None
        if self._config.dropout:
            keep = 1.0 - self._config.dropout
            # On a CPU this takes half the time of ``bernoulli_``.
            drawn = torch.rand(
                before.shape, generator=self._dropout, device=before.device, dtype=before.dtype
            )
            scale = drawn.lt_(keep).div_(keep)
            before.mul_(scale)
        activation = ACTIVATIONS[self._config.activation]
        output = activation.value(before)

        def backward(grad_output: Tensor) -> Tensor:
            over_input = activation.backward(grad_output, before, output)
            return over_input if scale is None else over_input.mul_(scale)

        return output, backward

    def _choose(self, columns: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the weights of these columns of the AEVs, and the tensor that accumulates their gradient."""
        key = id(columns)
        if key not in self._chosen:
            weight, gradient = self._first.weight, self._first.weight_gradient
            if columns is not None:
                weight = weight.index_select(1, columns)
                gradient = torch.zeros_like(weight)
            if self._low is not None:
                weight = weight.to(self._low)
            self._chosen[key] = columns, weight, gradient
        return self._chosen[key][1:]

    def finish(self) -> None:
        for columns, _, gradient in self._chosen.values():
            if columns is not None:
                self._first.weight_gradient.index_add_(1, columns, gradient)


def _linear(x: Tensor, weight: Tensor, bias: Tensor, rows: int) -> Tensor:
    """Return (n, O) for (n, I), (O, I) and (O,)."""
    if x.dtype != bias.dtype:
        # Converted first: adding tensors of two types takes three times as long.
        return (x @ weight.mT).narrow(0, 0, rows).to(bias.dtype).add_(bias)
    return torch.addmm(bias, x, weight.t())


def _add_product(gradient: Tensor, grad_output: Tensor, x: Tensor) -> None:
    """Add the gradient of a weight, from that of its outputs (n, O) and its input (n, I)."""
    if x.dtype != gradient.dtype:
        gradient.add_((_rounded(grad_output, x.dtype).mT @ x).to(gradient.dtype))
    else:
        gradient.addmm_(grad_output.t(), x)


def _times(grad_output: Tensor, operand: Tensor) -> Tensor:
    """Multiply with a rounded operand, and return the product in the precision of ``grad_output``."""
    return (
        (_rounded(grad_output, operand.dtype) @ operand).narrow(0, 0, len(grad_output)).to(grad_output.dtype)
    )


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round an operand of low-precision products, and pad it with rows of zeros.

    For such products torch compiles a kernel for each shape; padding keeps the number of shapes small.
    """
    rows = len(x)
    if x.dtype == dtype and rows % ROWS == 0:
        return x
    operand = x.new_empty((-(-rows // ROWS) * ROWS, x.shape[1]), dtype=dtype)
    operand.narrow(0, 0, rows).copy_(x)
    operand.narrow(0, rows, len(operand) - rows).zero_()
    return operand
