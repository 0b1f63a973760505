"""Gradients of the losses of networks that train side by side, written out layer by layer.

The networks are so small that automatic differentiation takes longer to keep its books than the arithmetic
takes. Here each product of matrices is one call that adds to its place in the gradient. The AEVs of a batch
go through the first layers of all networks in one product, and networks whose widths are equal so far go
through the next layer together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from trainer.config import Precision, TrainConfig
from trainer.features.batches import AtomBatch
from trainer.fitting.weights import parameter_offsets
from trainer.networks.activations import ACTIVATIONS
from trainer.networks.model import ElementNetworks

#: What the factors of the products of hidden layers are rounded to, by ``TrainConfig.precision``; sums are
#: float32.
FACTOR_DTYPES: Final[Mapping[Precision, torch.dtype]] = {"bfloat16": torch.bfloat16}

#: The rows of rounded factors are filled up to multiples of this.
ROWS: Final = 64


class Gradient:
    """The gradients of the losses of K networks, summed up over pieces of a batch.

    Each thread that works on a batch has one of its own.

    Parameters
    ----------
    models : of the same elements, features and precision; of any widths, activations and dropouts

    Attributes
    ----------
    vectors : for each network, (N,): its gradient, after :meth:`finish`, laid out as its weights are in
        :class:`~trainer.fitting.weights.FlatWeights`
    dropouts : for each network, what decides what is dropped
    """

    def __init__(self, models: Sequence[ElementNetworks]) -> None:
        first = next(models[0].parameters())
        self.vectors = tuple(first.new_zeros(parameter_offsets(model, first.device)[1]) for model in models)
        self.dropouts = tuple(torch.Generator(first.device) for _ in models)
        # Equal widths and equal activations side by side.
        self._order = sorted(range(len(models)), key=lambda k: _key(models[k].config))
        self._place = torch.tensor(self._order, device=first.device)
        networks = [_networks(models[k], self.vectors[k], self.dropouts[k]) for k in self._order]
        factors = FACTOR_DTYPES.get(models[0].config.precision)
        self._elements = [_FirstLayers(of_element, factors) for of_element in zip(*networks, strict=True)]
        self._drops = any(model.config.dropout for model in models)

    def start(self) -> None:
        """Forget what was added, and take over the weights as they are now."""
        for vector in self.vectors:
            vector.zero_()
        for element in self._elements:
            element.start()

    def add(
        self, batch: AtomBatch, target: Tensor, weight: Tensor, seeds: Sequence[int] | None = None
    ) -> Tensor:
        """Add the gradient of the sum of ``weight`` times squared error over the structures of ``batch``.

        Parameters
        ----------
        target, weight : (B,) energies, hartree, and what the squared error of each structure counts
        seeds : begin the streams of ``dropouts`` anew for each network; None: they go on

        Returns
        -------
        The sums themselves, (K,).
        """
        if self._drops and seeds is not None:
            for generator, seed in zip(self.dropouts, seeds, strict=True):
                generator.manual_seed(seed)
        passes = [
            self._elements[element].forward(aevs, columns)
            for element, columns, aevs in zip(batch.elements, batch.columns, batch.aevs, strict=True)
        ]
        energies = batch.sums.over_structures([of_atoms for of_atoms, _ in passes])
        error = energies - target[:, None]
        weighted = error * weight[:, None]
        slopes = batch.sums.to_atoms(weighted * 2)
        for (_, backward), slope in zip(passes, slopes, strict=True):
            backward(slope)
        sums = (weighted * error).sum(0)
        return sums if len(self._order) == 1 else torch.empty_like(sums).index_copy_(0, self._place, sums)

    def finish(self) -> None:
        """Bring what was added into ``vectors``."""
        for element in self._elements:
            element.finish()


Backward = Callable[[Tensor], Tensor]
"""From the gradient over an output to that over the input; adds to those of the weights on the way."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """Weights of a layer, (O, I) and (O,), and the parts of the gradient that belong to them."""

    weight: Tensor
    bias: Tensor
    weight_gradient: Tensor
    bias_gradient: Tensor


@dataclass(frozen=True, eq=False)
class _Network:
    """The network of one element in one of the models."""

    config: TrainConfig
    layers: list[_Layer]
    dropout: torch.Generator


def _networks(model: ElementNetworks, gradient: Tensor, dropout: torch.Generator) -> list[_Network]:
    parameters = list(model.parameters())
    offsets, _ = parameter_offsets(model, gradient.device)
    views = (
        gradient.narrow(0, offset, p.numel()).view_as(p)
        for p, offset in zip(parameters, offsets, strict=True)
    )
    return [
        _Network(
            model.config,
            [
                _Layer(layer.weight.detach(), layer.bias.detach(), next(views), next(views))
                for layer in model.layers(e)
            ],
            dropout,
        )
        for e in range(len(model.elements))
    ]


def _key(config: TrainConfig) -> tuple[object, ...]:
    """Sorts equal widths and equal activations side by side."""
    return config.hidden, config.activate_output, config.activation, config.dropout


class _Nonlinearity:
    """Dropout and activation of networks whose pre-activations stand side by side.

    Parameters
    ----------
    sizes : how much of the dimension ``dim`` each network takes; 0 for one whose output is left as it is
    """

    def __init__(self, networks: Sequence[_Network], sizes: Sequence[int], dim: int) -> None:
        self._dim = dim
        ends = list(itertools.accumulate(sizes))
        parts = list(
            zip(networks, (end - size for end, size in zip(ends, sizes, strict=True)), sizes, strict=True)
        )
        self._dropouts = [
            (network.dropout, 1.0 - network.config.dropout, start, size)
            for network, start, size in parts
            if network.config.dropout
        ]
        self._activations = [
            (ACTIVATIONS[name], (part := list(group))[0][1], sum(size for _, _, size in part))
            for name, group in itertools.groupby(parts, key=lambda part: part[0].config.activation)
        ]

    def forward(self, before: Tensor) -> tuple[Tensor, Backward]:
        scale: Tensor | None = None
        if self._dropouts:
            scale = torch.ones_like(before)
            for generator, keep, start, size in self._dropouts:
                part = scale.narrow(self._dim, start, size)
                # On a CPU this takes half the time of ``bernoulli_``.
                drawn = torch.rand(part.shape, generator=generator, device=part.device, dtype=part.dtype)
                part.copy_(drawn.lt_(keep).div_(keep))
            before.mul_(scale)
        if len(self._activations) == 1:
            output = self._activations[0][0].value(before)
        else:
            output = torch.empty_like(before)
            for activation, start, size in self._activations:
                some = activation.value(before.narrow(self._dim, start, size))
                output.narrow(self._dim, start, size).copy_(some)
        return output, partial(self._backward, before, output, scale)

    def _backward(self, before: Tensor, output: Tensor, scale: Tensor | None, slope: Tensor) -> Tensor:
        if len(self._activations) == 1:
            over_input = self._activations[0][0].backward(slope, before, output)
        else:
            over_input = torch.empty_like(before)
            for activation, *where in self._activations:
                some = activation.backward(*(t.narrow(self._dim, *where) for t in (slope, before, output)))
                over_input.narrow(self._dim, *where).copy_(some)
        return over_input if scale is None else over_input.mul_(scale)


class _Joined:
    """A kind of weights of G networks as one tensor, beside the gradient over it.

    For a single network both are views of what belongs to it.

    Parameters
    ----------
    weights, gradients : of each network
    join : makes one tensor of several
    divide : makes several tensors, views of the one, of it
    """

    def __init__(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        join: Callable[[list[Tensor]], Tensor],
        divide: Callable[[Tensor], Sequence[Tensor]],
    ) -> None:
        self._sources = weights
        self._targets = gradients
        self._join = join
        self._divide = divide
        self.alone = len(weights) == 1
        self.weight = weights[0] if self.alone else join(weights)
        self.gradient = gradients[0] if self.alone else torch.zeros_like(self.weight)

    def start(self) -> None:
        if not self.alone:
            self.weight = self._join(self._sources)
            self.gradient.zero_()

    def finish(self) -> None:
        if not self.alone:
            for target, part in zip(self._targets, self._divide(self.gradient), strict=True):
                target.copy_(part)


def _side_by_side(layers: Sequence[_Layer]) -> tuple[_Joined, _Joined]:
    """Weights (sum of O, I) and biases (sum of O,) of layers that share their input."""
    sizes = [len(layer.bias) for layer in layers]
    divide = partial(torch.split, split_size_or_sections=sizes)
    return (
        _Joined([x.weight for x in layers], [x.weight_gradient for x in layers], torch.cat, divide),
        _Joined([x.bias for x in layers], [x.bias_gradient for x in layers], torch.cat, divide),
    )


def _stacked(layers: Sequence[_Layer]) -> tuple[_Joined, _Joined]:
    """Weights (G, O, I) and biases (G, 1, O) of layers of one shape; (O, I) and (O,) of a single one."""
    return (
        _Joined([x.weight for x in layers], [x.weight_gradient for x in layers], torch.stack, torch.unbind),
        _Joined(
            [x.bias for x in layers],
            [x.bias_gradient for x in layers],
            lambda biases: torch.stack(biases).unsqueeze(1),
            lambda biases: torch.unbind(biases.squeeze(1)),
        ),
    )


class _FirstLayers:
    """The networks of one element: their first layers side by side, and what comes after these."""

    def __init__(self, networks: Sequence[_Network], factors: torch.dtype | None) -> None:
        self._factors = factors
        self._weight, self._bias = _side_by_side([network.layers[0] for network in networks])
        widths = [network.config.hidden[0] for network in networks]
        self._nonlinearity = _Nonlinearity(networks, widths, dim=1)
        self._next: list[tuple[_LaterLayers, int, int, int]] = []
        start = 0
        for width, group in itertools.groupby(networks, key=lambda network: network.config.hidden[0]):
            some = list(group)
            self._next.append((_LaterLayers(some, 1, factors), start, len(some), width))
            start += len(some) * width
        self._counts = [count for _, _, count, _ in self._next]
        # The factor and its gradient for each choice of columns that was met since the start.
        self._chosen: dict[int, tuple[Tensor | None, Tensor, Tensor]] = {}

    def start(self) -> None:
        self._weight.start()
        self._bias.start()
        self._chosen.clear()
        for layers, *_ in self._next:
            layers.start()

    def forward(self, aevs: Tensor, columns: Tensor | None) -> tuple[Tensor, Callable[[Tensor], None]]:
        """Energies of the atoms, (n, K) for (n, F_e)."""
        x = aevs if self._factors is None else _rounded(aevs, self._factors)
        weight, gradient = self._choose(columns)
        before = _linear(x, weight, self._bias.weight, len(aevs))
        output, back = self._nonlinearity.forward(before)
        passes = [
            layers.forward(
                output.narrow(1, start, width)
                if count == 1
                else output.narrow(1, start, count * width).view(len(output), count, width).transpose(0, 1)
            )
            for layers, start, count, width in self._next
        ]

        def backward(slope: Tensor) -> None:
            over_output = [
                later(some).transpose(0, 1).flatten(1) if count > 1 else later(some)
                for (_, later), some, count in zip(
                    passes, torch.split(slope, self._counts, 1), self._counts, strict=True
                )
            ]
            over_before = back(_join(over_output))
            self._bias.gradient.add_(over_before.sum(0))
            _add_product(gradient, over_before, x)

        return _join([energies for energies, _ in passes]), backward

    def _choose(self, columns: Tensor | None) -> tuple[Tensor, Tensor]:
        """The weights of these columns of the AEVs, and where the gradient over them is summed up."""
        key = id(columns)
        if key not in self._chosen:
            if columns is None:
                weight, gradient = self._weight.weight, self._weight.gradient
            else:
                weight = self._weight.weight.index_select(1, columns)
                gradient = torch.zeros_like(weight)
            if self._factors is not None:
                weight = weight.to(self._factors)
            self._chosen[key] = columns, weight, gradient
        return self._chosen[key][1:]

    def finish(self) -> None:
        for columns, _, gradient in self._chosen.values():
            if columns is not None:
                self._weight.gradient.index_add_(1, columns, gradient)
        self._weight.finish()
        self._bias.finish()
        for layers, *_ in self._next:
            layers.finish()


class _LaterLayers:
    """The layers from ``depth`` on of G networks that are equally wide up to there.

    Networks of one width here go through this layer in one batch of products.
    """

    def __init__(self, networks: Sequence[_Network], depth: int, factors: torch.dtype | None) -> None:
        self._groups = [
            _Group(list(group), depth, factors)
            for _, group in itertools.groupby(networks, partial(_shape, depth=depth))
        ]
        self._sizes = [group.size for group in self._groups]

    def start(self) -> None:
        for group in self._groups:
            group.start()

    def finish(self) -> None:
        for group in self._groups:
            group.finish()

    def forward(self, x: Tensor) -> tuple[Tensor, Backward]:
        """Energies of the atoms, (n, G), for (G, n, I), or (n, I) of a single network."""
        if len(self._groups) == 1:
            return self._groups[0].forward(x)
        passes = [
            group.forward(some if group.size > 1 else some.squeeze(0))
            for group, some in zip(self._groups, torch.split(x, self._sizes), strict=True)
        ]

        def backward(slope: Tensor) -> Tensor:
            return torch.cat(
                [
                    back(some) if size > 1 else back(some).unsqueeze(0)
                    for (_, back), some, size in zip(
                        passes, torch.split(slope, self._sizes, 1), self._sizes, strict=True
                    )
                ]
            )

        return torch.cat([energies for energies, _ in passes], 1), backward


class _Group:
    """One layer of G networks that are equally wide before and after it, and what comes after it."""

    def __init__(self, networks: Sequence[_Network], depth: int, factors: torch.dtype | None) -> None:
        self.size = len(networks)
        config = networks[0].config
        is_output = depth == len(config.hidden)
        self._weight, self._bias = _stacked([network.layers[depth] for network in networks])
        # A product with the single column of an output layer gains nothing from rounded factors.
        self._factors = None if is_output else factors
        self._factor = self._weight.weight
        self._next = None if is_output else _LaterLayers(networks, depth + 1, factors)
        self._nonlinearity: _Nonlinearity | None = None
        if not is_output or config.activate_output:
            outputs = 1 if is_output else config.hidden[depth]
            self._nonlinearity = (
                _Nonlinearity(networks, [outputs], dim=1)
                if self.size == 1
                else _Nonlinearity(networks, [1] * self.size, dim=0)
            )

    def start(self) -> None:
        self._weight.start()
        self._bias.start()
        self._factor = self._weight.weight
        if self._factors is not None:
            self._factor = self._factor.to(self._factors)
        if self._next is not None:
            self._next.start()

    def finish(self) -> None:
        self._weight.finish()
        self._bias.finish()
        if self._next is not None:
            self._next.finish()

    def forward(self, x: Tensor) -> tuple[Tensor, Backward]:
        """Energies of the atoms, (n, G), for (G, n, I), or (n, I) of a single network."""
        rows = x.shape[-2]
        if self._factors is not None:
            x = _rounded(x, self._factors)
        output = _linear(x, self._factor, self._bias.weight, rows)
        activation_back: Backward | None = None
        if self._nonlinearity is not None:
            output, activation_back = self._nonlinearity.forward(output)
        if self._next is None:
            energies = output if self.size == 1 else output.squeeze(2).t()
            next_back: Backward = _as_column if self.size == 1 else _as_columns
        else:
            energies, next_back = self._next.forward(output)

        def backward(slope: Tensor) -> Tensor:
            slope = next_back(slope)
            if activation_back is not None:
                slope = activation_back(slope)
            self._bias.gradient.add_(slope.sum(-2, keepdim=self.size > 1))
            _add_product(self._weight.gradient, slope, x)
            return slope @ self._factor if self._factors is None else _times(slope, self._factor)

        return energies, backward


def _shape(network: _Network, depth: int) -> tuple[object, ...]:
    """What networks must share to go through their layer number ``depth`` together."""
    config = network.config
    return (config.hidden[depth],) if depth < len(config.hidden) else ("output", config.activate_output)


def _as_column(slope: Tensor) -> Tensor:
    return slope


def _as_columns(slope: Tensor) -> Tensor:
    """(G, n, 1) for (n, G)."""
    return slope.t().unsqueeze(2)


def _join(parts: Sequence[Tensor]) -> Tensor:
    """Side by side."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), 1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor, rows: int) -> Tensor:
    """(n, O) for (n, I), (O, I) and (O,); or the same of G layers, the bias being (G, 1, O)."""
    if x.dtype != bias.dtype:
        # Widened first: to add tensors of two kinds takes three times as long.
        return (x @ weight.mT).narrow(-2, 0, rows).to(bias.dtype).add_(bias)
    return torch.addmm(bias, x, weight.t()) if x.dim() == 2 else torch.baddbmm(bias, x, weight.mT)


def _add_product(gradient: Tensor, slope: Tensor, x: Tensor) -> None:
    """Add the gradient over a weight, from the slope (n, O) of its outputs and its input (n, I)."""
    if x.dtype != gradient.dtype:
        gradient.add_((_rounded(slope, x.dtype).mT @ x).to(gradient.dtype))
    elif x.dim() == 2:
        gradient.addmm_(slope.t(), x)
    else:
        gradient.baddbmm_(slope.mT, x)


def _times(slope: Tensor, factor: Tensor) -> Tensor:
    """The product with a rounded factor, in the precision of ``slope``."""
    return (_rounded(slope, factor.dtype) @ factor).narrow(-2, 0, slope.shape[-2]).to(slope.dtype)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A factor of products of lower precision: rounded, and filled up with rows of zeros.

    For such a product torch makes a program for each shape that it meets; this keeps them few.
    """
    rows = x.shape[-2]
    if x.dtype == dtype and rows % ROWS == 0:
        return x
    factor = x.new_empty((*x.shape[:-2], -(-rows // ROWS) * ROWS, x.shape[-1]), dtype=dtype)
    factor.narrow(-2, 0, rows).copy_(x)
    factor.narrow(-2, rows, factor.shape[-2] - rows).zero_()
    return factor
