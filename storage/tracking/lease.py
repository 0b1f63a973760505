"""One relay a study: the row that says which process delivers, and until when that holds."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from storage.errors import RelayLeaseLostError
from storage.records.tables import now, relays

LEASE_SECONDS = 120.0
"""Longer than any one call to MLflow takes, which its timeout of 30 s ends."""


class RelayLease:
    """The right to deliver one study, as long as every write goes through :meth:`transaction`."""

    def __init__(self, engine: Engine, study_id: int, token: str) -> None:
        self.engine = engine
        self.study_id = study_id
        self._token = token

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction that also renews the lease.

        Raises
        ------
        RelayLeaseLostError
            before anything is written, if another relay took over.
        """
        with self.engine.begin() as connection:
            renewed = connection.execute(
                update(relays)
                .where(relays.c.study_id == self.study_id, relays.c.token == self._token)
                .values(renewed_at=now(), lease_until=now() + LEASE_SECONDS)
            )
            if renewed.rowcount == 0:
                raise RelayLeaseLostError()
            yield connection

    def record_error(self, message: str | None) -> None:
        """Say what keeps the tracking server from being told (nothing: ``None``)."""
        with self.transaction() as connection:
            connection.execute(
                update(relays).where(relays.c.study_id == self.study_id).values(last_error=message)
            )

    def release(self) -> None:
        """Let the next relay begin at once."""
        with self.transaction() as connection:
            connection.execute(
                update(relays).where(relays.c.study_id == self.study_id).values(lease_until=now())
            )


def take_lease(engine: Engine, study_id: int) -> RelayLease | None:
    """The lease of a study, or ``None`` while another relay holds it."""
    token = uuid.uuid4().hex
    values = {
        "token": token,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started_at": now(),
        "renewed_at": now(),
        "lease_until": now() + LEASE_SECONDS,
        "stop_requested": False,
        "last_error": None,
    }
    try:
        with engine.begin() as connection:
            holder = _holder(connection, study_id)
            if holder is None:
                connection.execute(insert(relays).values(study_id=study_id, **values))
            elif _lives(holder):
                return None
            else:
                taken = connection.execute(
                    update(relays)
                    .where(relays.c.study_id == study_id, relays.c.token == holder.token)
                    .values(**values)
                )
                if taken.rowcount == 0:
                    return None
    except IntegrityError:  # another relay made the row first
        return None
    return RelayLease(engine, study_id, token)


def relay_lives(engine: Engine, study_id: int) -> bool:
    """Whether a relay delivers the study now."""
    with engine.connect() as connection:
        holder = _holder(connection, study_id)
    return holder is not None and _lives(holder)


def last_error(engine: Engine, study_id: int) -> str | None:
    """What keeps the living relay from delivering."""
    with engine.connect() as connection:
        return connection.scalar(select(relays.c.last_error).where(relays.c.study_id == study_id))


def _holder(connection: Connection, study_id: int) -> Row[tuple[str, str, int, bool]] | None:
    return connection.execute(
        select(relays.c.token, relays.c.host, relays.c.pid, (relays.c.lease_until > now()).label("valid")).where(
            relays.c.study_id == study_id
        )
    ).one_or_none()


def _lives(holder: Row[tuple[str, str, int, bool]]) -> bool:
    """Whether the lease holds. One of a process of this machine that was killed ends with the process."""
    token, host, pid, valid = holder
    if not valid or host != socket.gethostname():
        return valid
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is another user's
        pass
    return True
