"""Conditions and parameters for statements about one trial or study that are built once and reused.

SQLAlchemy takes longer to build a statement than PostgreSQL to answer it, and a trial needs about forty.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Table, bindparam

from storage.records.tables import studies


def of_study(column: ColumnElement[Any] = studies.c.id) -> ColumnElement[bool]:
    """Condition that a column has the study id of :func:`study_key`."""
    return column == bindparam("of_study")


def of_trial(table: Table) -> ColumnElement[bool]:
    """Condition that a row belongs to the trial of :func:`trial_key`."""
    return of_study(table.c.study_id) & (table.c.number == bindparam("of_number"))


def study_key(study_id: int) -> dict[str, int]:
    """Parameters of a statement with :func:`of_study`."""
    return {"of_study": study_id}


def trial_key(study_id: int, number: int) -> dict[str, int]:
    """Parameters of a statement with :func:`of_trial`."""
    return {"of_study": study_id, "of_number": number}
