"""Statements about one trial or study that are made once, and executed with its key.

SQLAlchemy takes longer to make a statement than PostgreSQL to answer it, and a trial needs some forty.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Table, bindparam

from storage.records.tables import studies


def of_study(column: ColumnElement[Any] = studies.c.id) -> ColumnElement[bool]:
    """Whether a column has the id of the study of :func:`study_key`."""
    return column == bindparam("of_study")


def of_trial(table: Table) -> ColumnElement[bool]:
    """Whether a row is of the trial of :func:`trial_key`."""
    return of_study(table.c.study_id) & (table.c.number == bindparam("of_number"))


def study_key(study_id: int) -> dict[str, int]:
    """Parameters of a statement with :func:`of_study`."""
    return {"of_study": study_id}


def trial_key(study_id: int, number: int) -> dict[str, int]:
    """Parameters of a statement with :func:`of_trial`."""
    return {"of_study": study_id, "of_number": number}
