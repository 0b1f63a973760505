"""Fencing: refuses writes of a worker about a trial that another worker has taken over.

The lease is read in the transaction that writes, and its row is locked until the transaction ends. With a
separate check before the write, a worker could be suspended in between and write after losing the trial.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, event, select
from sqlalchemy.orm import Session, sessionmaker

from storage.errors import LeaseLostError
from storage.records.tables import attempts


@dataclass(frozen=True)
class Lease:
    """The right of one worker to write about one trial. The token is unique to the attempt."""

    study_id: int
    number: int
    token: str


def hold(connection: Connection, lease: Lease) -> Row[Any]:
    """The row of the attempt, locked until the open transaction ends.

    An expired lease stays valid until another worker takes the trial over, which ends the attempt.

    Raises
    ------
    LeaseLostError
        if the attempt has ended.
    """
    row = find(connection, lease)
    refuse_ended(lease, row)
    return row


def refuse_ended(lease: Lease, row: Row[Any]) -> None:
    """Make sure that the attempt of a row from :func:`find` has not ended.

    Raises
    ------
    LeaseLostError
        if it has.
    """
    if row.ended_at is not None:
        raise LeaseLostError(
            f"trial {lease.number}: attempt {row.attempt} has ended ({row.outcome}), nothing was written"
        )


def find(connection: Connection, lease: Lease) -> Row[Any]:
    """The row of the attempt, ended or not, locked until the open transaction ends.

    Raises
    ------
    LeaseLostError
        if the study was deleted.
    """
    row = connection.execute(_LOCKED, asdict(lease)).one_or_none()
    if row is None:
        raise LeaseLostError(f"trial {lease.number}: its study was deleted, nothing was written")
    return row


@contextmanager
def fenced(lease: Lease) -> Iterator[None]:
    """Refuse Optuna's own writes in this block and thread once the lease is lost."""
    token = _fence.set(lease)
    try:
        yield
    finally:
        _fence.reset(token)


def guard(sessions: sessionmaker[Session]) -> None:
    """Make Optuna's sessions obey :func:`fenced`."""
    event.listen(sessions, "before_commit", _check)


_fence: ContextVar[Lease | None] = ContextVar("fence", default=None)


def _check(session: Session) -> None:
    lease = _fence.get()
    if lease is None:
        return
    # SQLite takes its write lock with the first write; only from then on the lease cannot change.
    session.flush()
    if session.execute(_LIVE, asdict(lease)).first() is None:
        raise LeaseLostError(f"trial {lease.number}: another worker has taken it over, nothing was written")


# These statements run at each write, so they are made once.
_THIS: Final = select(attempts).where(
    *(attempts.c[name] == bindparam(name) for name in ("study_id", "number", "token"))
)
_LOCKED: Final = _THIS.with_for_update()
_LIVE: Final = _THIS.where(attempts.c.ended_at.is_(None)).with_for_update(read=True)
