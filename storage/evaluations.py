"""Test-set evaluations: who evaluated on a test set, when, and for which trial. Each is recorded for good.

Studies with the same data and split share a test set. An evaluation counts for all of them, and its record
outlasts the study.

The error of the first evaluation is unbiased, since nothing was chosen by it. A second evaluation could serve
as a choice, so it needs the option ``--again``, and every report shows both.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select, text, update

from storage.database import Database
from storage.errors import AlreadyEvaluatedError
from storage.records.tables import evaluations as table
from storage.records.tables import now
from storage.studies import Study


@dataclass(frozen=True)
class EvaluationOnTestSet:
    """One evaluation on the test set.

    Attributes
    ----------
    study
        Name of the study that was evaluated; it may be deleted by now.
    promotion
        Id of the promotion that ran the evaluation; None if it was deleted.
    number, config
        Number and settings of the evaluated trial.
    ensemble
        Digest of the evaluated model files; None if an older version ran the evaluation.
    opened_by
        User and host.
    opened_at
        Seconds since 1970-01-01 UTC.
    test_mae
        MAE of the ensemble, kcal/mol; None if the promotion recorded the evaluation but no result yet.
    """

    study: str
    promotion: int | None
    number: int
    config: dict[str, Any]
    ensemble: str | None
    opened_by: str
    opened_at: float
    test_mae: float | None

    def __str__(self) -> str:
        day = time.strftime("%Y-%m-%d %H:%M", time.gmtime(self.opened_at))
        mae = f", test MAE {self.test_mae:.3f} kcal/mol" if self.test_mae is not None else ""
        return f"{day} UTC by {self.opened_by} for trial {self.number} of {self.study}{mae}"


def evaluations_on_test_set(database: Database, study: Study) -> list[EvaluationOnTestSet]:
    """All evaluations on the study's test set, also for other studies, oldest first."""
    with database.reading() as connection:
        return _evaluations(connection, study.facts_in(connection))


def refuse_another_evaluation(study: Study, known: list[EvaluationOnTestSet]) -> None:
    """Raise if there were evaluations on the test set.

    Raises
    ------
    AlreadyEvaluatedError
        with a message that says who ran the first one, and what to do.
    """
    if known:
        others = f", and {len(known) - 1} more times" if len(known) > 1 else ""
        raise AlreadyEvaluatedError(
            f"study {study.name!r}: its test set was already evaluated on {known[0]}{others}; another"
            " evaluation makes its error less trustworthy, and every report will show it: to evaluate"
            " anyway, give --again"
        )


def refuse_another_ensemble(study: Study, evaluation: EvaluationOnTestSet, ensemble: str | None) -> None:
    """Make sure that a promotion continues with the ensemble for which it recorded a test-set evaluation.

    Parameters
    ----------
    ensemble
        Digest of the ensemble's files; None if there are none.

    Raises
    ------
    AlreadyEvaluatedError
        if the ensemble is another one; the message says what to do.
    """
    if ensemble is None or ensemble != evaluation.ensemble:
        raise AlreadyEvaluatedError(
            f"study {study.name!r}: its test set was evaluated on {evaluation}, for an ensemble whose files"
            " are missing or have changed; to train another one and evaluate again, which every report will"
            " show, give --again"
        )


def record_evaluation(
    database: Database,
    study: Study,
    promotion: int,
    number: int,
    config: Mapping[str, Any],
    ensemble: str,
    *,
    again: bool,
) -> EvaluationOnTestSet:
    """Record a test-set evaluation before it runs.

    A promotion has one evaluation: if it is recorded already, this returns it.

    Parameters
    ----------
    number, config
        Number and settings of the chosen trial.
    ensemble
        Digest of the model files that will be evaluated.
    again
        Whether to allow an evaluation after those of other promotions.

    Raises
    ------
    AlreadyEvaluatedError
        if there was an evaluation before and ``again`` is False, or if this promotion recorded one for
        another ensemble.
    """
    with database.writing() as connection:
        if connection.dialect.name == "postgresql":  # two at once take turns
            connection.execute(text(f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE"))
        facts = study.facts_in(connection)
        known = _evaluations(connection, facts)
        if own := [evaluation for evaluation in known if evaluation.promotion == promotion]:
            refuse_another_ensemble(study, own[0], ensemble)
            return own[0]
        if not again:
            refuse_another_evaluation(study, known)
        values = {
            "study_id": study.id,
            "promotion_id": promotion,
            "study": study.name,
            "data": facts["data"],
            "split": facts["split"],
            "number": number,
            "config": dict(config),
            "ensemble": ensemble,
            "opened_by": f"{_user()}@{socket.gethostname()}",
            "opened_at": now(),
        }
        return _evaluation(connection.execute(insert(table).values(values).returning(table)).one())


def record_test_error(database: Database, study: Study, promotion: int, test_mae: float) -> None:
    """Record the result of a test-set evaluation, kcal/mol; a result already recorded stays."""
    this = (
        table.c.study_id == study.id,
        table.c.promotion_id == promotion,
        table.c.test_mae.is_(None),
    )
    with database.writing() as connection:
        connection.execute(update(table).where(*this).values(test_mae=test_mae))


def _evaluations(connection: Connection, facts: Mapping[str, str]) -> list[EvaluationOnTestSet]:
    if not {"data", "split"} <= facts.keys():
        return []  # its test set is not known yet
    same = (table.c.data == facts["data"], table.c.split == facts["split"])
    query = select(table).where(*same).order_by(table.c.id)
    return [_evaluation(row) for row in connection.execute(query)]


def _evaluation(row: Row[Any]) -> EvaluationOnTestSet:
    return EvaluationOnTestSet(
        study=row.study,
        promotion=row.promotion_id,
        number=row.number,
        config=row.config,
        ensemble=row.ensemble,
        opened_by=row.opened_by,
        opened_at=row.opened_at,
        test_mae=row.test_mae,
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container a user may have only a number
        return f"uid {os.getuid()}"
