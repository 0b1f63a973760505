"""Conversion of an ensemble to a torchani model."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from trainer.config import dump_config
from trainer.inference.ensemble import Ensemble
from trainer.networks.torchani_bridge import NamedActivation, to_torchani

with warnings.catch_warnings():
    # torchani warns that its CUDA extensions were not compiled; they are not used here.
    warnings.filterwarnings("ignore", message="The extensions", category=UserWarning)
    from torchani.arch import ANI

    from trainer.inference.torchani_loader import ACTIVATIONS, build_model


def as_torchani(ensemble: Ensemble) -> ANI:
    """Return the ensemble as a torchani model in float64: total energies in hartree for coordinates in Å."""
    names = {member.model.config.activation for member in ensemble.members} - ACTIVATIONS.keys()
    others = {name: NamedActivation(name) for name in names}
    return build_model(describe(ensemble), weights_of(ensemble), ACTIVATIONS | others)


def describe(ensemble: Ensemble) -> dict[str, Any]:
    """Describe everything of the model except its weights, as JSON values."""
    elements = ensemble.aev.elements
    known = [ensemble.self_energies[e] if e in ensemble.elements else None for e in elements]
    return {
        "symbols": list(elements),
        "aev": dump_config(ensemble.aev),
        "self_energies": known,
        "members": [
            {
                "hidden": dump_config(each.model.config)["hidden"],
                "activation": each.model.config.activation,
                "activate_output": each.model.config.activate_output,
            }
            for each in ensemble.members
        ],
    }


def weights_of(ensemble: Ensemble) -> dict[str, Tensor]:
    """Return the weights of torchani's ensemble of networks, by their names there."""
    return {
        f"members.{number}.{name}": tensor.contiguous()
        for number, each in enumerate(ensemble.members)
        for name, tensor in to_torchani(each.model).state_dict().items()
    }
