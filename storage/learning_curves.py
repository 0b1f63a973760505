"""Learning curves of a study: its error by the size of the training set, and what was concluded from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select

from storage.database import Database
from storage.records.tables import learning_curves as table
from storage.records.tables import now
from storage.studies import Study


@dataclass(frozen=True)
class RecordedCurve:
    """A learning curve.

    Attributes
    ----------
    ended
        Seconds since 1970-01-01 UTC.
    values
        As :meth:`search.curve.learning_curve.Result.values` writes them.
    """

    id: int
    ended: float
    values: dict[str, Any]


def latest_learning_curve(database: Database, study: Study) -> RecordedCurve | None:
    """The learning curve of the study that was measured last; None if there is none."""
    query = select(table).where(table.c.study_id == study.id).order_by(table.c.id.desc()).limit(1)
    with database.reading() as connection:
        row = connection.execute(query).one_or_none()
    return RecordedCurve(row.id, row.ended_at, row.result) if row is not None else None


def record_learning_curve(database: Database, study: Study, values: Mapping[str, Any]) -> RecordedCurve:
    """Record a learning curve, unless it is the latest one again."""
    plain = json.loads(json.dumps(values))
    latest = latest_learning_curve(database, study)
    if latest is None or latest.values != plain:
        with database.writing() as connection:
            row = {"study_id": study.id, "result": plain, "ended_at": now()}
            connection.execute(insert(table).values(row))
        latest = latest_learning_curve(database, study)
    assert latest is not None
    return latest
