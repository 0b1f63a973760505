"""Recorded trainings of a study beside its trials, which promotions and learning curves plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import Table, select
from sqlalchemy.dialects import postgresql, sqlite

from storage.database import Database
from storage.records.tables import now, promotion_failures, promotion_trainings
from storage.studies import Study

TrainingKind = Literal["structure", "molecule", "member", "curve"]


@dataclass(frozen=True)
class RecordedTraining:
    """A finished training of a promotion or a learning curve.

    Attributes
    ----------
    key
        Digest of everything that determines the result; whatever plans a training with this key reuses it.
    number
        Number of the trial whose settings the training uses.
    kind, run
        ``structure``, ``molecule``: on folds of that kind; ``member``: the settings of the trial with another
        seed, on the subsets of the study, as the members of an ensemble; ``curve``: another point of a
        learning curve, on a share of the training set or with a larger network. The run is the index of the
        training in its kind, from 0.
    value
        Best validation MAE, kcal/mol.
    summary
        Its metrics by name.
    """

    key: str
    number: int
    kind: TrainingKind
    run: int
    value: float
    summary: dict[str, float]


def trainings(database: Database, study: Study) -> dict[str, RecordedTraining]:
    """The finished trainings of the study beside its trials, by key."""
    query = select(promotion_trainings).where(promotion_trainings.c.study_id == study.id)
    with database.reading() as connection:
        return {
            row.key: RecordedTraining(row.key, row.number, row.kind, row.run, row.value, row.summary)
            for row in connection.execute(query)
        }


def record_training(database: Database, study: Study, training: RecordedTraining) -> None:
    """Record the result of a training; a result already recorded stays."""
    _insert_new(database, promotion_trainings, {"study_id": study.id, "ended_at": now(), **asdict(training)})


def failures(database: Database, study: Study) -> dict[str, str]:
    """Why such trainings failed, by key."""
    query = select(promotion_failures).where(promotion_failures.c.study_id == study.id)
    with database.reading() as connection:
        return {row.key: row.reason for row in connection.execute(query)}


def record_failure(database: Database, study: Study, key: str, reason: str) -> None:
    """Record why a training failed; a reason already recorded stays."""
    _insert_new(database, promotion_failures, {"study_id": study.id, "key": key, "reason": reason})


def _insert_new(database: Database, into: Table, values: Mapping[str, Any]) -> None:
    with database.writing() as connection:
        insert_into = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        connection.execute(insert_into(into).values(values).on_conflict_do_nothing())
