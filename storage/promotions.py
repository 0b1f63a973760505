"""Promotions of a study: which trials were compared on which folds, the chosen one, and its ensemble."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, insert, select, update

from storage.database import Database
from storage.lifecycle import locked_row
from storage.records.tables import now
from storage.records.tables import promotions as table
from storage.studies import Study
from storage.trials.queue import WorkerInfo


@dataclass(frozen=True)
class Promotion:
    """One promotion.

    Attributes
    ----------
    plan
        Candidates (numbers of trials), runs by kind of folds and members of the ensemble, as
        :class:`search.promote.plan.PromotionPlan` writes them.
    worker
        The process and machine that it ran on.
    started, ended
        Seconds since 1970-01-01 UTC; a promotion without an end continues when it is started again.
    results
        Results of the candidates on the folds, as :class:`search.promote.choice.Choice` writes them: a list
        of candidates (trial, architecture, parameters, structures_per_second, for each kind of folds values,
        mean and spread in kcal/mol, difference from the best with its interval, whether it is
        distinguishable from the best); None until all of them are trained.
    choice, reason
        The chosen trial, and why it was chosen.
    test
        Errors of the ensemble on the test set: mae_kcalmol, rmse_kcalmol, max_error_kcalmol,
        mean_member_mae_kcalmol, member_mae_kcalmol (a list), spread_kcalmol (None for a single member),
        structures.
    model_name, model_version
        Name and version of the registered model.
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


def promotions(database: Database, study: Study) -> list[Promotion]:
    """All promotions of the study, oldest first."""
    query = select(table).where(table.c.study_id == study.id).order_by(table.c.id)
    with database.reading() as connection:
        return [_promotion(row) for row in connection.execute(query)]


def begin_promotion(
    database: Database, study: Study, plan: Mapping[str, Any], worker: WorkerInfo
) -> Promotion:
    """Begin a promotion, or continue an unfinished one with the same plan."""
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
    """The promotion that :func:`begin_promotion` would continue, if there is one."""
    plain = json.loads(json.dumps(plan))
    open_ones = [each for each in promotions(database, study) if each.ended is None and each.plan == plain]
    return open_ones[-1] if open_ones else None


def record_choice(
    database: Database, promotion: int, results: Sequence[Mapping[str, Any]], choice: int, reason: str
) -> None:
    """Record the results on the folds and the chosen trial; a choice already recorded stays."""
    values = {"results": [dict(each) for each in results], "choice": choice, "reason": reason}
    _update(database, promotion, values, table.c.choice.is_(None))


def record_test(database: Database, promotion: int, test: Mapping[str, Any]) -> None:
    """Record the errors of the ensemble on the test set; errors already recorded stay."""
    _update(database, promotion, {"test": dict(test)}, table.c.test.is_(None))


def end_promotion(database: Database, promotion: int, model_name: str, model_version: str) -> None:
    """End a promotion and record the registered model."""
    _update(
        database, promotion, {"model_name": model_name, "model_version": model_version, "ended_at": now()}
    )


def abandon_promotion(database: Database, promotion: int) -> None:
    """End a promotion that cannot continue, without a model."""
    _update(database, promotion, {"ended_at": now()}, table.c.ended_at.is_(None))


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
