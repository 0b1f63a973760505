"""Lease of a relay: a row that says which process delivers a study, and until when."""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
from sqlalchemy import Connection, Row, insert, select, update

from storage.addresses import redacted, without_secrets
from storage.errors import RelayBusyError, RelayLeaseLostError
from storage.records.tables import now, relays, studies
from storage.studies import Study

LEASE_SECONDS = 120.0
"""Duration of a lease, longer than a call to MLflow, which times out after 30 s without a byte."""

RELAY_PATIENCE = 30.0
"""How long a command waits for a relay to end by itself, s."""


_WAY = re.compile(r"MLFLOW_TRACKING_(?!AUTH$).*|(https?|all)_proxy", re.IGNORECASE)
"""Variables that affect the route to a tracking server, and the authentication with it.

MLFLOW_TRACKING_AUTH, which our own processes set, is excluded: a relay and a command may differ in it.
"""


class RelayLease:
    """The right to deliver one study, as long as every write goes through :meth:`writing`.

    The token proves the right; a process may hand it to another one.

    Attributes
    ----------
    renewed
        When this process last certainly held the lease, by ``time.monotonic()``.
    """

    def __init__(self, study: Study, token: str) -> None:
        self.study = study
        self.token = token
        self.renewed = time.monotonic()

    @contextmanager
    def writing(self, **values: Any) -> Iterator[Connection]:
        """A transaction that renews the lease (and sets ``values`` in its row).

        Raises
        ------
        RelayLeaseLostError
            before anything is written, if another relay took over.
        """
        with self.study.database.writing() as connection:
            renewed = connection.execute(
                update(relays)
                .where(relays.c.study_id == self.study.id, relays.c.token == self.token)
                .values({"renewed_at": now(), "lease_until": now() + LEASE_SECONDS, **values})
            )
            if renewed.rowcount == 0:
                raise RelayLeaseLostError()
            yield connection
        self.renewed = time.monotonic()

    def renew(self) -> None:
        """Hold the lease for another :data:`LEASE_SECONDS`."""
        with self.writing():
            pass

    def record_error(self, message: str | None) -> None:
        """Record why rows cannot be delivered; ``None`` clears the error."""
        with self.writing(last_error=message and without_secrets(message)):
            pass

    def hand_to(self, pid: int) -> None:
        """Bind the lease to another process of this machine, instead of to this one."""
        with self.writing(pid=pid):
            pass

    def release(self) -> None:
        """End the lease, so that the next relay can begin at once."""
        with self.writing(lease_until=now()):
            pass


@dataclass(frozen=True)
class Holder:
    """The process that delivers a study now, and the address that it delivers to, if known."""

    host: str
    pid: int
    address: str | None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f", to {self.address}" if self.address else "")

    @property
    def stop_command(self) -> str:
        """The command that ends the relay."""
        return f"`kill {self.pid}`" + (f" on {self.host}" if self.host != socket.gethostname() else "")

    def delivers_elsewhere(self, study: Study) -> bool:
        """Whether the relay delivers to another address than this process would, or by another route."""
        if self.address not in (None, _address(study)):
            return True
        if self.host != socket.gethostname() or self.pid == os.getpid():
            return False
        try:
            environment = psutil.Process(self.pid).environ()
        except psutil.Error:
            return False
        return _ways(environment) != _ways(os.environ)


def _ways(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if _WAY.fullmatch(name)}


def _address(study: Study) -> str:
    return redacted(study.database.settings.tracking_uri).rstrip("/")


def take_lease(study: Study) -> RelayLease | None:
    """Take the lease of a study; return ``None`` while another relay holds it."""
    return _take(study, from_running=False)


def seize_lease(study: Study) -> RelayLease:
    """Take the lease even if a running relay holds it; that relay ends before its next write."""
    lease = _take(study, from_running=True)
    assert lease is not None, "a running relay loses its lease"
    return lease


def _take(study: Study, *, from_running: bool) -> RelayLease | None:
    token = uuid.uuid4().hex
    values = {
        "token": token,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started_at": now(),
        "renewed_at": now(),
        "lease_until": now() + LEASE_SECONDS,
        "last_error": None,
        "address": _address(study),
    }
    with study.database.writing() as connection:
        # This lock serializes relays that start at the same time.
        connection.execute(select(studies.c.id).where(studies.c.id == study.id).with_for_update())
        holder = _holder(connection, study)
        if holder is None:
            connection.execute(insert(relays).values(study_id=study.id, **values))
        elif _is_running(holder) and not from_running:
            return None
        else:
            connection.execute(update(relays).where(relays.c.study_id == study.id).values(**values))
    return RelayLease(study, token)


def wait_for_lease(study: Study) -> RelayLease:
    """Take the lease of a study once its relay has ended, or at once from a relay that delivers elsewhere.

    Raises
    ------
    RelayBusyError
        if the relay has not ended after :data:`RELAY_PATIENCE`.
    """
    deadline = time.monotonic() + RELAY_PATIENCE
    while (lease := take_lease(study)) is None:
        holder = running_relay(study)
        if holder is not None and holder.delivers_elsewhere(study):
            return seize_lease(study)
        if holder is not None and time.monotonic() > deadline:
            raise RelayBusyError(
                f"{study.name}: a relay is delivering it to MLflow, {holder}; stop its workers, or stop the"
                f" relay with {holder.stop_command}, and try again"
            )
        time.sleep(0.5)
    return lease


def is_relay_running(study: Study) -> bool:
    """Whether a relay delivers the study now."""
    return running_relay(study) is not None


def running_relay(study: Study) -> Holder | None:
    """The relay that delivers the study now, if there is one."""
    with study.database.reading() as connection:
        row = _holder(connection, study)
    return Holder(row.host, row.pid, row.address) if row is not None and _is_running(row) else None


def last_error(study: Study) -> str | None:
    """The error that keeps the relay from delivering, if there is one."""
    with study.database.reading() as connection:
        return connection.scalar(select(relays.c.last_error).where(relays.c.study_id == study.id))


def _holder(connection: Connection, study: Study) -> Row[Any] | None:
    valid = (relays.c.lease_until > now()).label("valid")
    return connection.execute(
        select(relays.c.host, relays.c.pid, relays.c.address, valid).where(relays.c.study_id == study.id)
    ).one_or_none()


def _is_running(holder: Row[Any]) -> bool:
    """Whether the lease is valid. A lease held by a process of this machine ends with the process."""
    if not holder.valid or holder.host != socket.gethostname():
        return bool(holder.valid)
    try:
        # A dead process stays in the process table as a zombie until its parent reaps it.
        return bool(psutil.Process(holder.pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
