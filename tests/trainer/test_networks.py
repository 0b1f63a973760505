from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.config import Activation, TrainConfig
from trainer.data.dataset import Dataset, Molecule
from trainer.features.batches import AtomBatch, CountedStructures, EqualStructures, IndexedStructures, Layouts
from trainer.features.compositions import atom_counts
from trainer.networks.activations import ACTIVATIONS
from trainer.networks.model import ElementNetworks
from trainer.networks.widths import Hidden

ELEMENTS = ("H", "C", "N", "O")
MOLECULES = ((8, 1, 1), (6, 1, 1, 1, 1), (1, 7, 8), (7, 7))
LENGTH = 12


def batch_of(
    molecules: tuple[tuple[int, ...], ...], dtype: torch.dtype = torch.float32, seed: int = 0
) -> AtomBatch:
    """One structure a molecule, with random features."""
    dataset = Dataset(
        tuple(
            Molecule(
                str(i), "", np.array(n, dtype=np.uint8), np.zeros((1, len(n), 3), np.float32), np.zeros(1)
            )
            for i, n in enumerate(molecules)
        )
    )
    counts = atom_counts(dataset, ELEMENTS)
    first_rows = (np.cumsum(counts, axis=0) - counts).T
    layouts = Layouts(counts, np.arange(len(molecules)), first_rows)
    (layout,) = layouts.lay_out(torch.arange(len(molecules))[None])
    features = torch.randn(len(layout.owners), LENGTH, generator=torch.Generator().manual_seed(seed)).to(
        dtype
    )
    aevs = tuple(features.split_with_sizes(layout.sizes))
    sums = IndexedStructures(layout.sizes, layout.owners, layout.atoms)
    return AtomBatch(layout.positions, (0, 1, 2, 3), (None,) * 4, aevs, sums)


def networks(**settings: object) -> ElementNetworks:
    config = TrainConfig(**{"precision": "float32", **settings})  # type: ignore[arg-type]
    return ElementNetworks(config, ELEMENTS, LENGTH)


def reference_energies(model: ElementNetworks, batch: AtomBatch) -> Tensor:
    """Structure by structure and atom by atom, without dropout."""
    energies = torch.zeros(batch.size, dtype=torch.float64)
    owners = batch.sums.to_atoms(torch.arange(batch.size)[:, None])
    for element, aevs, of_element in zip(ELEMENTS, batch.aevs, owners, strict=True):
        for x, owner in zip(aevs.double(), of_element, strict=True):
            layers = list(model.networks[element].double().children())
            for layer in layers[:-1]:
                x = ACTIVATIONS[model.config.activation].value(layer(x))
            energies[owner] += layers[-1](x).item()
    return energies


BY_ELEMENT: Hidden = {"H": (7, 3), "C": (4, 5), "N": (3, 3), "O": (5, 2)}


@pytest.mark.parametrize("hidden", [(5,), (7, 3, 4), BY_ELEMENT], ids=str)
def test_energies_are_sums_over_the_atoms_of_each_structure(hidden: Hidden) -> None:
    model, batch = (
        networks(hidden=hidden, activation="tanh", precision="float64"),
        batch_of(MOLECULES, torch.float64),
    )
    torch.testing.assert_close(model(batch), reference_energies(model, batch), rtol=1e-12, atol=1e-12)


def test_ways_of_telling_the_atoms_of_structures_give_the_same_sums() -> None:
    owners = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1, 2])
    atoms = torch.tensor([[0, 2, 4], [1, 3, 5], [6, 7, 8], [9, 9, 9]])
    indexed = IndexedStructures([6, 3], owners, atoms)
    of_atoms = torch.randn(9, 2, dtype=torch.float64).split([6, 3])
    of_structures = torch.randn(3, 2, dtype=torch.float64)
    counted = CountedStructures(torch.tensor([[2, 2, 2], [1, 1, 1]]), [6, 3])
    for other in (EqualStructures((2, 1)), counted):
        torch.testing.assert_close(other.over_structures(of_atoms), indexed.over_structures(of_atoms))
        for one, two in zip(other.to_atoms(of_structures), indexed.to_atoms(of_structures), strict=True):
            assert torch.equal(one, two)


def test_what_atoms_get_is_theirs_to_change() -> None:
    of_structures = torch.ones((2, 1))
    one, other = EqualStructures((1, 1)).to_atoms(of_structures)
    one.zero_()
    assert other.tolist() == of_structures.tolist() == [[1.0], [1.0]]


def test_counted_structures_may_differ() -> None:
    counted = CountedStructures(torch.tensor([[0, 3], [2, 1]]), [3, 3])
    of_atoms = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[8.0], [16.0], [32.0]])
    assert counted.over_structures(of_atoms).tolist() == [[24.0], [39.0]]
    of_elements = counted.to_atoms(torch.tensor([[5.0], [6.0]]))
    assert [some.flatten().tolist() for some in of_elements] == [[6.0] * 3, [5.0, 5.0, 6.0]]


def test_gradients_are_those_of_the_sums() -> None:
    model, batch = (
        networks(hidden=(5,), activation="tanh", precision="float64"),
        batch_of(MOLECULES, torch.float64),
    )
    weights = torch.arange(1.0, 5.0, dtype=torch.float64)
    (model(batch) * weights).sum().backward()
    for element in ELEMENTS:
        bias = list(model.networks[element].children())[-1].bias
        count = [sum(n == {"H": 1, "C": 6, "N": 7, "O": 8}[element] for n in m) for m in MOLECULES]
        # The bias of the output is added once for each atom of the element.
        assert bias.grad.item() == pytest.approx(float(weights @ torch.tensor(count, dtype=torch.float64)))

    def energy(aevs: Tensor) -> Tensor:
        return model(dataclasses.replace(batch, aevs=(aevs, *batch.aevs[1:])))

    assert torch.autograd.gradcheck(energy, (batch.aevs[0].clone().requires_grad_(),))


def test_an_element_that_a_batch_lacks_adds_nothing() -> None:
    model = networks(hidden=(5,))
    both, alone = batch_of(((8, 1, 1), (6, 1, 1, 1, 1))), batch_of(((8, 1, 1),))
    assert len(alone.aevs[1]) == len(alone.aevs[2]) == 0
    water = dataclasses.replace(alone, aevs=(both.aevs[0][:2], both.aevs[1][:0], *both.aevs[2:]))
    torch.testing.assert_close(model(water)[0], model(both)[0])


@pytest.mark.parametrize(("hidden", "count"), [((128,), 197_636), ((200,), 308_804), ((128, 64), 230_404)])
def test_parameters_are_counted_as_published(hidden: tuple[int, ...], count: int) -> None:
    assert (
        ElementNetworks(TrainConfig(hidden=hidden, precision="float32"), ELEMENTS, 384).parameter_count
        == count
    )


def test_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = networks(seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    same, other, precise = networks(seed=5), networks(seed=6), networks(seed=5, precision="float64")
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c, d in zip(*(m.parameters() for m in (one, same, other, precise)), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        assert torch.equal(a.double(), d)


def test_weights_have_the_distribution_of_torch() -> None:
    layer = next(
        ElementNetworks(TrainConfig(hidden=(512,), precision="float32"), ("H",), 384).networks["H"].children()
    )
    bound = 1 / math.sqrt(384)
    for values in (layer.weight, layer.bias):
        assert values.abs().max() <= bound
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_columns_that_are_left_out_count_as_zero() -> None:
    model, batch = networks(hidden=(5,)), batch_of(MOLECULES)
    columns = torch.tensor([0, 2, 7])
    compact = dataclasses.replace(
        batch, columns=(columns,) * 4, aevs=tuple(aevs[:, columns] for aevs in batch.aevs)
    )
    for aevs in batch.aevs:
        aevs[:, [c for c in range(LENGTH) if c not in columns]] = 0
    torch.testing.assert_close(model(compact), model(batch))


def test_a_deep_copy_shares_nothing() -> None:
    model, batch = networks(), batch_of(MOLECULES)
    copied = copy.deepcopy(model)
    first = copied(batch)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(model(batch), first)


def test_activated_output_bounds_the_energy_of_an_atom() -> None:
    model = networks(activation="sigmoid", activate_output=True)
    with torch.no_grad():
        list(model.networks["N"].children())[-1].bias.fill_(50.0)
    assert model(batch_of(((7,), (7, 7)))).tolist() == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_backward_of_an_activation_is_that_of_automatic_differentiation(name: str) -> None:
    activation = ACTIVATIONS[name]
    x = torch.linspace(-4.0, 4.0, 80, dtype=torch.float64, requires_grad=True)  # not 0, where relu has a kink
    grad_output = torch.linspace(1.0, 3.0, 80, dtype=torch.float64)
    (expected,) = torch.autograd.grad(activation.value(x * 1), x, grad_output)
    before = x.detach().clone()
    output = activation.value(before)
    found = activation.backward(grad_output.clone(), before, output)
    # torch itself rounds 1 / alpha to single precision in the derivative of celu.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_with_a_kink_says_so(name: str) -> None:
    x = torch.tensor([-1e-9, 1e-9], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(ACTIVATIONS[name].value(x * 1).sum(), x)
    assert ACTIVATIONS[name].kinked == (abs(gradient[1] - gradient[0]).item() > 1e-3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("relu", 0.0),
        ("sigmoid", 1 / (1 + math.exp(0.5))),
        ("tanh", math.tanh(-0.5)),
        ("softplus", math.log(1 + math.exp(-0.5))),
        ("silu", -0.5 / (1 + math.exp(0.5))),
        ("gelu", -0.5 * 0.5 * (1 + math.erf(-0.5 / math.sqrt(2)))),
        ("celu", 0.1 * (math.exp(-0.5 / 0.1) - 1)),
        ("gaussian", math.exp(-0.25)),
    ],
)
def test_activations_are_the_functions_of_their_names(name: Activation, value: float) -> None:
    assert ACTIVATIONS[name].value(torch.tensor(-0.5, dtype=torch.float64)).item() == pytest.approx(value)
