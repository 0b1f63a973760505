"""Who looked at the test part of a study, when, and for which trial: each time is recorded for good.

The number that a first look gives is an honest one, since nothing was chosen by it. A second look can be a
choice: so it needs a word of its own, and whoever reads a report is shown both.
"""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, insert, select, update

from storage.database import Database
from storage.errors import AlreadyOpenedError
from storage.life import locked_row
from storage.records.tables import now
from storage.records.tables import openings as table
from storage.studies import Study


@dataclass(frozen=True)
class Opening:
    """One look at the test part.

    Attributes
    ----------
    promotion
        Id of the promotion that did it.
    number, config
        The trial that it was opened for, and its settings.
    opened_by
        User and host.
    opened_at
        Seconds since 1970-01-01 UTC.
    test_mae
        Of the ensemble, kcal/mol; None: it was opened, and the promotion has not come further.
    """

    promotion: int
    number: int
    config: dict[str, Any]
    opened_by: str
    opened_at: float
    test_mae: float | None

    def __str__(self) -> str:
        day = time.strftime("%Y-%m-%d %H:%M", time.gmtime(self.opened_at))
        mae = f", test MAE {self.test_mae:.3f} kcal/mol" if self.test_mae is not None else ""
        return f"{day} UTC by {self.opened_by} for trial {self.number}{mae}"


def openings(database: Database, study: Study) -> list[Opening]:
    """All openings of the study's test part, the first one first."""
    query = select(table).where(table.c.study_id == study.id).order_by(table.c.id)
    with database.reading() as connection:
        return [_opening(row) for row in connection.execute(query)]


def refuse_another_opening(study: Study, known: list[Opening]) -> None:
    """Say that the test part was opened before, if it was.

    Raises
    ------
    AlreadyOpenedError
        with who opened it, and what to do.
    """
    if known:
        others = f", and {len(known) - 1} more times" if len(known) > 1 else ""
        raise AlreadyOpenedError(
            f"study {study.name!r}: its test part was opened on {known[0]}{others}; another look makes its"
            " error less honest, and will be shown in every report: if you mean it, give --again"
        )


def open_test_part(
    database: Database, study: Study, promotion: int, number: int, config: Mapping[str, Any], *, again: bool
) -> Opening:
    """Record that the test part is opened now; what follows may look at it.

    A promotion opens it once: where it did, this gives that opening.

    Parameters
    ----------
    number, config
        The trial that was chosen, and its settings.
    again
        Whether it may have been opened before, by another promotion.

    Raises
    ------
    AlreadyOpenedError
        if it was opened before, and must not be again.
    """
    with database.writing() as connection:
        locked_row(connection, study)  # of two that open at once one is the first
        query = select(table).where(table.c.study_id == study.id).order_by(table.c.id)
        known = [_opening(row) for row in connection.execute(query)]
        if own := [opening for opening in known if opening.promotion == promotion]:
            return own[0]
        if not again:
            refuse_another_opening(study, known)
        values = {
            "study_id": study.id,
            "promotion_id": promotion,
            "number": number,
            "config": dict(config),
            "opened_by": f"{getpass.getuser()}@{socket.gethostname()}",
            "opened_at": now(),
        }
        return _opening(connection.execute(insert(table).values(values).returning(table)).one())


def record_test_error(database: Database, study: Study, promotion: int, test_mae: float) -> None:
    """Keep what the look at the test part gave, kcal/mol."""
    this = (table.c.study_id == study.id, table.c.promotion_id == promotion)
    with database.writing() as connection:
        connection.execute(update(table).where(*this).values(test_mae=test_mae))


def _opening(row: Row[Any]) -> Opening:
    return Opening(row.promotion_id, row.number, row.config, row.opened_by, row.opened_at, row.test_mae)
