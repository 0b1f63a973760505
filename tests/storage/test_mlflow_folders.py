"""The files of MLflow's runs where the home was copied or renamed, and MLflow's database is elsewhere."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from storage.tracking.mlflow_tables import follow_folder

# MLflow uses what is deprecated elsewhere; our own warnings stay errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
]


@pytest.fixture
def tracking(tmp_path: Path, mlflow_template: Path) -> Path:
    """MLflow's database, in a folder of its own."""
    (tmp_path / "mlflow").mkdir()
    return Path(shutil.copy(mlflow_template, tmp_path / "mlflow"))


def open_home(tracking: Path, home: Path) -> None:
    (home / "mlartifacts").mkdir(parents=True, exist_ok=True)
    follow_folder(f"sqlite:///{tracking}", home / "mlartifacts")


def add_experiment(tracking: Path, home: Path, name: str) -> None:
    (home / "mlartifacts" / name).mkdir()
    with sqlite3.connect(tracking) as connection:
        connection.execute(
            "INSERT INTO experiments (name, artifact_location, lifecycle_stage) VALUES (?, ?, 'active')",
            (name, (home / "mlartifacts" / name).as_uri()),
        )


def homes(tracking: Path) -> dict[str, str]:
    """The name of the home that MLflow looks for the files of each experiment in."""
    with sqlite3.connect(tracking) as connection:
        rows = connection.execute("SELECT name, artifact_location FROM experiments WHERE name != 'Default'")
        return {name: place.split("/")[-3] for name, place in rows}


@pytest.mark.parametrize("older", [False, True], ids=["", "made by an older program"])
def test_a_copy_follows_once_the_first_home_is_gone(tracking: Path, tmp_path: Path, older: bool) -> None:
    first, copy = tmp_path / "first", tmp_path / "copy"
    open_home(tracking, first)
    add_experiment(tracking, first, "a")
    if older:
        for file in (first / "mlartifacts").glob(".place*"):
            file.unlink()
    shutil.copytree(first, copy)
    open_home(tracking, copy)
    add_experiment(tracking, copy, "b")
    assert homes(tracking) == {"a": "first", "b": "copy"}

    shutil.rmtree(first)
    open_home(tracking, copy)
    assert homes(tracking) == {"a": "copy", "b": "copy"}
    copy.rename(tmp_path / "third")
    open_home(tracking, tmp_path / "third")
    assert homes(tracking) == {"a": "third", "b": "third"}


def test_a_database_that_was_away_when_the_home_was_renamed(tracking: Path, tmp_path: Path) -> None:
    open_home(tracking, tmp_path / "first")
    add_experiment(tracking, tmp_path / "first", "a")
    (tmp_path / "first").rename(tmp_path / "second")
    away = tracking.rename(tracking.with_name("away.db"))
    open_home(tracking, tmp_path / "second")
    away.rename(tracking)
    open_home(tracking, tmp_path / "second")
    assert homes(tracking) == {"a": "second"}


def test_each_database_of_a_renamed_home_follows(tracking: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    open_home(tracking, first)
    add_experiment(tracking, first, "a")
    own = Path(shutil.copy(tracking, first / "mlflow.db"))
    open_home(own, first)
    first.rename(second)
    for database in (tracking, second / own.name):
        open_home(database, second)
        assert homes(database) == {"a": "second"}


def test_nothing_is_written_beside_a_database_elsewhere(tracking: Path, tmp_path: Path) -> None:
    open_home(tracking, tmp_path / "first")
    add_experiment(tracking, tmp_path / "first", "a")
    (tmp_path / "first").rename(tmp_path / "second")
    open_home(tracking, tmp_path / "second")
    assert homes(tracking) == {"a": "second"}
    assert [path.name for path in tracking.parent.iterdir()] == [tracking.name]
    assert not (tmp_path / "first").exists()
