from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from search.cli.main import app
from storage.settings import load_settings
from storage.tracking.mlflow_runs import open_runs
from trainer.config import TrainConfig
from trainer.evaluation.units import HARTREE_TO_EV, HARTREE_TO_KCALMOL
from trainer.inference.domain import training_domain
from trainer.inference.ensemble import Ensemble
from trainer.inference.files import read_structures
from trainer.networks.files import SavedModel, save_model
from trainer.networks.model import ElementNetworks
from trainer.task import Task

# Of the versions that MLflow stands on.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "using-the-model.md"
WATERS = """3
like in the training data
O 0 0 0.12
H 0 0.76 -0.47
H 0 -0.76 -0.47
3
torn apart
O 0 0 0.12
H 0 1.76 -0.47
H 0 -1.76 -0.47
"""


def anitune(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def complaint(result: Result) -> str:
    assert result.exit_code == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert result.stdout == ""
    return line.removeprefix("anitune: ")


def network(task: Task, seed: int) -> SavedModel:
    config = TrainConfig(hidden=(8,), activation="silu", precision="float32", seed=seed)
    model = ElementNetworks(config, task.aev.elements, task.features.length).eval()
    return SavedModel(model, task.aev, task.self_energies)


@pytest.fixture(scope="module")
def model(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "ensemble"
    Ensemble([network(task, seed) for seed in range(3)], training_domain(task)).save(folder)
    return folder


@pytest.fixture
def waters(tmp_path: Path) -> Path:
    path = tmp_path / "waters.xyz"
    path.write_text(WATERS)
    return path


def test_energies_are_printed_with_their_uncertainty_and_warnings(model: Path, waters: Path) -> None:
    result = anitune("predict", model, waters)
    assert result.exit_code == 0, result.stderr
    predictions = Ensemble.open(model).predict(read_structures(waters))
    head, first, second = result.stdout.splitlines()
    assert head.endswith("[hartree]")
    assert first.split()[:2] == [f"{predictions.energies[0]:.6f}", f"{predictions.spread[0]:.6f}"]
    assert "far" in second.split()
    assert "far" not in first.split()
    (warning,) = result.stderr.splitlines()
    assert warning.startswith(f"warning: {waters}, structure 1: far from the training data (atom ")


@pytest.mark.parametrize(("unit", "factor"), [("kcal/mol", HARTREE_TO_KCALMOL), ("eV", HARTREE_TO_EV)])
def test_json_has_all_digits_in_the_unit_asked_for(
    model: Path, waters: Path, unit: str, factor: float
) -> None:
    result = anitune("predict", model, waters, "--json", "--unit", unit)
    values = json.loads(result.stdout)
    predictions = Ensemble.open(model).predict(read_structures(waters))
    assert (values["unit"], values["members"]) == (unit, 3)
    np.testing.assert_allclose(
        [row["energy"] for row in values["structures"]], predictions.energies * factor, rtol=1e-12
    )
    np.testing.assert_allclose(
        [row["uncertainty"] for row in values["structures"]], predictions.spread * factor, rtol=1e-12
    )
    assert [row["far"] for row in values["structures"]] == [False, True]
    assert values["structures"][0]["formula"] == "H2O"


def test_there_are_as_many_energies_as_structures(model: Path, tmp_path: Path) -> None:
    water, apart = "".join(WATERS.splitlines(True)[:5]), "".join(WATERS.splitlines(True)[5:])
    file = tmp_path / "some.xyz"
    file.write_text(f"\ufeff\n{water}\n{apart}\n\n{water}\n")
    values = json.loads(anitune("predict", model, file, "--json").stdout)
    first, second, third = (row["energy"] for row in values["structures"])
    assert first == third != second
    file.write_text(water + "\n" + apart.replace("torn apart", 'Lattice="9 0 0 0 9 0 0 0 9"'))
    assert f"{file}, line 7: it is periodic" in complaint(anitune("predict", model, file))


def test_several_files_go_into_one_table(model: Path, waters: Path, data_file: Path, tmp_path: Path) -> None:
    result = anitune("predict", model, waters, data_file, "--out", tmp_path / "all.csv")
    assert result.exit_code == 0, result.stderr
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 122
    assert [(row["file"], row["structure"]) for row in rows[1:3]] == [
        (str(waters), "1"),
        (str(data_file), "0"),
    ]
    predictions = Ensemble.open(model).predict(read_structures(data_file))
    assert [float(row["energy_hartree"]) for row in rows[2:]] == predictions.energies.tolist()


def test_structures_are_written_with_their_energies_for_ase(
    model: Path, waters: Path, tmp_path: Path
) -> None:
    ase_io = pytest.importorskip("ase.io")
    out = tmp_path / "out.extxyz"
    assert anitune("predict", model, waters, "--unit", "eV", "--out", out).exit_code == 0
    predictions = Ensemble.open(model).predict(read_structures(waters))
    first, second = ase_io.read(out, ":")
    assert first.get_potential_energy() == predictions.energies[0] * HARTREE_TO_EV
    assert (first.info["far"], second.info["far"]) == (False, True)
    assert not first.pbc.any()
    # Another unit is not mistaken for eV.
    assert anitune("predict", model, waters, "--out", out).exit_code == 0
    assert ase_io.read(out, 0).calc is None
    assert ase_io.read(out, 0).info["energy_hartree"] == predictions.energies[0]


def test_a_single_network_says_what_it_cannot_know(task: Task, waters: Path, tmp_path: Path) -> None:
    saved = network(task, 0)
    save_model(tmp_path / "model.safetensors", saved.model, saved.aev, saved.self_energies)
    result = anitune("predict", tmp_path, waters)  # the folder of a training
    assert result.exit_code == 0
    assert "this model has no record of its training data" in result.stderr
    assert result.stdout.splitlines()[1].split()[1] == "-"
    row = json.loads(anitune("predict", tmp_path, waters, "--json").stdout)["structures"][0]
    assert row["uncertainty"] is None
    assert row["novelty"] is None


def test_a_structure_with_an_unknown_element_keeps_no_other_from_its_energy(
    model: Path, waters: Path, tmp_path: Path
) -> None:
    (expected, _) = json.loads(anitune("predict", model, waters, "--json").stdout)["structures"]
    sulfur, water = "3\n\nS 0 0 0\nH 0 1 1\nH 0 -1 1\n", "".join(WATERS.splitlines(True)[:5])
    waters.write_text(sulfur + water)
    result = anitune("predict", model, waters, "--json", "--out", tmp_path / "out.csv")
    assert result.exit_code == 0
    assert f"{waters}, structure 0: no energy: it contains S, but the model was trained on" in result.stderr
    unknown, known = json.loads(result.stdout)["structures"]
    assert [unknown[name] for name in ("energy", "uncertainty", "novelty")] == [None] * 3
    assert known == expected | {"structure": 1}
    first, second = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    assert first["energy_hartree"] == ""
    assert float(second["energy_hartree"]) == expected["energy"]
    text = anitune("predict", model, waters).stdout.splitlines()
    assert text[1].split()[0] == "-"


def test_bad_input_is_one_line(model: Path, waters: Path, tmp_path: Path) -> None:
    assert "nowhere.xyz: no such file" in complaint(anitune("predict", model, tmp_path / "nowhere.xyz"))
    assert "nowhere: cannot be read" in complaint(anitune("predict", tmp_path / "nowhere", waters))
    (tmp_path / "empty.xyz").write_text("")
    assert "it contains no structure" in complaint(anitune("predict", model, tmp_path / "empty.xyz"))
    assert "--out t.txt: the name must end in" in complaint(
        anitune("predict", model, waters, "--out", "t.txt")
    )
    assert "write models:/NAME@champion" in complaint(anitune("predict", "models:/x", waters))


def test_a_model_is_exported_for_torchani(model: Path, tmp_path: Path) -> None:
    result = anitune("export", model, "--to", "torchani", "--out", tmp_path / "water.safetensors")
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["load_torchani.py", "water.safetensors"]
    first, second = result.stdout.splitlines()
    assert "water.safetensors: differs by " in first
    assert float(first.split("differs by ")[1].split()[0]) < 1e-3
    assert second.endswith("load_torchani.py: Python module that loads it")
    assert "must end in .pt2" in complaint(
        anitune("export", model, "--to", "torch-export", "--out", tmp_path / "water.safetensors")
    )


def test_the_champion_of_the_registry_is_a_model(
    model: Path, waters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANITUNE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ANITUNE_TRACKING_URI", raising=False)
    (tmp_path / "home").mkdir()
    runs = open_runs(load_settings())
    experiment = runs.experiment("promoted models", {})
    run = runs.find_or_create(experiment, "key", "water", 0, {})
    files = {f"model/artifacts/ensemble/{path.name}": path for path in model.iterdir()}
    runs.upload(run, files)

    def register(client):  # type: ignore[no-untyped-def]
        client.create_registered_model("water")
        source = f"{client.get_run(run).info.artifact_uri}/model"
        client.create_model_version("water", source, run)
        client.set_registered_model_alias("water", "champion", "1")

    runs.ask(register)
    expected = json.loads(anitune("predict", model, waters, "--json").stdout)
    for address in ("models:/water@champion", "models:/water/1"):
        result = anitune("predict", address, waters, "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout) == expected
    line = complaint(anitune("predict", "models:/water@nobody", waters))
    assert "`anitune promote` registers models" in line

    # The folder of the ensemble, for ASE on another machine, as docs/using-the-model.md gets it.
    (command,) = re.findall(r"^mlflow (artifacts download .*)", PAGE.read_text(), re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", *command.replace("quickstart", "water").split()],
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/home/mlflow.db"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = tmp_path / "downloaded" / "artifacts" / "ensemble"
    assert json.loads(anitune("predict", found, waters, "--json").stdout) == expected


def test_a_composition_that_the_training_data_do_not_tell(task: Task, tmp_path: Path) -> None:
    """All training molecules had two H for each O: what OH has no sum of them says."""
    saved = network(task, 0)
    balances = ({"H": 1, "O": -2},)
    save_model(tmp_path / "model.safetensors", saved.model, saved.aev, saved.self_energies, balances)
    file = tmp_path / "some.xyz"
    file.write_text("2\n\nO 0 0 0\nH 0 0 1\n" + "".join(WATERS.splitlines(True)[:5]))
    result = anitune("predict", tmp_path, file, "--json")
    assert result.exit_code == 0
    said = (
        "structure 0: no energy: HO cannot be predicted from the training data, where H = 2 O in all"
        " molecules"
    )
    assert f"warning: {file}, {said}" in result.stderr.splitlines()
    hydroxyl, water = json.loads(result.stdout)["structures"]
    assert hydroxyl["energy"] is None
    assert water["energy"] is not None
    result = anitune("predict", tmp_path, file, "--json", "--any-composition")
    assert "no energy" not in result.stderr
    assert json.loads(result.stdout)["structures"][0]["energy"] is not None
