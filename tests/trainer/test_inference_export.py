from __future__ import annotations

import io
import pickletools
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.config import Activation, AEVConfig, TrainConfig
from trainer.data.elements import ATOMIC_NUMBERS
from trainer.errors import DataError, ExportError
from trainer.evaluation.units import HARTREE_TO_KCALMOL
from trainer.features.aev import aev_length
from trainer.inference.ensemble import Ensemble
from trainer.inference.export import TOLERANCE, export_model, sample_structures
from trainer.inference.portable import PortableModel
from trainer.inference.structures import make_structure
from trainer.inference.torchani_model import as_torchani
from trainer.networks.activations import ACTIVATIONS
from trainer.networks.files import SavedModel
from trainer.networks.model import ElementNetworks

SELF_ENERGIES = {"H": -0.500607632585, "C": -37.8302333826, "N": -54.5680045287, "O": -75.0362229210}
WATER = make_structure("OHH", [[0, 0, 0.12], [0, 0.76, -0.47], [0, -0.76, -0.47]], "water")


def ensemble_of(*configs: TrainConfig, aev: AEVConfig = AEVConfig(), without: str = "") -> Ensemble:  # noqa: B008
    members = []
    for config in configs:
        model = ElementNetworks(config, aev.elements, aev_length(aev)).eval()
        energies = {element: energy for element, energy in SELF_ENERGIES.items() if element not in without}
        members.append(SavedModel(model, aev, energies))
    return Ensemble(members)


def config(activation: Activation = "silu", seed: int = 0, **settings: object) -> TrainConfig:
    fixed = {"hidden": (16, 8), "precision": "float32", **settings}
    return TrainConfig(activation=activation, seed=seed, **fixed)  # type: ignore[arg-type]


ENSEMBLE = (config(seed=1), config(seed=2))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_network_gives_the_same_energies_in_torchani_and_as_plain_tensor_operations(
    activation: Activation,
) -> None:
    by_element = {"H": (16, 8), "C": (9, 12), "N": (8, 4), "O": (5, 7)}
    ensemble = ensemble_of(
        config(activation, activate_output=activation == "tanh"),
        config(activation, seed=1, hidden=by_element, activate_output=activation == "tanh"),
    )
    structures = sample_structures(ensemble)[::25]
    model, portable = as_torchani(ensemble), PortableModel(ensemble)
    for structure, expected in zip(structures, ensemble.predict(structures).energies, strict=True):
        numbers = torch.tensor([[ATOMIC_NUMBERS[symbol] for symbol in structure.symbols]])
        coordinates = torch.from_numpy(structure.coordinates)[None]
        for found in (model((numbers, coordinates)).energies, portable(numbers, coordinates)[0]):
            assert found.dtype == torch.float64
            assert abs(found.item() - expected) * HARTREE_TO_KCALMOL < TOLERANCE / 2


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two formats of one ensemble."""
    folder = tmp_path_factory.mktemp("exported")
    ensemble = ensemble_of(*ENSEMBLE)
    structures = sample_structures(ensemble)[::4]
    assert 0 < export_model(ensemble, "torchani", folder / "m.safetensors", structures) < TOLERANCE
    assert 0 < export_model(ensemble, "torch-export", folder / "m.pt2", structures) < TOLERANCE
    return folder


def test_torchani_loads_the_file_without_this_package(exported: Path) -> None:
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import torch; from load_torchani import load_model\n"
        "model = load_model('m.safetensors')\n"
        "x = torch.tensor([[[0, 0, 0.12], [0, 0.76, -0.47], [0, -0.76, -0.47]]], dtype=torch.float64)\n"
        "print(repr(model((torch.tensor([[8, 1, 1]]), x)).energies.item()), len(model))\n"
        "import sys; assert not {'trainer', 'search', 'storage'} & set(sys.modules)"
    )
    # -I leaves this repository out of the path.
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '.')\n{code}"]
    done = subprocess.run(command, cwd=exported, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    energy, members = done.stdout.split()
    expected = ensemble_of(*ENSEMBLE).predict([WATER]).energies[0]
    assert float(energy) == pytest.approx(expected, abs=TOLERANCE / HARTREE_TO_KCALMOL, rel=0)
    assert members == "2"


def test_a_program_takes_any_number_of_structures_and_atoms(exported: Path) -> None:
    program = torch.export.load(exported / "m.pt2").module()
    predictions = ensemble_of(*ENSEMBLE).predict([WATER])
    for batch, atoms in ((1, 3), (7, 4), (2, 12)):
        numbers = torch.zeros((batch, atoms), dtype=torch.int64)
        numbers[:, :3] = torch.tensor([8, 1, 1])
        coordinates = torch.zeros((batch, atoms, 3), dtype=torch.float64)
        coordinates[:, :3] = torch.from_numpy(WATER.coordinates)
        energies, spread = program(numbers, coordinates)
        np.testing.assert_allclose(energies, np.repeat(predictions.energies, batch), rtol=0, atol=1e-6)
        np.testing.assert_allclose(spread, np.repeat(predictions.spread, batch), rtol=1e-3)


def test_a_program_gives_forces_also_of_padded_structures() -> None:
    model = PortableModel(ensemble_of(config()))
    numbers = torch.tensor([[8, 1, 1, 0]])
    coordinates = torch.zeros((1, 4, 3), dtype=torch.float64)
    coordinates[0, :3] = torch.from_numpy(WATER.coordinates)
    coordinates.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(numbers, x)[0], coordinates, atol=1e-7)


def test_unknown_elements_have_no_energy() -> None:
    ensemble = ensemble_of(config(), without="N")
    numbers, coordinates = torch.tensor([[7, 1]]), torch.tensor([[[0, 0, 0], [0, 0, 1.0]]]).double()
    assert as_torchani(ensemble)((numbers, coordinates)).energies.isnan().all()
    assert PortableModel(ensemble)(numbers, coordinates)[0].isnan().all()


def test_what_is_compared_may_have_any_composition(tmp_path: Path) -> None:
    """Whether the written model does the same does not depend on what its training data tell."""
    ensemble = ensemble_of(config())
    limited = Ensemble([replace(each, balances=({"H": 1, "O": -2},)) for each in ensemble.members])
    structures = sample_structures(limited)[::50]
    assert any(limited.unknown(structure) for structure in structures)
    assert export_model(limited, "torchani", tmp_path / "m.safetensors", structures) < TOLERANCE


def test_nothing_exported_is_pickled(exported: Path) -> None:
    with zipfile.ZipFile(exported / "m.pt2") as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    assert len(contents) > 30
    for content in contents:
        assert not zipfile.is_zipfile(io.BytesIO(content))  # as torch.save makes them
        with pytest.raises((ValueError, IndexError)):
            list(pickletools.genops(content))


def test_a_model_that_came_out_otherwise_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = ensemble_of(config())
    other = ensemble_of(config(seed=9))
    monkeypatch.setattr(ensemble, "predict", other.predict)
    with pytest.raises(ExportError, match="differs by"):
        export_model(ensemble, "torchani", tmp_path / "m.safetensors", [WATER])
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_elements_that_the_sample_lacks_needs_structures() -> None:
    ensemble = ensemble_of(config(), aev=replace(AEVConfig(), elements=("H", "C", "S")), without="NO")
    ensemble.self_energies = {"S": -398.0}
    with pytest.raises(DataError, match="--check"):
        sample_structures(ensemble)
