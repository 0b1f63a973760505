"""Studies of earlier versions, with other settings and defaults: they stay what they were, and go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from alembic import command
from sqlalchemy import select, update
from typer.testing import CliRunner, Result

from search.cli.main import app
from search.propose.space import distributions
from search.study import study_from_record
from storage.database import migrate_database, open_database
from storage.records import schema
from storage.records.tables import studies
from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE, Settings, load_settings
from storage.studies import Budget, create_study, open_study
from trainer.config import TrainConfig, default_settings
from trainer.progress import no_progress
from trainer.task import prepare_data

STUDY = """
name: tiny
data: {files: [data.h5]}
split: {by: molecule, fractions: [0.6, 0.2, 0.2]}
training: {epochs: 1, device: cpu}
limits: {trials: 1}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_home: Callable[[Path], Settings]) -> Path:
    """Five groups without SMILES: three of water, two of hydrogen peroxide."""
    random = np.random.default_rng(0)
    water = np.array([(0, 0, 0.12), (0, 0.76, -0.47), (0, -0.76, -0.47)])
    peroxide = np.array([(0, 0.7, -0.05), (0, -0.7, -0.05), (0.83, 0.88, 0.4), (-0.83, -0.88, 0.4)])
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for number, (symbols, geometry) in enumerate([("OHH", water)] * 3 + [("OOHH", peroxide)] * 2):
            group = file.create_group(f"g{number}")
            group["species"] = np.array(list(symbols), "S1")
            group["coordinates"] = geometry + random.normal(scale=0.03, size=(4, *geometry.shape))
            group["energies"] = -76.0 + random.normal(scale=0.01, size=4)
    (tmp_path / "study.yaml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    make_home(tmp_path / "home")
    monkeypatch.setenv("ANITUNE_HOME", str(tmp_path / "home"))
    for variable in (STORAGE_VARIABLE, TRACKING_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def anitune(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def record() -> dict[str, Any]:
    with open_database(load_settings()) as database:
        return dict(open_study(database, "tiny").config)


def change_record(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Change the record of the study, as if an earlier version had made it."""
    with open_database(load_settings()) as database, database.writing() as connection:
        config = json.loads(json.dumps(connection.execute(select(studies.c.config)).scalar_one()))
        change(config)
        connection.execute(update(studies).values(config=config))
    return dict(config)


def without_later_settings(config: dict[str, Any]) -> None:
    del config["split"]["molecules"]
    for setting in sorted(config["data"].keys() - {"files", "high_energy", "self_energies"}):
        del config["data"][setting]
    config["training"] = {"epochs": 1, "device": "cpu"}


def make_older() -> dict[str, Any]:
    """Take from the record of the study what an earlier version did not write, and upgrade the database."""
    change_record(without_later_settings)
    with open_database(load_settings()) as database, database.writing() as connection:
        command.downgrade(schema._config(connection), "0014")
    migrate_database(load_settings())
    return record()


def identities(config: dict[str, Any]) -> int:
    """Number of molecules that the study of a record tells apart."""
    study = study_from_record(config, "tiny")
    prepared = prepare_data(study.task, no_progress)
    return len(set(prepared.dataset.identities()))


def test_an_older_study_is_divided_as_it_was(folder: Path) -> None:
    two_molecules = "too few molecules (2) for the subsets of the split"
    assert two_molecules in anitune("study", "create", "study.yaml").stderr
    (folder / "study.yaml").write_text(STUDY.replace("0.6, 0.2, 0.2", "0.6, 0.4, 0.0"))
    assert anitune("study", "create", "study.yaml").exit_code == 0
    assert record()["split"]["molecules"] == "bonds"
    assert identities(record()) == 2
    older = make_older()
    assert identities(older) == 5
    assert older["data"]["duplicates"] == "keep"


def test_the_units_of_an_older_study_are_not_judged(folder: Path) -> None:
    (folder / "study.yaml").write_text(
        STUDY.replace("molecule", "structure").replace("[data.h5]", "[data.h5], unusual: keep")
    )
    with h5py.File(folder / "data.h5", "a") as file:
        for group in file.values():
            group["energies"][...] += 76.3  # as differences of something
    assert anitune("study", "create", "study.yaml").exit_code == 0
    older = make_older()
    assert older["data"]["unusual"] == "keep"
    assert identities(older) == 5


def test_the_file_of_an_older_study_is_still_its_file(folder: Path) -> None:
    (folder / "study.yaml").write_text(STUDY.replace("molecule", "structure"))
    assert anitune("study", "create", "study.yaml").exit_code == 0
    older = make_older()
    result = anitune("study", "create", "study.yaml")
    assert result.exit_code == 0
    kept = 'data.duplicates: "keep", data.unusual: "keep", split.molecules: "names"'
    assert f"tiny exists, and keeps what its file leaves open: {kept}\n" in result.stderr
    assert record() == older
    changed = STUDY.replace("molecule", "structure, seed: 5")
    (folder / "study.yaml").write_text(changed)
    result = anitune("study", "create", "study.yaml")
    assert result.exit_code == 2
    assert "exists with other settings (split.seed: 0 there, 5 here)" in result.stderr


def test_an_older_study_keeps_what_was_the_default(folder: Path) -> None:
    (folder / "study.yaml").write_text(STUDY.replace("molecule", "structure"))
    assert anitune("study", "create", "study.yaml").exit_code == 0

    def make_other(config: dict[str, Any]) -> None:
        config["data"]["duplicates"] = "refuse"
        config["pruner"] |= {"kind": "hyperband", "reduction_factor": 3}
        config["training"]["optimizer"] = "adam"
        config["space"]["dropout"] = {"low": 0.0, "high": 0.5, "log": False, "step": None}

    older = change_record(make_other)
    result = anitune("study", "create", "study.yaml")
    assert result.exit_code == 0, result.stderr
    kept = 'data.duplicates: "refuse", pruner.kind: "hyperband", pruner.reduction_factor: 3'
    assert (
        f'keeps what its file leaves open: {kept}, space.dropout.high: 0.5, training.optimizer: "adam"\n'
        in result.stderr
    )
    assert record() == older
    (folder / "study.yaml").write_text(STUDY.replace("molecule", "structure") + "pruner: {kind: none}\n")
    assert 'pruner.kind: "hyperband" there, "none" here' in anitune("study", "create", "study.yaml").stderr


def test_a_setting_that_the_record_lacks_is_not_searched(folder: Path) -> None:
    (folder / "study.yaml").write_text(STUDY.replace("molecule", "structure"))
    assert anitune("study", "create", "study.yaml").exit_code == 0
    older = change_record(lambda config: config["space"].pop("weight_decay"))
    study = study_from_record(record(), "tiny")
    assert "weight_decay" not in distributions(study)
    assert study.training["weight_decay"] == TrainConfig.weight_decay
    assert anitune("study", "create", "study.yaml").exit_code == 0
    assert record() == older
    searched = STUDY.replace("molecule", "structure") + "space: {weight_decay: default}\n"
    (folder / "study.yaml").write_text(searched)
    result = anitune("study", "create", "study.yaml")
    assert result.exit_code == 2
    assert "exists with other settings (space.weight_decay: null there, {" in result.stderr


@pytest.mark.parametrize(
    ("setting", "then"),
    [("duplicates: drop", '"keep" there, "drop"'), ("links_outside: true", "false there, true")],
)
def test_an_older_study_does_not_take_a_setting_that_it_never_had(
    folder: Path, setting: str, then: str
) -> None:
    (folder / "study.yaml").write_text(STUDY.replace("molecule", "structure"))
    assert anitune("study", "create", "study.yaml").exit_code == 0
    make_older()
    changed = STUDY.replace("molecule", "structure").replace("[data.h5]", f"[data.h5], {setting}")
    (folder / "study.yaml").write_text(changed)
    result = anitune("study", "create", "study.yaml")
    assert result.exit_code == 2
    assert f"exists with other settings (data.{setting.split(':')[0]}: {then} here)" in result.stderr
    (folder / "study.yaml").write_text(changed.replace(setting, "duplicates: keep, links_outside: false"))
    assert anitune("study", "create", "study.yaml").exit_code == 0


def test_an_upgrade_completes_a_record_as_it_was_meant(folder: Path) -> None:
    """Trials of asha were stopped for good, and reference studies are as old as their studies."""
    sections = {"data": {"files": ["a"]}, "split": {}}
    rows = {"name": "rows", **sections, "rows": [{"label": "a"}], "space": None, "pruner": None}
    space = {"layers": 1, "width": 8}
    config = {"name": "tiny", **sections, "space": space, "pruner": {"kind": "asha"}, "reference": rows}
    with open_database(load_settings()) as database:
        create_study(database, "tiny", config, Budget())
        with database.writing() as connection:
            command.downgrade(schema._config(connection), "0014")
    migrate_database(load_settings())
    study = study_from_record(record(), "tiny")
    assert study.pruner is not None
    assert study.reference is not None
    assert (study.pruner.stop, study.pruner.finish) == (True, 1)
    assert (study.split.molecules, study.reference.split.molecules) == ("names", "names")
    assert study.reference.data.duplicates == "keep"
    assert record()["reference"]["training"]["hidden"] == [128]
    later = {"features"}  # added after that upgrade
    assert set(default_settings()) - set(record()["training"]) == {"hidden", "seed"} | later


def test_an_older_study_follows_its_data_to_another_folder_as_it_was(folder: Path) -> None:
    """It holds a structure twice, which an earlier version did not look for."""
    with h5py.File(folder / "data.h5", "a") as file:
        for key in ("coordinates", "energies"):
            values = np.array(file["g0"][key])
            values[1] = values[0]
            file["g0"][key][...] = values
    kept = STUDY.replace("molecule", "structure").replace("[data.h5]", "[data.h5], duplicates: keep")
    (folder / "study.yaml").write_text(kept)
    assert anitune("study", "create", "study.yaml").exit_code == 0
    make_older()
    (folder / "moved").mkdir()
    (folder / "data.h5").rename(folder / "moved" / "data.h5")
    (folder / "study.yaml").write_text(
        STUDY.replace("molecule", "structure").replace("data.h5", "moved/data.h5")
    )
    result = anitune("study", "create", "study.yaml")
    assert result.exit_code == 0, result.stderr
    assert record()["data"]["files"] == [str(folder / "moved" / "data.h5")]
    assert record()["data"]["duplicates"] == "keep"
