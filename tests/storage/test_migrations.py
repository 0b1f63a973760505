from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, inspect

from storage.database import Database, open_database
from storage.errors import DatabaseError
from storage.evaluations import evaluations_on_test_set, record_evaluation
from storage.ownership import ownership_marker
from storage.promotions import begin_promotion
from storage.records import schema
from storage.records.tables import VERSION_TABLE, metadata
from storage.settings import Settings
from storage.studies import Budget, Study, create_study, list_studies
from storage.trials.attempts import Attempt
from storage.trials.queue import WorkerInfo, claim_trial, next_study


@pytest.fixture
def settings(empty_settings: Settings) -> Settings:
    return empty_settings


def ours(connection: Connection) -> set[str]:
    return {name for name in inspect(connection).get_table_names() if name.startswith("anitune_")}


def test_the_migrations_make_the_tables_that_the_program_uses(database: Database) -> None:
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts=schema.context_options())
        assert compare_metadata(context, metadata) == []
        assert ours(connection) == {VERSION_TABLE, *metadata.tables}


def test_optunas_own_version_table_is_not_ours(database: Database) -> None:
    with database.reading() as connection:
        tables = set(inspect(connection).get_table_names())
        versions = {
            table: connection.exec_driver_sql(f"SELECT version_num FROM {table}").scalars().all()
            for table in ("alembic_version", VERSION_TABLE)
        }
    assert {"studies", "trials"} <= tables
    assert versions["alembic_version"] != versions[VERSION_TABLE]


def test_a_database_that_optuna_made_before_gets_our_tables_and_keeps_its_studies(
    settings: Settings, database: Database
) -> None:
    create_study(database, "widths", {}, Budget())
    with database.writing() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.exec_driver_sql(f"DROP TABLE {table.name}")
        connection.exec_driver_sql(f"DROP TABLE {VERSION_TABLE}")

    with open_database(settings) as again:
        assert list_studies(again) == []
        assert [study.study_name for study in again.optuna.get_all_studies()] == ["widths"]


def test_a_migration_that_fails_changes_nothing(settings: Settings) -> None:
    settings.home.mkdir()
    other = create_engine(settings.storage_url)
    with other.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE anitune_rungs (height INTEGER)")  # the last that we make

    with pytest.raises(DatabaseError, match="anitune_rungs"):
        open_database(settings)
    with other.connect() as connection:
        assert ours(connection) == {"anitune_rungs"}
    other.dispose()


def test_a_folder_of_artifacts_stays_known(settings: Settings) -> None:
    settings.home.mkdir()
    engine = create_engine(settings.storage_url)
    with engine.begin() as connection:
        command.upgrade(schema._config(connection), "0009")
        connection.exec_driver_sql(
            "INSERT INTO anitune_artifact_place VALUES (1, 'folder', '/shared', '0123')"
        )
        schema.upgrade(connection)
        assert ownership_marker(connection) == "0123"
    engine.dispose()


def test_evaluations_stay_and_learn_of_which_test_set_they_are(
    database: Database, make_study: Callable[..., Study], worker: WorkerInfo
) -> None:
    study = make_study()
    study.set_facts({"data": "d", "split": "s"})
    promotion = begin_promotion(database, study, {}, worker).id
    before = record_evaluation(database, study, promotion, 3, {"hidden": [8]}, "e", again=False)
    with database.writing() as connection:
        command.downgrade(schema._config(connection), "0010")
        assert connection.exec_driver_sql("SELECT number FROM anitune_openings").scalars().all() == [3]
        schema.upgrade(connection)
    assert evaluations_on_test_set(database, study) == [replace(before, ensemble=None)]


def test_finalists_of_existing_studies_are_still_to_be_chosen(
    database: Database, make_study: Callable[..., Study], worker: WorkerInfo
) -> None:
    plain = make_study("plain", trials=1)
    seeds = create_study(database, "seeds", {"finalists": {"seeds": 2, "most": 2}}, Budget(trials=1))
    with database.writing() as connection:
        command.downgrade(schema._config(connection), "0019")
        schema.upgrade(connection)
    for study in (plain, seeds):
        claim = claim_trial(database, study, worker)
        assert claim is not None
        Attempt(database, study, claim).finish("complete", value=1.0)
    assert next_study(database) == "seeds"


def test_each_database_has_a_marker_of_its_own(settings: Settings, tmp_path: Path) -> None:
    with (
        open_database(settings) as one,
        open_database(replace(settings, storage_url=f"sqlite:///{tmp_path}/other.db")) as other,
        one.reading() as here,
        other.reading() as there,
    ):
        assert ownership_marker(here) != ownership_marker(there)
