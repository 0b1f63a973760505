from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from trainer.config import AEVConfig, TrainConfig
from trainer.errors import ConfigError, ModelFileError, OutputError
from trainer.networks.files import METADATA, load_model, save_model, warm_start
from trainer.networks.model import ElementNetworks

AEV = AEVConfig()
CONFIG = TrainConfig(hidden=(16, 8), activation="gaussian", dropout=0.2, precision="float32", seed=3)
SELF_ENERGIES = {"H": -0.500607632585, "C": -37.8302333826, "O": -75.0362229210}


def networks(config: TrainConfig = CONFIG) -> ElementNetworks:
    return ElementNetworks(config, AEV.elements, 384)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(path, networks(), AEV, SELF_ENERGIES)
    return path


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, object]], object]) -> None:
    """Change the tensors or the record of a model file."""
    with safetensors.safe_open(path, "pt") as file:
        record = json.loads(file.metadata()[METADATA])
    tensors = safetensors.torch.load_file(path)
    change(tensors, record)
    safetensors.torch.save_file(tensors, path, {METADATA: json.dumps(record)})


def test_a_file_gives_back_the_network_and_what_belongs_to_it(model_file: Path) -> None:
    saved = load_model(model_file)
    assert saved.model.config == CONFIG
    assert saved.aev == AEV
    assert saved.self_energies == SELF_ENERGIES
    assert not saved.model.training
    for (name, ours), (loaded_name, loaded) in zip(
        networks().named_parameters(), saved.model.named_parameters(), strict=True
    ):
        assert name == loaded_name
        assert torch.equal(ours, loaded)


def test_widths_may_differ_by_element(tmp_path: Path) -> None:
    hidden = {"H": (16, 8), "C": (9, 7), "N": (5, 4), "O": (6, 3)}
    model = networks(replace(CONFIG, hidden=hidden))
    assert model.parameter_count == sum(385 * a + (a + 1) * b + b + 1 for a, b in hidden.values())
    path = tmp_path / "model.safetensors"
    save_model(path, model, AEV, SELF_ENERGIES)
    saved = load_model(path).model
    assert saved.config.hidden == hidden
    assert torch.equal(saved.layers(1)[1].weight, model.layers(1)[1].weight)
    with pytest.raises(ConfigError, match=r"its hidden widths are H 16-8 \| C 9-7 .* this training 16-8"):
        warm_start(networks(), AEV, path)
    rewrite(path, lambda tensors, record: record["training"]["hidden"].pop("N"))  # type: ignore[index]
    with pytest.raises(ModelFileError, match="no widths of N"):
        load_model(path)


def test_weights_keep_their_precision(tmp_path: Path) -> None:
    model = networks(replace(CONFIG, precision="float64"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-12)
    save_model(tmp_path / "m", model, AEV, SELF_ENERGIES)
    loaded = load_model(tmp_path / "m").model
    for ours, theirs in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_same_model_gives_the_same_bytes(model_file: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "again", networks(), AEV, SELF_ENERGIES)
    assert (tmp_path / "again").read_bytes() == model_file.read_bytes()


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"model.safetensors: cannot be written"):
        save_model(tmp_path / "file" / "model.safetensors", networks(), AEV, SELF_ENERGIES)


def drop_a_tensor(tensors: dict[str, Tensor], record: dict[str, object]) -> None:
    del tensors["networks.C.0.weight"]


def transpose_a_tensor(tensors: dict[str, Tensor], record: dict[str, object]) -> None:
    tensors["networks.H.1.weight"] = tensors["networks.H.1.weight"].T.contiguous()


def add_a_tensor(tensors: dict[str, Tensor], record: dict[str, object]) -> None:
    tensors["networks.S.0.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (drop_a_tensor, "networks.C.0.weight is missing"),
        (
            transpose_a_tensor,
            r"networks.H.1.weight is torch.float32 \(16, 8\) instead of torch.float32 \(8, 16\)",
        ),
        (add_a_tensor, "'networks.S.0.weight' is not one of its tensors"),
        (lambda _, record: record.update(format=99), "format 99; this version reads 1"),
        (lambda _, record: record.pop("aev"), "not a model file of anitune"),
        (lambda _, record: record.update(self_energies=[1]), "self_energies: input should be a mapping"),
        (lambda _, record: record["training"].update(hidden=[]), "hidden: .*damaged, or of another version"),
        (lambda _, record: record["training"].update(widths=[3]), "widths: no such setting"),
    ],
    ids=["tensor", "transposed", "extra", "format", "no aev", "self-energies", "hidden", "unknown setting"],
)
def test_a_file_whose_parts_do_not_fit_is_refused(
    model_file: Path, change: Callable[[dict[str, Tensor], dict[str, object]], object], fault: str
) -> None:
    rewrite(model_file, change)
    with pytest.raises(ModelFileError, match=rf"model.safetensors: .*{fault}"):
        load_model(model_file)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a network", b"\x80\x04\x95", safetensors.torch.save({"weight": torch.zeros(3)})],
    ids=["empty", "text", "pickle", "another's"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ModelFileError, match="/m: not a model file of anitune, or damaged"):
        load_model(tmp_path / "m")


def test_a_truncated_file_is_refused(model_file: Path) -> None:
    model_file.write_bytes(model_file.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match="not a model file of anitune, or damaged"):
        load_model(model_file)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"nowhere: cannot be read: No such file"):
        load_model(tmp_path / "nowhere")


def test_a_warm_start_takes_the_weights_and_nothing_else(model_file: Path) -> None:
    config = replace(CONFIG, seed=8, learning_rate=1e-5, activation="relu", dropout=0.0, precision="float64")
    model = networks(config)
    warm_start(model, AEV, model_file)
    assert model.config == config
    for ours, theirs in zip(model.parameters(), networks().parameters(), strict=True):
        assert torch.equal(ours, theirs.double())


def test_a_warm_start_from_other_layers_is_refused(model_file: Path) -> None:
    with pytest.raises(ConfigError, match="its hidden widths are 16-8, those of this training 16;"):
        warm_start(networks(replace(CONFIG, hidden=(16,))), AEV, model_file)


def test_a_warm_start_from_other_features_is_refused(model_file: Path) -> None:
    # The shapes agree, the numbers that come in do not.
    with pytest.raises(ConfigError, match="its features differ in elements, zeta"):
        warm_start(networks(), replace(AEV, zeta=14.1, elements=("C", "H", "N", "O")), model_file)
