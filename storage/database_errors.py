"""Error translation: turns database errors into messages of one line that say what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from sqlalchemy import exc
from sqlalchemy.engine import make_url

from storage.addresses import redacted, without_secrets
from storage.errors import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseStartingError,
    DatabaseUnreachableError,
)
from storage.settings import is_of_anitune_up

SQLITE_PATIENCE = 30.0
"""How long a write to SQLite waits for the write of another process, s."""

# SQLSTATE prefixes of a server that cannot serve: a broken connection, a wrong password, no such database, a
# full disk or too many connections, shutting down or starting, and an idle transaction that it ended.
_AWAY = ("08", "28", "3D", "53", "57P", "25P03")
# Messages of a server that accepts no connections yet. A refused client gets no SQLSTATE.
_STARTING = re.compile(
    r"database system is (starting up|in recovery mode|not (yet )?accepting|shutting down)"
)
# Messages about the limit of the server, of a role or a database, and of pgbouncer.
_FULL = re.compile(r"too many (clients|connections)|remaining connection slots|no more connections allowed")
_BUSY = ("55P03", "40P01", "40001")  # waited too long for a lock, deadlock, conflict


@contextmanager
def plain_errors(url: str, home: Path) -> Iterator[None]:
    """Turn errors of SQLAlchemy and Optuna in the block into a :class:`DatabaseError` of one line."""
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        raise _explained(error.__cause__ or error, url, home) from error
    except exc.SQLAlchemyError as error:
        raise _explained(error, url, home) from error


def has_no_free_connection(error: BaseException) -> bool:
    """Whether a server refused a connection because its limit of connections is reached."""
    return _FULL.search(str(error)) is not None


def _explained(error: BaseException, url: str, home: Path) -> DatabaseError:
    where = redacted(url)
    if isinstance(error, exc.TimeoutError):  # from the pool, which the threads of a worker share
        return DatabaseBusyError(f"{where}: other threads have held all connections for too long")
    ours = is_of_anitune_up(url, home)
    advice = "start it with `anitune up`" if ours else "check the URL, and that the database is running"
    if isinstance(error, exc.PendingRollbackError):
        # Optuna mistook a broken connection for a query that is too long, and repeated it.
        return DatabaseUnreachableError(f"{where}: the connection broke; {advice}")
    if not isinstance(error, exc.DBAPIError) or error.orig is None:
        return DatabaseError(f"{where}: {_first_line(error)}")
    said = _first_line(error.orig)
    if make_url(url).get_backend_name() == "sqlite":
        return _explained_sqlite(said, where)
    if has_no_free_connection(error.orig):
        reason = said.rpartition("FATAL:")[2].strip()
        return DatabaseBusyError(
            f"{where}: the server has no free connection ({reason}); end programs that use it, or raise its"
            " max_connections"
        )
    state = getattr(error.orig, "sqlstate", None)
    if state in _BUSY:
        return DatabaseBusyError(f"{where}: {said}")
    if _STARTING.search(str(error.orig)):
        return DatabaseStartingError(f"{where}: {said}; try again in a minute")
    away = state is None and isinstance(error, exc.OperationalError)  # no server answered
    if error.connection_invalidated or away or (state or "").startswith(_AWAY):
        return DatabaseUnreachableError(f"{where}: {said}; {advice}")
    return DatabaseError(f"{where}: {said}")


def _explained_sqlite(said: str, where: str) -> DatabaseError:
    if "locked" in said:
        return DatabaseBusyError(
            f"{where}: another process has been writing for {SQLITE_PATIENCE:.0f} s;"
            " several workers need PostgreSQL, which `anitune up` starts"
        )
    if "readonly" in said:
        return DatabaseError(f"{where}: it can be read, but not written here: {said}")
    if "unable to open" in said:
        return DatabaseUnreachableError(f"{where}: {said}; check that the file and its folder can be written")
    if "full" in said:
        return DatabaseError(f"{where}: {said}; free some space; what was recorded before is not lost")
    if "I/O error" in said:  # also when the disk is so full that not even the lock file can grow
        return DatabaseError(f"{where}: {said}; check the disk, and that it has free space")
    if "not a database" in said or "malformed" in said:
        return DatabaseError(f"{where}: {said}; restore a copy of the file, or choose another one")
    return DatabaseError(f"{where}: {said}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return without_secrets(lines[0].strip()) if lines else type(error).__name__
