"""Model files: weights and their settings in one safetensors file. The network is rebuilt from code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import safetensors
import safetensors.torch
import torch
from pydantic import FiniteFloat

from trainer.config import AEVConfig, TrainConfig, dump_config, load_config
from trainer.data.stoichiometry import Balance
from trainer.errors import ConfigError, ModelFileError
from trainer.features.aev import aev_length
from trainer.files import write_by_rename
from trainer.networks.model import WEIGHT_DTYPES, ElementNetworks, weight_shapes
from trainer.networks.widths import by_element, other_elements, widths_text
from trainer.strict_json import parse_json
from trainer.tensor_files import TensorKind, misfit, tensor_kinds

#: The only key of the file's metadata. (With several keys, their order and so the bytes would vary.)
METADATA: Final = "anitune"

FORMAT: Final = 1

CPU: Final = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A network with everything needed to predict total energies.

    Attributes
    ----------
    model : the network, in evaluation mode
    aev : the constants of its features
    self_energies : energy of a single atom by element, hartree, to be added to the network's energies
    balances : what all compositions of the training set have in common (see
        :mod:`trainer.data.stoichiometry`); empty: nothing, or not recorded
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
        if it cannot be written; no partial file is left.
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
        if the file cannot be read, is not a model file, or its weights do not match its settings.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            config, aev, self_energies, balances = _settings((file.metadata() or {})[METADATA], str(path))
            # Checked before a network is allocated: settings of a few bytes can ask for any amount of memory.
            found, wanted = tensor_kinds(file), _weights(config, aev)
            if fault := misfit(found, wanted):
                raise ModelFileError(f"{path}: {fault}; the file is damaged")
            tensors = {name: file.get_tensor(name) for name in found}
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: not a model file of anitune, or damaged ({error})") from error
    except ConfigError as error:
        raise ModelFileError(f"{error}; the file is damaged, or of another version") from error
    if not all(bool(weights.isfinite().all()) for weights in tensors.values()):
        raise ModelFileError(f"{path}: a weight is NaN or infinite; the file is damaged")
    model = ElementNetworks(config, aev.elements, aev_length(aev), device)
    model.load_state_dict(tensors)
    return SavedModel(model.eval(), aev, self_energies, balances)


def same_weights(one: Path, other: Path) -> bool:
    """Whether the networks of two model files have the same weights, bit for bit.

    Raises
    ------
    ModelFileError
        if one of them cannot be read.
    """
    ours, theirs = (load_model(path).model.state_dict() for path in (one, other))
    return ours.keys() == theirs.keys() and all(
        weights.dtype == theirs[name].dtype and torch.equal(weights, theirs[name])
        for name, weights in ours.items()
    )


def _settings(text: str, where: str) -> tuple[TrainConfig, AEVConfig, dict[str, float], tuple[Balance, ...]]:
    record = parse_json(text)
    if record["format"] != FORMAT:
        raise ModelFileError(
            f"{where}: a model file with format {record['format']!r:.40}; this version reads {FORMAT}"
        )
    config = load_config(TrainConfig, record["training"], where)
    aev = load_config(AEVConfig, record["aev"], where)
    energies = load_config(dict[str, FiniteFloat], record["self_energies"], f"{where}: self_energies")
    balances = load_config(tuple[Balance, ...], record.get("balances", ()), f"{where}: balances")
    if fault := other_elements(config.hidden, aev.elements):
        raise ValueError(fault)
    if config.precision == "auto":  # files record the resolved precision
        raise ValueError("it does not say in which precision its weights are")
    return config, aev, energies, balances


def _weights(config: TrainConfig, aev: AEVConfig) -> dict[str, TensorKind]:
    dtype = WEIGHT_DTYPES[config.precision]
    shapes = weight_shapes(config, aev.elements, aev_length(aev))
    return {name: TensorKind(shape, dtype) for name, shape in shapes.items()}


def warm_start(model: ElementNetworks, aev: AEVConfig, path: Path) -> None:
    """Load the weights of a model file into a network that is about to be trained, in its own precision.

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
    ours, theirs = (by_element(each.config.hidden, aev.elements) for each in (model, saved.model))
    if ours != theirs:
        raise ConfigError(
            f"warm start from {path}: its hidden widths are {widths_text(saved.model.config.hidden)},"
            f" those of this training {widths_text(model.config.hidden)}; set training.hidden to the same"
        )
    model.load_state_dict(saved.model.state_dict())
