"""Tables of another version: an error that says what to do, until `anitune migrate` has been run."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import alembic.util.pyfiles
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from optuna.storages import RDBStorage
from sqlalchemy import create_engine, inspect

from storage.database import Database, Migration, migrate_database, open_database
from storage.errors import DatabaseError, SchemaTooNewError, SchemaTooOldError, TrackingUnavailableError
from storage.records import schema
from storage.settings import Settings
from storage.studies import Budget, create_study, list_studies
from storage.tracking.mlflow_runs import MlflowRuns
from storage.tracking.mlflow_tables import check_tables, migrate_tables

# MLflow uses what is deprecated elsewhere; our own warnings stay errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
]

HEAD = ScriptDirectory(str(schema.MIGRATIONS)).get_current_head()

NEXT = f"""
from alembic import op
import sqlalchemy as sa

revision = "next"
down_revision = "{HEAD}"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("anitune_studies", sa.Column("motto", sa.Text(), nullable=True))
"""


def columns(settings: Settings) -> set[str]:
    engine = create_engine(settings.storage_url)
    found = {column["name"] for column in inspect(engine).get_columns("anitune_studies")}
    engine.dispose()
    return found


def one_line(error: pytest.ExceptionInfo[DatabaseError]) -> str:
    said = str(error.value)
    assert "\n" not in said
    return said


@pytest.fixture
def settings(empty_settings: Settings) -> Settings:
    return empty_settings


@pytest.fixture
def next_program(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database of this program with a study, opened by the next one, which has a column more."""
    create_study(database, "widths", {}, Budget())
    migrations = tmp_path / "migrations"
    shutil.copytree(schema.MIGRATIONS, migrations)
    (migrations / "versions" / "next_motto.py").write_text(NEXT)
    monkeypatch.setattr(schema, "MIGRATIONS", migrations)


@pytest.mark.usefixtures("next_program")
def test_an_older_database_is_not_changed_by_whoever_opens_it(settings: Settings) -> None:
    with pytest.raises(SchemaTooOldError, match=rf"older anitune \(version {HEAD}, .* next\)") as error:
        open_database(settings)
    assert "run `anitune migrate`" in one_line(error)
    assert "motto" not in columns(settings)


@pytest.mark.usefixtures("next_program")
def test_migrating_at_the_same_time_is_done_once(settings: Settings) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = [future.result() for future in [pool.submit(migrate_database, settings) for _ in range(4)]]
    courses = sorted(
        (course.before, course.now) for both in done for course in both if course.what == "anitune"
    )
    assert courses == [(HEAD, "next"), ("next", "next"), ("next", "next"), ("next", "next")]
    assert "motto" in columns(settings)
    with open_database(settings) as database:
        assert [study.name for study in list_studies(database)] == ["widths"]


def test_an_empty_database_may_be_migrated_too(settings: Settings) -> None:
    optuna, ours = migrate_database(settings)
    assert ours == Migration("anitune", None, HEAD)
    assert (optuna.what, optuna.before) == ("Optuna", None)
    with open_database(settings) as database:
        assert list_studies(database) == []
    assert [course.before for course in migrate_database(settings)] == [optuna.now, HEAD]


def set_optuna_version(settings: Settings, version: str) -> None:
    engine = create_engine(settings.storage_url)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")
    engine.dispose()


def test_tables_of_an_older_optuna(settings: Settings, database: Database) -> None:
    rdb = RDBStorage(settings.storage_url)
    newest, *_, last = rdb.get_head_version(), *sorted(rdb.get_all_versions())[:-1]
    rdb.engine.dispose()
    set_optuna_version(settings, last)
    with pytest.raises(SchemaTooOldError, match=f"older Optuna .version {last}, .* {newest}") as error:
        open_database(settings)
    assert "run `anitune migrate`" in one_line(error)

    optuna, _ = migrate_database(settings)
    assert optuna == Migration("Optuna", last, newest)
    open_database(settings).close()


def test_tables_of_a_newer_optuna(settings: Settings, database: Database) -> None:
    set_optuna_version(settings, "v9.0.0.a")
    for use in (open_database, migrate_database):
        with pytest.raises(SchemaTooNewError, match=r"newer Optuna .*v9.0.0.a.*upgrade Optuna") as error:
            use(settings)
        one_line(error)


def test_tables_of_a_newer_program_are_left_alone(settings: Settings, database: Database) -> None:
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE anitune_alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaTooNewError, match=r"newer anitune.*9999") as error:
        open_database(settings)
    one_line(error)


def test_tables_of_a_newer_anitune_are_not_migrated(settings: Settings, database: Database) -> None:
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE anitune_alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaTooNewError, match=r"newer anitune.*9999"):
        migrate_database(settings)


@pytest.fixture
def old_mlflow(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database as MLflow made it some versions ago."""
    from mlflow.store.db import utils as mlflow_db
    from mlflow.store.tracking.dbmodels.initial_models import Base as FirstTables

    url = f"sqlite:///{tmp_path / 'mlflow.db'}"
    engine = create_engine(url)
    FirstTables.metadata.create_all(engine)
    with engine.begin() as connection:
        config = mlflow_db._get_alembic_config(url)
        config.attributes["connection"] = connection
        command.upgrade(config, "7f2a7d5fae7d")  # of MLflow 2.8
    engine.dispose()
    return url


def test_tables_of_an_older_mlflow(old_mlflow: str, tmp_path: Path) -> None:
    with pytest.raises(
        SchemaTooOldError, match=r"mlflow.db: .* older MLflow \(version 7f2a7d5fae7d, "
    ) as error:
        check_tables(old_mlflow)
    assert "run `anitune migrate`" in one_line(error)
    # What a relay meets may pass: it waits, and delivers once the tables are right.
    with pytest.raises(TrackingUnavailableError, match="run `anitune migrate`"):
        MlflowRuns(old_mlflow, tmp_path / "mlartifacts")

    migration = migrate_tables(old_mlflow)
    assert (migration.what, migration.before) == ("MLflow", "7f2a7d5fae7d")
    check_tables(old_mlflow)
    assert migrate_tables(old_mlflow) == Migration("MLflow", migration.now, migration.now)


def test_tables_of_a_newer_mlflow(old_mlflow: str) -> None:
    engine = create_engine(old_mlflow)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    engine.dispose()
    for use in (check_tables, migrate_tables):
        with pytest.raises(SchemaTooNewError, match=r"newer MLflow .*ffffffffffff.*upgrade MLflow") as error:
            use(old_mlflow)
        one_line(error)


def test_mlflow_without_tables_or_behind_a_server(tmp_path: Path) -> None:
    check_tables(f"sqlite:///{tmp_path / 'new.db'}")
    check_tables("http://mlflow.example:5000")
    assert list(tmp_path.iterdir()) == []


def test_a_process_reads_the_known_versions_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alembic runs the file of each migration to tell them, longer than the rest of an opening takes."""
    open_database(settings).close()

    def run(*_: object) -> NoReturn:
        raise AssertionError("a migration's file was run")

    monkeypatch.setattr(alembic.util.pyfiles, "load_module_py", run)
    open_database(settings).close()
