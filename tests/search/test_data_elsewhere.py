"""Machines that share a study and have its data at different paths."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner, Result

from search.cli.main import app
from search.recorded import recorded_config
from storage.database import open_database
from storage.records.tables import outbox, studies
from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE, Settings, load_settings
from storage.studies import open_study

STUDY = """
name: tiny
data: {files: [data.h5]}
training: {epochs: 1, hidden: [8], device: cpu}
limits: {trials: 1}
reference: rows.yaml
"""
ROWS = "name: rows\ntraining: {epochs: 1, hidden: [8]}\nrows: [{label: first}]\n"


@pytest.fixture
def folder(
    tmp_path: Path,
    data_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_home: Callable[[Path], Settings],
) -> Path:
    """The folders of two machines, each with the data and the study file, and of the home that they share."""
    for machine in ("one", "two"):
        (tmp_path / machine).mkdir()
        shutil.copy(data_file, tmp_path / machine / "data.h5")
        (tmp_path / machine / "study.yaml").write_text(STUDY)
        (tmp_path / machine / "rows.yaml").write_text(ROWS)
    monkeypatch.chdir(tmp_path)
    make_home(tmp_path / "shared" / "home")
    monkeypatch.setenv("ANITUNE_HOME", str(tmp_path / "shared" / "home"))
    for variable in (STORAGE_VARIABLE, TRACKING_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@contextmanager
def on_machine(name: str, folder: Path) -> Iterator[None]:
    """Hide what the other machine has."""
    other = folder / {"one": "two", "two": "one"}[name]
    away = other.rename(folder / "away")
    try:
        yield
    finally:
        away.rename(other)


def create(machine: str) -> Result:
    return CliRunner().invoke(app, ["study", "create", f"{machine}/study.yaml"])


def records() -> tuple[list[dict[str, object]], int]:
    """What the database has of the studies, and how much MLflow is told of them."""
    with open_database(load_settings()) as database, database.reading() as connection:
        configs = connection.execute(select(studies.c.config).order_by(studies.c.id)).scalars().all()
        told = connection.execute(select(func.count()).select_from(outbox)).scalar_one()
    return list(configs), told


def files_used() -> set[tuple[str, ...]]:
    """What a worker would read for the study and for its rows."""
    with open_database(load_settings()) as database:
        config = recorded_config(open_study(database, "tiny"))
        assert config.reference is not None
        return {
            config.data.files,
            config.reference.data.files,
            recorded_config(open_study(database, f"{config.name}-rows")).data.files,
        }


def test_machines_leave_the_record_as_it_was_and_read_their_own_files(folder: Path) -> None:
    first = None
    for machine in ("one", "two", "one", "two"):
        with on_machine(machine, folder):
            result = create(machine)
            assert result.exit_code == 0, result.stderr
            first = first or records()
            assert records() == first
            assert files_used() == {(str(folder / machine / "data.h5"),)}


def test_files_of_other_data_are_not_added(folder: Path) -> None:
    with on_machine("one", folder):
        assert create("one").exit_code == 0
        with open_database(load_settings()) as database:
            for name in ("tiny", "tiny-rows"):
                open_study(database, name).set_facts({"data": "another"})
    with on_machine("two", folder):
        result = create("two")
        assert result.exit_code == 2
        assert "data.h5 contains other data than the study was started with" in result.stderr
    with on_machine("one", folder):
        assert files_used() == {(str(folder / "one" / "data.h5"),)}


def test_files_that_changed_since_are_not_read_in_place_of_those_named_now(folder: Path) -> None:
    assert create("one").exit_code == 0
    with h5py.File(folder / "one" / "data.h5", "a") as file:
        file["molecules/molecules-0/energies"][0] += 0.01
    assert create("two").exit_code == 0
    assert files_used() == {(str(folder / "two" / "data.h5"),)}
