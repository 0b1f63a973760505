from __future__ import annotations

from collections.abc import Callable

import optuna
import pytest
from sqlalchemy import select

from storage.database import Database
from storage.errors import FactsChangedError, SettingsError, StudyExistsError, StudyNotFoundError
from storage.lifecycle import extend_budget
from storage.records.tables import outbox
from storage.studies import Budget, Study, create_study, list_studies, open_study
from storage.tracking.outbox import StudyMessage, read_message

CONFIG = {"sampler": "tpe", "space": {"dropout": [0.0, 0.3]}, "split": ("a", 1)}


def study_messages(database: Database) -> list[object]:
    query = select(outbox.c.kind, outbox.c.payload).where(outbox.c.number.is_(None))
    with database.reading() as connection:
        return [read_message(*row) for row in connection.execute(query.order_by(outbox.c.id))]


def test_beginning_a_study_again_goes_on_with_it(database: Database) -> None:
    first = create_study(database, "widths", CONFIG, Budget(trials=5, seconds=60.0, epochs=7))
    again = create_study(database, "widths", CONFIG, Budget(trials=5, seconds=60.0, epochs=7))

    assert again == first == open_study(database, "widths")
    assert [study.name for study in list_studies(database)] == ["widths"]
    assert len(study_messages(database)) == 1


def test_what_was_added_to_a_limit_stays_until_the_file_says_another_one(database: Database) -> None:
    study = create_study(database, "widths", CONFIG, Budget(trials=5, seconds=60.0))
    extend_budget(database, study, Budget(trials=3, seconds=30.0))
    again = create_study(database, "widths", CONFIG, Budget(trials=5, seconds=60.0))
    assert again.budget == Budget(trials=8, seconds=90.0)

    edited = create_study(database, "widths", CONFIG, Budget(trials=6, seconds=60.0))
    assert edited.budget == Budget(trials=6, seconds=90.0)
    extend_budget(database, study, Budget(trials=1))
    again = create_study(database, "widths", CONFIG, Budget(trials=6, seconds=60.0))
    assert again.budget == Budget(trials=7, seconds=90.0)
    other = create_study(database, "widths", CONFIG, Budget(trials=6, epochs=9))
    assert other.budget == Budget(trials=7, epochs=9)


def test_another_configuration_under_a_taken_name_is_refused_and_told_apart(database: Database) -> None:
    create_study(database, "widths", CONFIG, Budget())
    other = {**CONFIG, "space": {"dropout": [0.0, 0.5]}}

    with pytest.raises(StudyExistsError) as error:
        create_study(database, "widths", other, Budget(trials=9))
    said = str(error.value)
    assert "space.dropout: [0.0, 0.3] there, [0.0, 0.5] here" in said
    assert "sampler" not in said
    assert open_study(database, "widths").budget == Budget()


def test_a_study_of_somebody_elses_in_optunas_tables_is_left_alone(database: Database) -> None:
    theirs = optuna.create_study(study_name="widths", storage=database.optuna)
    theirs.tell(theirs.ask(), 1.0)

    with pytest.raises(StudyExistsError, match="did not make"):
        create_study(database, "widths", CONFIG, Budget())
    assert list_studies(database) == []


def test_a_study_that_was_only_begun_in_optuna_is_begun_in_full(database: Database) -> None:
    optuna.create_study(study_name="widths", storage=database.optuna)

    study = create_study(database, "widths", CONFIG, Budget())
    assert study.optuna.direction is optuna.study.StudyDirection.MINIMIZE
    assert study.optuna.metric_names == ["val MAE, kcal/mol"]


@pytest.mark.parametrize("name", ["", "../widths", "a/b", ".hidden", "two words", "x" * 101])
def test_a_name_that_cannot_be_a_folder_is_refused(database: Database, name: str) -> None:
    with pytest.raises(SettingsError, match="is not a valid name of a study"):
        create_study(database, name, CONFIG, Budget())


def test_a_study_that_is_not_there(database: Database) -> None:
    with pytest.raises(StudyNotFoundError, match="no study 'absent'"):
        open_study(database, "absent")


def test_facts_about_the_data_stay(database: Database, make_study: Callable[..., Study]) -> None:
    study = make_study()
    study.set_facts({"data": "abc"})
    study.set_facts({"data": "abc", "split": "123"})

    assert study.facts == {"data": "abc", "split": "123"}
    with pytest.raises(FactsChangedError, match="data was abc and is xyz now"):
        study.set_facts({"data": "xyz", "torch": "2"})
    assert study.facts == {"data": "abc", "split": "123"}
    assert study_messages(database) == [
        StudyMessage(config={"sampler": "random"}, tags=tags)
        for tags in ({}, {"data": "abc"}, {"split": "123"})
    ]
