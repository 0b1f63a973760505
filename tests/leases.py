"""Leases of trials that run out without waiting for it."""

from __future__ import annotations

from sqlalchemy import update

from storage.database import Database
from storage.records.tables import attempts


def let_leases_run_out(database: Database, token: str | None = None) -> None:
    """Let the lease of an attempt, or of all, run out, as if its worker had been killed some time ago.

    A second is subtracted because SQLite's clock counts milliseconds, in which a claim may begin and end.
    """
    which = [] if token is None else [attempts.c.token == token]
    with database.writing() as connection:
        connection.execute(update(attempts).where(*which).values(lease_until=attempts.c.started_at - 1))
