"""Promotions of a study: which trials were compared, on what, which one was chosen, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Row, Table, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from storage.database import Database
from storage.lifecycle import locked_row
from storage.records.tables import now, promotion_failures, promotion_trainings
from storage.records.tables import promotions as table
from storage.studies import Study
from storage.trials.queue import WorkerInfo

TrainingKind = Literal["structure", "molecule", "member"]


@dataclass(frozen=True)
class Promotion:
    """One promotion.

    Attributes
    ----------
    plan
        Candidates (numbers of trials), runs by kind of folds and members of the ensemble, as
        :class:`search.promote.plan.PromotionPlan` writes them.
    worker
        What it ran on.
    started, ended
        Seconds since 1970-01-01 UTC; not ended: it goes on when it is begun again.
    results
        Of the candidates on the folds, as :class:`search.promote.choice.Choice` writes them: a list of
        candidates (trial, architecture, parameters, structures_per_second, for each kind of folds values,
        mean and spread in kcal/mol, difference from the best with its interval, whether it can be told from
        the best); None: not all of it is trained.
    choice, reason
        The chosen trial, and why that one.
    test
        Errors of the ensemble on the test part: mae_kcalmol, rmse_kcalmol, max_error_kcalmol,
        mean_member_mae_kcalmol, member_mae_kcalmol (a list), spread_kcalmol (None of one), structures.
    model_name, model_version
        Of the registered model.
    """

    id: int
    plan: dict[str, Any]
    worker: WorkerInfo
    started: float
    ended: float | None
    results: list[dict[str, Any]] | None
    choice: int | None
    reason: str | None
    test: dict[str, Any] | None
    model_name: str | None
    model_version: str | None


@dataclass(frozen=True)
class PromotionTraining:
    """A training of a promotion that came to its end.

    Attributes
    ----------
    key
        Digest of all that decides the result: a later promotion takes it over.
    number
        Of the trial whose settings it has.
    kind, run
        On which folds, and the how-many-eth of these, from 0; or the member of the ensemble.
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


def promotions(database: Database, study: Study) -> list[Promotion]:
    """All promotions of the study, the first one first."""
    query = select(table).where(table.c.study_id == study.id).order_by(table.c.id)
    with database.reading() as connection:
        return [_promotion(row) for row in connection.execute(query)]


def begin_promotion(
    database: Database, study: Study, plan: Mapping[str, Any], worker: WorkerInfo
) -> Promotion:
    """Begin a promotion, or go on with the one of the same plan that has not ended."""
    plain = json.loads(json.dumps(plan))
    with database.writing() as connection:
        locked_row(connection, study)
        query = select(table).where(table.c.study_id == study.id, table.c.ended_at.is_(None))
        for row in connection.execute(query.order_by(table.c.id.desc())):
            if row.plan == plain:
                return _promotion(row)
        values = {"study_id": study.id, "plan": plain, "worker": asdict(worker), "started_at": now()}
        return _promotion(connection.execute(insert(table).values(values).returning(table)).one())


def unfinished_promotion(database: Database, study: Study, plan: Mapping[str, Any]) -> Promotion | None:
    """The promotion that :func:`begin_promotion` would go on with, if there is one."""
    plain = json.loads(json.dumps(plan))
    open_ones = [each for each in promotions(database, study) if each.ended is None and each.plan == plain]
    return open_ones[-1] if open_ones else None


def record_choice(
    database: Database, promotion: int, results: Sequence[Mapping[str, Any]], choice: int, reason: str
) -> None:
    """Keep what the folds said, and which trial was chosen; a choice that is known already stays."""
    values = {"results": [dict(each) for each in results], "choice": choice, "reason": reason}
    _update(database, promotion, values, table.c.choice.is_(None))


def record_test(database: Database, promotion: int, test: Mapping[str, Any]) -> None:
    """Keep the errors of the ensemble on the test part; those that are known already stay."""
    _update(database, promotion, {"test": dict(test)}, table.c.test.is_(None))


def end_promotion(database: Database, promotion: int, model_name: str, model_version: str) -> None:
    """Keep as what the model was registered: the promotion is done."""
    _update(
        database, promotion, {"model_name": model_name, "model_version": model_version, "ended_at": now()}
    )


def abandon_promotion(database: Database, promotion: int) -> None:
    """End a promotion that cannot go on, without a model."""
    _update(database, promotion, {"ended_at": now()}, table.c.ended_at.is_(None))


def trainings(database: Database, study: Study) -> dict[str, PromotionTraining]:
    """The trainings of all promotions of the study that came to their ends, by their keys."""
    query = select(promotion_trainings).where(promotion_trainings.c.study_id == study.id)
    with database.reading() as connection:
        return {
            row.key: PromotionTraining(row.key, row.number, row.kind, row.run, row.value, row.summary)
            for row in connection.execute(query)
        }


def record_training(database: Database, study: Study, training: PromotionTraining) -> None:
    """Keep what came of a training; what is known already stays."""
    _insert_new(database, promotion_trainings, {"study_id": study.id, "ended_at": now(), **asdict(training)})


def failures(database: Database, study: Study) -> dict[str, str]:
    """Why trainings on folds failed, by their keys: they are not tried again."""
    query = select(promotion_failures).where(promotion_failures.c.study_id == study.id)
    with database.reading() as connection:
        return {row.key: row.reason for row in connection.execute(query)}


def record_failure(database: Database, study: Study, key: str, reason: str) -> None:
    """Keep why a training failed; what is known already stays."""
    _insert_new(database, promotion_failures, {"study_id": study.id, "key": key, "reason": reason})


def _insert_new(database: Database, into: Table, values: Mapping[str, Any]) -> None:
    with database.writing() as connection:
        insert_into = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        connection.execute(insert_into(into).values(values).on_conflict_do_nothing())


def _update(
    database: Database, promotion: int, values: Mapping[str, Any], *conditions: ColumnElement[bool]
) -> None:
    with database.writing() as connection:
        connection.execute(update(table).where(table.c.id == promotion, *conditions).values(values))


def _promotion(row: Row[Any]) -> Promotion:
    return Promotion(
        id=row.id,
        plan=row.plan,
        worker=WorkerInfo(**row.worker),
        started=row.started_at,
        ended=row.ended_at,
        results=row.results,
        choice=row.choice,
        reason=row.reason,
        test=row.test,
        model_name=row.model_name,
        model_version=row.model_version,
    )
