"""Bad data, settings and places, tried with every command that they concern: one line, and nothing left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner, Result

import trainer.task
from search.cli.main import app
from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE
from trainer.data.readers import read_data

METHANOL = "molecules/molecules-2"
NOT_EVEN_ROOT_WRITES = Path("/proc/anitune")
NOBODY_ANSWERS = "postgresql://me:secret@127.0.0.1:9/none"


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_energies(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file[METHANOL]["energies"]


def shapes_that_disagree(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file[METHANOL]["energies"]
        file[METHANOL]["energies"] = np.zeros(3)


def unknown_element(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file[METHANOL]["species"][0] = b"X"


def not_a_number(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file[METHANOL]["energies"][7] = np.nan


def infinite(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file[METHANOL]["coordinates"][7, 0, 1] = np.inf


def without_features(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file[METHANOL]["species"][0] = b"F"


def one_structure(path: Path) -> None:
    with h5py.File(path, "a") as file:
        water = file["molecules/molecules-0"]
        one = {key: water[key][:1] for key in ("coordinates", "energies")} | {"species": water["species"][()]}
        del file["molecules"]
        for key, value in one.items():
            file[f"water/{key}"] = value


#: What the line says, beside the commands that can go on all the same.
FAULTS: dict[Callable[[Path], None], tuple[str, set[str]]] = {
    missing: ("data.h5: no such file; correct its name", set()),
    truncated: ("data.h5: not a readable HDF5 file; copy or download it again", set()),
    without_energies: (f"data.h5, group /{METHANOL}: there is no dataset 'energies'; add it", set()),
    shapes_that_disagree: (f"data.h5, group /{METHANOL}: the shapes disagree: 6 atoms", set()),
    unknown_element: (f"data.h5, group /{METHANOL}: 'species' names an unknown element 'X'; use", set()),
    not_a_number: (f"data.h5, group /{METHANOL}: 'energies' is NaN or infinite in 1 of 40", set()),
    infinite: (f"data.h5, group /{METHANOL}: 'coordinates' is NaN or infinite in 1 of 40", set()),
    without_features: ("holds F, but the features are for H, C, N, O only: leave", {"describe"}),
    one_structure: ("data.h5: one structure only", {"describe", "features"}),
}
COMMANDS = {
    "describe": ["data", "describe", "data.h5"],
    "features": ["data", "features", "data.h5"],
    "train": ["train", "run.yaml"],
    "create": ["study", "create", "study.yaml"],
    "run": ["study", "run", "study.yaml"],
    "worker": ["worker", "tiny"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_file: Path) -> Path:
    """Where a person works: a data file, and settings of a training and of a study on it."""
    shutil.copy(data_file, tmp_path / "data.h5")
    common = "data: {files: [data.h5]}\ntraining: {epochs: 1, hidden: [8], device: cpu}\n"
    (tmp_path / "run.yaml").write_text(common)
    (tmp_path / "study.yaml").write_text(f"name: tiny\nlimits: {{trials: 1}}\n{common}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANITUNE_HOME", str(tmp_path / "home"))
    for variable in (STORAGE_VARIABLE, TRACKING_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def anitune(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def complaint(result: Result, code: int) -> str:
    """The one line that a person reads."""
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    *notes, line = result.stderr.splitlines()
    assert all(note.startswith("The database is SQLite") for note in notes)
    assert line.startswith("anitune: ")
    assert "secret" not in line
    return line


def studies() -> list[str]:
    return [study["name"] for study in json.loads(anitune("study", "list", "--json").stdout)]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_data_that_cannot_be_used(fault: Callable[[Path], None], command: str, folder: Path) -> None:
    expected, accepting = FAULTS[fault]
    if command == "worker":
        assert anitune("study", "create", "study.yaml").exit_code == 0
    fault(folder / "data.h5")
    result = anitune(*COMMANDS[command])
    if command in accepting:
        assert result.exit_code == 0, result.stderr
        return
    assert expected in complaint(result, 2)
    left = [path for path in (folder / "home").rglob("*") if path.is_file()]
    assert {path.name for path in left} <= {"anitune.db", "anitune.db.lock"}
    # A name once taken cannot be given back: the corrected file must find it free.
    assert studies() == (["tiny"] if command == "worker" else [])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("training: {device: cuda:9}", "training.device: cuda:9 is asked for"),
        ("data: {files: [data.h5], self_energies: {H: -0.5}}", "data.self_energies lacks C, O"),
        ("split: {fractions: [0.9, 0, 0.1]}", "split.fractions: trials are judged on the validation set"),
    ],
)
def test_a_study_that_cannot_be_trained_is_not_recorded(settings: str, expected: str, folder: Path) -> None:
    (folder / "study.yaml").write_text(f"name: tiny\nlimits: {{trials: 1}}\n{settings}\n")
    assert expected in complaint(anitune("study", "run", "study.yaml"), 2)
    assert studies() == []


def test_the_data_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        trainer.task, "read_data", lambda data, *args: read.append(data.files) or read_data(data, *args)
    )
    (folder / "home").mkdir()
    (folder / "home" / "features").touch()  # where the store would be built: what follows the data fails
    for times in (1, 2):  # first to see that it can be trained on, then for the study that is recorded
        assert "features" in complaint(anitune("study", "run", "study.yaml"), 1)
        assert read == [(str(folder / "data.h5"),)] * times
    assert studies() == ["tiny"]


def test_a_name_that_is_taken_takes_none_for_the_reference(folder: Path) -> None:
    assert anitune("study", "create", "study.yaml").exit_code == 0
    (folder / "rows.yaml").write_text("name: rows\nrows: [{label: a}]\n")
    with (folder / "study.yaml").open("a") as file:
        file.write("reference: rows.yaml\n")
    for command in ("create", "run"):
        line = complaint(anitune("study", command, "study.yaml"), 2)
        assert "study 'tiny' exists with other settings (reference" in line
    assert studies() == ["tiny"]


@pytest.mark.parametrize(
    "command",
    [
        ["study", "create", "study.yaml"],
        ["study", "run", "study.yaml"],
        ["study", "list"],
        ["study", "show", "tiny"],
        ["study", "best", "tiny", "--json"],
        ["worker", "tiny"],
        ["sync", "tiny"],
        ["dashboards", "--study", "tiny"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_database_that_does_not_answer(
    command: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORAGE_VARIABLE, NOBODY_ANSWERS)
    line = complaint(anitune(*command), 1)
    assert "127.0.0.1:9/none: " in line
    assert "check the URL, and that the database is running" in line
    assert not (folder / "home").exists()


@pytest.mark.parametrize("command", ["features", "train", "create", "run", "worker"])
def test_a_home_folder_that_cannot_be_written(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANITUNE_HOME", str(NOT_EVEN_ROOT_WRITES))
    line = complaint(anitune(*COMMANDS[command]), 1)
    assert f"anitune: {NOT_EVEN_ROOT_WRITES}" in line
    assert "choose another" in line


def test_no_such_study_is_said_with_the_place_that_was_looked_at(folder: Path) -> None:
    for command in (["study", "show"], ["study", "best"], ["worker"], ["sync"], ["dashboards", "--study"]):
        line = complaint(anitune(*command, "nosuch"), 2)
        assert f"there is no study 'nosuch' in sqlite:///{folder}/home/anitune.db: list all" in line
