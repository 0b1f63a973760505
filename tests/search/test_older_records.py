"""Studies whose records were made before a setting existed: they stay what they were, and go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from sqlalchemy import select, update
from typer.testing import CliRunner, Result

from search.cli.main import app
from search.study import recorded_values, study_from_record
from storage.database import open_database
from storage.records.tables import studies
from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE, load_settings
from storage.studies import open_study
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
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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
    monkeypatch.setenv("ANITUNE_HOME", str(tmp_path / "home"))
    for variable in (STORAGE_VARIABLE, TRACKING_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def anitune(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def record() -> dict[str, Any]:
    with open_database(load_settings()) as database:
        return dict(open_study(database, "tiny").config)


def make_older() -> dict[str, Any]:
    """Take from the record of the study what an earlier version did not write."""
    with open_database(load_settings()) as database, database.writing() as connection:
        config = json.loads(json.dumps(connection.execute(select(studies.c.config)).scalar_one()))
        del config["split"]["molecules"]
        for setting in sorted(config["data"].keys() - {"files", "high_energy", "self_energies"}):
            del config["data"][setting]
        connection.execute(update(studies).values(config=config))
        return dict(config)


def identities(config: dict[str, Any]) -> int:
    """Number of molecules that the study of a record tells apart."""
    study = study_from_record(config, "tiny")
    prepared = prepare_data(study.data, study.split, study.features, no_progress)
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
    assert recorded_values(older)["data"]["duplicates"] == "keep"


def test_the_units_of_an_older_study_are_not_judged(folder: Path) -> None:
    (folder / "study.yaml").write_text(
        STUDY.replace("molecule", "structure").replace("[data.h5]", "[data.h5], unusual: keep")
    )
    with h5py.File(folder / "data.h5", "a") as file:
        for group in file.values():
            group["energies"][...] += 76.3  # as differences of something
    assert anitune("study", "create", "study.yaml").exit_code == 0
    older = make_older()
    assert "unusual" not in older["data"]
    assert identities(older) == 5


def test_the_file_of_an_older_study_is_still_its_file(folder: Path) -> None:
    (folder / "study.yaml").write_text(STUDY.replace("molecule", "structure"))
    assert anitune("study", "create", "study.yaml").exit_code == 0
    older = make_older()
    result = anitune("study", "create", "study.yaml")
    assert result.exit_code == 0
    assert 'earlier version, and keeps data.duplicates: "keep", data.unusual: "keep",' in result.stderr
    assert record() == older
    changed = STUDY.replace("molecule", "structure, seed: 5")
    (folder / "study.yaml").write_text(changed)
    result = anitune("study", "create", "study.yaml")
    assert result.exit_code == 2
    assert "exists with other settings (split.seed: 0 there, 5 here)" in result.stderr


def test_an_older_study_keeps_the_pruner_that_was_the_default(folder: Path) -> None:
    (folder / "study.yaml").write_text(STUDY.replace("molecule", "structure"))
    assert anitune("study", "create", "study.yaml").exit_code == 0
    with open_database(load_settings()) as database, database.writing() as connection:
        older = record() | {"pruner": record()["pruner"] | {"kind": "hyperband", "reduction_factor": 3}}
        connection.execute(update(studies).values(config=older))
    result = anitune("study", "create", "study.yaml")
    assert result.exit_code == 0
    assert 'keeps pruner.kind: "hyperband", pruner.reduction_factor: 3' in result.stderr
    assert record() == older
    (folder / "study.yaml").write_text(STUDY.replace("molecule", "structure") + "pruner: {kind: none}\n")
    assert 'pruner.kind: "hyperband" there, "none" here' in anitune("study", "create", "study.yaml").stderr


@pytest.mark.parametrize(
    ("setting", "then"),
    [("duplicates: drop", '"keep"'), ("links_outside: true", "false"), ("duplicates: keep", None)],
)
def test_an_older_study_does_not_take_a_setting_that_it_never_had(
    folder: Path, setting: str, then: str | None
) -> None:
    (folder / "study.yaml").write_text(STUDY.replace("molecule", "structure"))
    assert anitune("study", "create", "study.yaml").exit_code == 0
    make_older()
    changed = STUDY.replace("molecule", "structure").replace("[data.h5]", f"[data.h5], {setting}")
    (folder / "study.yaml").write_text(changed)
    result = anitune("study", "create", "study.yaml")
    key = setting.split(":")[0]
    if then is None:
        assert result.exit_code == 0, result.stderr
        assert key not in result.stderr
        return
    assert result.exit_code == 2
    assert f"an earlier version that had only data.{key}: {then}: give this one another name" in result.stderr


def test_the_reference_of_an_older_study_is_as_old() -> None:
    config = {"data": {"files": ["a"]}, "split": {}, "reference": {"data": {"files": ["a"]}, "split": {}}}
    values = recorded_values(config)
    assert values["reference"]["split"] == values["split"] == {"molecules": "names"}
    newer = {"data": {"duplicates": "drop"}, "split": {"molecules": "bonds"}}
    kept = recorded_values(newer)
    assert (kept["data"]["duplicates"], kept["split"]["molecules"]) == ("drop", "bonds")


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
    assert recorded_values(record())["data"]["duplicates"] == "keep"
