"""Load a model that `anitune export --to torchani` wrote; this needs torch, torchani >= 2.9 and safetensors.

    from load_torchani import load_model

    model = load_model("model.safetensors")
    energies = model((atomic_numbers, coordinates)).energies  # hartree; coordinates in Å, float64

The model is a `torchani.arch.ANI`: `model.ase()` is its ASE calculator, `model.energies_qbcs(...)` gives the
disagreement of its members. It computes in float64, because float32 resolves total energies to 0.01 kcal/mol
at best. Elements that it was not trained on have the energy NaN.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn
from torchani.aev import AEVComputer
from torchani.arch import ANI
from torchani.nn import ANINetworks, AtomicNetwork, Ensemble
from torchani.sae import SelfEnergy


class Gaussian(nn.Module):
    """exp(-x^2)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-x * x)


class ActivatedNetwork(AtomicNetwork):  # type: ignore[misc]
    """A network whose output passes through the activation too."""

    def forward(self, features: Tensor) -> Any:
        return self.activation(super().forward(features))


ACTIVATIONS: dict[str, nn.Module] = {
    "relu": nn.ReLU(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "softplus": nn.Softplus(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "celu": nn.CELU(0.1),
    "gaussian": Gaussian(),
}


def load_model(path: str | Path) -> ANI:
    """Load the model in a file, in evaluation mode.

    Raises
    ------
    ValueError
        if the file is not such a model, or its weights do not match its description.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            record = json.loads(file.metadata()["torchani"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        fits = _parameters(record) == sum(tensor.numel() for tensor in weights.values())
    except (safetensors.SafetensorError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a model for this loader ({error})") from error
    if not fits:  # checked before memory is allocated for what the description asks for
        raise ValueError(f"{path}: the weights do not match the description; the file is damaged")
    return build_model(record, weights)


def _parameters(record: dict[str, Any]) -> int:
    """Return the number of weights and biases of a model; -1 if the description is impossible."""
    aev, kinds = record["aev"], len(record["symbols"])
    angular = len(aev["angular_shifts"]) * aev["angle_sections"]
    features: int = kinds * len(aev["radial_shifts"]) + kinds * (kinds + 1) // 2 * angular
    networks = [
        (features, *_widths(member, symbol), 1)
        for member in record["members"]
        for symbol in record["symbols"]
    ]
    if not all(type(size) is int and size > 0 for sizes in networks for size in sizes):
        return -1
    return sum((i + 1) * o for sizes in networks for i, o in itertools.pairwise(sizes))


def _widths(member: dict[str, Any], symbol: str) -> list[int]:
    """Return the widths of the hidden layers of an element's network; they may differ by element."""
    hidden = member["hidden"]
    return list(hidden[symbol] if isinstance(hidden, dict) else hidden)


def build_model(
    record: dict[str, Any], weights: dict[str, Tensor], activations: dict[str, nn.Module] = ACTIVATIONS
) -> ANI:
    """Build the model with this description and these weights, in evaluation mode."""
    symbols, aev = record["symbols"], record["aev"]
    computer = AEVComputer.from_constants(
        radial_cutoff=aev["radial_cutoff"],
        radial_eta=aev["radial_eta"],
        radial_shifts=aev["radial_shifts"],
        angular_cutoff=aev["angular_cutoff"],
        angular_eta=aev["angular_eta"],
        angular_zeta=aev["zeta"],
        angular_shifts=aev["angular_shifts"],
        sections=[math.pi * (i + 0.5) / aev["angle_sections"] for i in range(aev["angle_sections"])],
        num_species=len(symbols),
    )
    members = []
    for member in record["members"]:
        kind = ActivatedNetwork if member["activate_output"] else AtomicNetwork
        activation = activations[member["activation"]]
        networks_by_symbol = {}
        for symbol in symbols:
            dims = (computer.out_dim, *_widths(member, symbol), 1)
            networks_by_symbol[symbol] = kind(dims, activation=activation, bias=True)
        members.append(ANINetworks(networks_by_symbol))
    networks = Ensemble(members)
    networks.load_state_dict(weights)
    energies = [math.nan if energy is None else energy for energy in record["self_energies"]]
    model = ANI(symbols, computer, networks, SelfEnergy(symbols, energies)).double().eval()
    # torchani stores them in float32, which is too coarse for total energies.
    model.energy_shifter.self_energies = torch.tensor(energies, dtype=torch.float64)
    return model.requires_grad_(False)
