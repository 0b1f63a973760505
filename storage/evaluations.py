"""Who looked at a test part, when, and for which trial: each time is recorded for good.

Studies with the same data and split have the same test part. An evaluation is one of all of them, and
outlasts its own study.

The number that a first look gives is an honest one, since nothing was chosen by it. A second look can be a
choice: so it needs a word of its own, and whoever reads a report is shown both.
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
    """One look at the test part.

    Attributes
    ----------
    study
        Name of the study that it was opened for, which may be deleted by now.
    promotion
        Id of the promotion that did it; None: it was deleted.
    number, config
        The trial that it was opened for, and its settings.
    ensemble
        Digest of the files that were measured; None: opened by an older version.
    opened_by
        User and host.
    opened_at
        Seconds since 1970-01-01 UTC.
    test_mae
        Of the ensemble, kcal/mol; None: it was opened, and the promotion has not come further.
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
    """All evaluations on the study's test set, also for other studies, the first one first."""
    with database.reading() as connection:
        return _evaluations(connection, study.facts_in(connection))


def refuse_another_evaluation(study: Study, known: list[EvaluationOnTestSet]) -> None:
    """Say that the test part was opened before, if it was.

    Raises
    ------
    AlreadyEvaluatedError
        with who opened it, and what to do.
    """
    if known:
        others = f", and {len(known) - 1} more times" if len(known) > 1 else ""
        raise AlreadyEvaluatedError(
            f"study {study.name!r}: its test part was opened on {known[0]}{others}; another look makes its"
            " error less honest, and will be shown in every report: if you mean it, give --again"
        )


def refuse_another_ensemble(study: Study, evaluation: EvaluationOnTestSet, ensemble: str | None) -> None:
    """Make sure that what a promotion goes on with is what it opened the test part for.

    Parameters
    ----------
    ensemble
        Digest of its files; None: there are none.

    Raises
    ------
    AlreadyEvaluatedError
        if it is not, with what to do.
    """
    if ensemble is None or ensemble != evaluation.ensemble:
        raise AlreadyEvaluatedError(
            f"study {study.name!r}: its test part was opened on {evaluation}, for an ensemble whose files are"
            " not here, or have changed; to make another one and look again, which will be shown in every"
            " report, give --again"
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
    """Record that the test part is opened now; what follows may look at it.

    A promotion opens it once: where it did, this gives that evaluation.

    Parameters
    ----------
    number, config
        The trial that was chosen, and its settings.
    ensemble
        Digest of the files that will be measured.
    again
        Whether it may have been opened before, by another promotion.

    Raises
    ------
    AlreadyEvaluatedError
        if it was opened before, and must not be again; or by this promotion, for another ensemble.
    """
    with database.writing() as connection:
        if connection.dialect.name == "postgresql":  # of two that open at once one is the first
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
    """Keep what the look at the test part gave, kcal/mol; what is known already stays."""
    this = (
        table.c.study_id == study.id,
        table.c.promotion_id == promotion,
        table.c.test_mae.is_(None),
    )
    with database.writing() as connection:
        connection.execute(update(table).where(*this).values(test_mae=test_mae))


def _evaluations(connection: Connection, facts: Mapping[str, str]) -> list[EvaluationOnTestSet]:
    if not {"data", "split"} <= facts.keys():
        return []  # nobody knows its test part yet
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
    except (KeyError, OSError):  # in a container a user may have a number only
        return f"uid {os.getuid()}"
