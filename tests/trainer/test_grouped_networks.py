from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from trainer.config import Activation, Precision, TrainConfig
from trainer.fitting import grouped_jobs, grouped_networks
from trainer.fitting.grouped_jobs import KERNEL_ACTIVATIONS
from trainer.fitting.grouped_networks import GroupedNetworks
from trainer.fitting.weights import FlatWeights
from trainer.networks.activations import ACTIVATIONS, CELU_ALPHA, gaussian
from trainer.networks.model import ElementNetworks

ELEMENTS = ("H", "C", "O")
CAPACITIES = (128, 0, 64)
ATOMS = (100, 0, 60)  # of each element; the rows behind them have no atom

#: Not those of the package, some of which work in place.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": nn.functional.softplus,
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    # In float64 the gradient of torch's celu is off by 1e-8.
    "celu": lambda x: x.clamp(min=0) + CELU_ALPHA * torch.expm1(x.clamp(max=0) / CELU_ALPHA),
    "gaussian": gaussian,
}


def function(name: str) -> Callable[[Tensor], Tensor]:
    return FUNCTIONS.get(name, ACTIVATIONS[name].value)


class Case:
    """Networks beside the features of a batch: rows of a table, of which the last is zero."""

    def __init__(
        self,
        settings: Sequence[dict[str, object]],
        precision: Precision = "float64",
        features: int = 37,
        capacities: tuple[int, ...] = CAPACITIES,
        atoms: tuple[int, ...] = ATOMS,
    ) -> None:
        random = torch.Generator().manual_seed(1)
        dtype = torch.float64 if precision == "float64" else torch.float32
        self.models = [
            ElementNetworks(TrainConfig(precision=precision, **{"seed": k, **some}), ELEMENTS, features)  # type: ignore[arg-type]
            for k, some in enumerate(settings)
        ]
        self.vectors = [FlatWeights(model).vector for model in self.models]
        self.source = torch.randn((51, features), generator=random, dtype=dtype)
        self.source[-1] = 0
        self.capacities = capacities
        is_atom = torch.cat([torch.arange(c) < n for c, n in zip(capacities, atoms, strict=True)])
        drawn = torch.randint(50, (len(is_atom),), generator=random)
        self.rows = torch.where(is_atom, drawn, 50).int()
        grad_outputs = torch.randn((len(is_atom), len(self.models)), generator=random, dtype=dtype)
        self.grad_outputs = grad_outputs * is_atom[:, None]
        self.networks = GroupedNetworks(
            self.models, self.vectors, capacities, self.models[0].config.precision, training=True
        )
        for seed, generator in enumerate(self.networks.generators):
            generator.manual_seed(seed)

    def run(self, streamed: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        source, rows = (self.source[self.rows.long()], None) if streamed else (self.source, self.rows)
        energies = self.networks.forward(source, rows)
        self.networks.backward(source, rows, self.grad_outputs)
        return energies, self.networks.gradients

    def expected(self, k: int) -> tuple[Tensor, Tensor]:
        """Energies (C,) of a network and its gradient, by automatic differentiation, with the same noise."""
        model = self.models[k]
        dropped = [i for i, other in enumerate(self.models) if other.config.dropout]
        energies = []
        for e, x in enumerate(torch.split(self.source[self.rows.long()], self.capacities)):
            column, row = 0, sum(self.capacities[:e])
            *_, output = layers = model.layers(e)
            for depth, layer in enumerate(layers):
                x = layer(x)
                if layer is output and not model.config.activate_output:
                    continue
                if model.config.dropout:
                    width, keep = x.shape[1], 1 - model.config.dropout
                    noise = self.networks.noise[dropped.index(k)][row : row + len(x), column : column + width]
                    x = torch.where(noise < keep, x / keep, 0)
                    widest = max(model.layers(each)[depth].out_features for each in range(len(ELEMENTS)))
                    column += -(-widest // 16) * 16
                x = function(model.config.activation)(x)
            energies.append(x)
        together = torch.cat(energies).squeeze(1)
        gradients = torch.autograd.grad((together * self.grad_outputs[:, k]).sum(), list(model.parameters()))
        return together.detach(), torch.cat([gradient.flatten() for gradient in gradients])


SHAPES: tuple[dict[str, object], ...] = (
    {"hidden": (24,)},
    {"hidden": (16, 9, 5), "dropout": 0.3},
    {"hidden": (7, 33), "activate_output": True},
    {"hidden": (20, 16, 11, 6), "activate_output": True, "dropout": 0.5},
    {"hidden": {"H": (40, 24), "C": (9, 9), "O": (17, 30)}, "dropout": 0.2},
    {"hidden": {"H": (16,), "C": (16,), "O": (40,)}, "activate_output": True},
)


def check(case: Case, streamed: bool = False) -> None:
    energies, gradients = case.run(streamed)
    assert not energies[-1].any()
    for k, gradient in enumerate(gradients):
        expected, expected_gradient = case.expected(k)
        torch.testing.assert_close(energies[:-1, k], expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("streamed", [False, True])
def test_energies_and_gradients_are_those_of_automatic_differentiation(
    activation: Activation, streamed: bool
) -> None:
    check(Case([{"activation": activation, **shape} for shape in SHAPES]), streamed)


def test_an_activation_without_a_kernel_is_computed_in_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = tuple(name for name in KERNEL_ACTIVATIONS if name != "gaussian")
    for module in (grouped_jobs, grouped_networks):
        monkeypatch.setattr(module, "KERNEL_ACTIVATIONS", kernels)
    monkeypatch.setattr(grouped_networks, "has_kernels", lambda weights: True)
    check(Case([{"activation": "gaussian", **shape} for shape in SHAPES]))


def test_sums_over_several_splits() -> None:
    case = Case(SHAPES, features=16, capacities=(1216, 64, 640), atoms=(1200, 64, 600))
    assert [job.splits for job in case.networks._plan.sums] == [3, 2] * len(SHAPES)
    check(case)
    before = [gradient.clone() for gradient in case.networks.gradients]
    case.grad_outputs *= 2
    check(case)
    for gradient, other in zip(case.networks.gradients, before, strict=True):
        assert not torch.equal(gradient, other)


@pytest.mark.parametrize("precision", ["float64", "float32", "tf32", "bfloat16"])
def test_a_network_does_not_depend_on_the_others(precision: Precision) -> None:
    settings = [
        {"seed": k, **some} for k, some in enumerate((*SHAPES, {"hidden": (16,), "activation": "gelu"}))
    ]
    together = Case(settings, precision, capacities=(640, 64, 64), atoms=(600, 40, 60))
    for generator in together.networks.generators:
        generator.manual_seed(1)
    energies, gradients = together.run()
    for k, some in enumerate(settings):
        alone = Case([some], precision, capacities=(640, 64, 64), atoms=(600, 40, 60))
        for generator in alone.networks.generators:
            generator.manual_seed(1)
        alone.grad_outputs = together.grad_outputs[:, k : k + 1]
        own_energies, own_gradients = alone.run()
        assert torch.equal(energies[:, k], own_energies[:, 0])
        assert torch.equal(gradients[k], own_gradients[0])


@pytest.mark.parametrize(("precision", "least", "most"), [("tf32", 1e-6, 2e-3), ("bfloat16", 1e-5, 2e-2)])
def test_products_of_low_precision(precision: Precision, least: float, most: float) -> None:
    exact = Case(SHAPES, "float32").run()
    rounded = Case(SHAPES, precision).run()
    for right, other in ((exact[0], rounded[0]), *zip(exact[1], rounded[1], strict=True)):
        assert least < (other - right).norm() / right.norm() < most


def test_without_training_nothing_is_dropped() -> None:
    case = Case(SHAPES)
    networks = GroupedNetworks(case.models, case.vectors, CAPACITIES, "float64", training=False)
    assert networks.generators == networks.gradients == networks.noise == ()
    energies = networks.forward(case.source, case.rows)
    for k in range(len(SHAPES)):
        case.models[k] = ElementNetworks(
            dataclasses.replace(case.models[k].config, dropout=0.0), ELEMENTS, 37
        )
        torch.testing.assert_close(energies[:-1, k], case.expected(k)[0], rtol=1e-10, atol=1e-10)


def test_capacities_are_whole_tiles() -> None:
    with pytest.raises(ValueError, match="multiples of 64"):
        Case(SHAPES, capacities=(128, 0, 60))
