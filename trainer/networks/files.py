"""Model files: weights and what they belong to, in one safetensors file. Networks are rebuilt from code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from trainer.config import AEVConfig, TrainConfig, dump_config, load_config
from trainer.data.stoichiometry import Balance
from trainer.errors import ConfigError, ModelFileError
from trainer.features.aev import aev_length
from trainer.files import write_by_rename
from trainer.networks.model import ElementNetworks

#: The one key of the file's metadata. (Of several keys the order, and so the bytes of the file, would vary.)
METADATA: Final = "anitune"

FORMAT: Final = 1

CPU: Final = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A network and what is needed to get total energies from it.

    Attributes
    ----------
    model : the network, in evaluation mode
    aev : the constants of its features
    self_energies : energy of a single atom by element, hartree, to be added to the network's energies
    balances : what all compositions of the training part have in common (see
        :mod:`trainer.data.stoichiometry`); empty: nothing, or it was not recorded
    """

    model: ElementNetworks
    aev: AEVConfig
    self_energies: dict[str, float]
    balances: tuple[Balance, ...] = ()


def save_model(
    path: Path,
    model: ElementNetworks,
    aev: AEVConfig,
    self_energies: Mapping[str, float],
    balances: Sequence[Balance] = (),
) -> None:
    """Write a model file. The same model gives the same bytes.

    Raises
    ------
    OutputError
        if it cannot be written; nothing half-written stays.
    """
    record = {
        "format": FORMAT,
        "training": dump_config(model.config),
        "aev": dump_config(aev),
        "self_energies": dict(self_energies),
    } | ({"balances": list(balances)} if balances else {})
    tensors = {name: weights.detach().cpu().contiguous() for name, weights in model.state_dict().items()}
    write_by_rename(path, safetensors.torch.save(tensors, {METADATA: json.dumps(record)}))


def load_model(path: Path, device: torch.device = CPU) -> SavedModel:
    """Rebuild a network from its file.

    Raises
    ------
    ModelFileError
        if the file cannot be read, is no model file, or its weights do not fit its settings.
    """
    record, tensors = _read(path)
    try:
        if record["format"] != FORMAT:
            raise ModelFileError(
                f"{path}: a model file of format {record['format']}; this version reads {FORMAT}"
            )
        config = load_config(TrainConfig, record["training"], str(path))
        aev = load_config(AEVConfig, record["aev"], str(path))
        self_energies = {str(e): float(energy) for e, energy in record["self_energies"].items()}
        balances = tuple({str(e): int(n) for e, n in b.items()} for b in record.get("balances", ()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(f"{path}: not a model file of anitune ({error!r})") from error
    except ConfigError as error:
        raise ModelFileError(f"{error}; the file is damaged, or of another version") from error
    model = ElementNetworks(config, aev.elements, aev_length(aev), device)
    if fault := _misfit(model, tensors):
        raise ModelFileError(f"{path}: {fault}; the file is damaged")
    model.load_state_dict(tensors)
    return SavedModel(model.eval(), aev, self_energies, balances)


def warm_start(model: ElementNetworks, aev: AEVConfig, path: Path) -> None:
    """Give a network that is to be trained the weights of a model file, in its own precision.

    Raises
    ------
    ModelFileError
        if the file cannot be read.
    ConfigError
        if its weights belong to other layers or other features.
    """
    saved = load_model(path)
    if saved.aev != aev:
        differing = [
            name for name, value in dump_config(aev).items() if dump_config(saved.aev)[name] != value
        ]
        raise ConfigError(
            f"warm start from {path}: its features differ in {', '.join(differing)}; use its features.aev"
        )
    tensors = saved.model.state_dict()
    if _misfit(model, tensors):
        raise ConfigError(
            f"warm start from {path}: its hidden widths are {_widths(saved.model)}, those of this training "
            f"{_widths(model)}; set training.hidden to the same"
        )
    model.load_state_dict(tensors)


def _read(path: Path) -> tuple[Any, dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return json.loads(metadata[METADATA]), tensors
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ModelFileError(f"{path}: not a model file of anitune, or damaged ({error})") from error


def _misfit(model: ElementNetworks, tensors: Mapping[str, Tensor]) -> str | None:
    """The first weights that are missing, too many or of another shape, in words."""
    wanted = {name: tuple(weights.shape) for name, weights in model.state_dict().items()}
    found = {name: tuple(weights.shape) for name, weights in tensors.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            return f"{name} has the shape {found.get(name)} instead of {wanted.get(name)}"
    return None


def _widths(model: ElementNetworks) -> str:
    return "-".join(map(str, model.config.hidden))
