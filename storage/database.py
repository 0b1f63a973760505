"""The SQL database of the records, which Optuna shares: SQLite for one machine, PostgreSQL for many."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import optuna
from alembic.migration import MigrationContext
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from storage.addresses import redacted
from storage.connections import MomentaryPool
from storage.database_errors import SQLITE_PATIENCE, plain_errors
from storage.errors import (
    DatabaseBusyError,
    DatabaseStartingError,
    DatabaseUnreachableError,
    SchemaTooNewError,
    SchemaTooOldError,
    SettingsError,
)
from storage.postgresql import check_socket_folder
from storage.records import schema
from storage.settings import Settings
from storage.trials import fencing

log = logging.getLogger("anitune")

R = TypeVar("R")

OPENING_PATIENCE = 120.0
"""How long to wait for another process that creates or changes the tables, s."""

STARTING_PATIENCE = 120.0
"""How long to wait for a PostgreSQL server that starts, or recovers from a crash, s."""

# A suspended worker (SIGSTOP, a sleeping laptop) may hold row locks. The server ends its transaction before
# others stop waiting for the lock, and both times are shorter than a lease.
_POSTGRESQL_OPTIONS = "-c idle_in_transaction_session_timeout=10s -c lock_timeout=20s"
_POSTGRESQL_CONNECTION = {
    "connect_timeout": 10,  # s
    "tcp_user_timeout": 20_000,  # ms
    "keepalives_idle": 10,  # s
    "keepalives_interval": 5,  # s
    "keepalives_count": 3,
    "application_name": "anitune",
    "options": _POSTGRESQL_OPTIONS,
}
_OPENING_LOCK = 0x616E6974756E65  # "anitune": the key of PostgreSQL's advisory lock

_NETWORK_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "9p", "afs", "fuse.sshfs"}
)


class Database:
    """An open database: our tables through :meth:`reading` and :meth:`writing`, Optuna's through ``optuna``.

    Never call Optuna inside a block of :meth:`writing`: on SQLite the call would wait for the block to end.

    Attributes
    ----------
    settings
        The settings that it was opened with.
    engine
        SQLAlchemy's engine for our tables.
    optuna
        Optuna's storage on the same database. Its writes obey :func:`storage.trials.fencing.fenced`.
    """

    def __init__(self, settings: Settings, engine: Engine, rdb: RDBStorage) -> None:
        self.settings = settings
        self.engine = engine
        self.optuna: BaseStorage = optuna.storages.get_storage(rdb)
        self._rdb = rdb
        # A transaction of SQLite reads a snapshot anyway.
        one_state = {} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
        self._readers = engine.execution_options(reading=True, **one_state)
        fencing.guard(rdb.scoped_session.session_factory)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for reading our tables: it sees one snapshot and blocks nobody."""
        # Commit, because after a rollback psycopg forgets the statements that the server has prepared.
        with self.plain_errors(), self._readers.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction: committed at the end of the block, rolled back if the block raises."""
        with self.plain_errors(), self.engine.begin() as connection:
            yield connection

    @property
    def read_only(self) -> bool:
        """Whether the database is a file that can only be read."""
        return _is_read_only(self.engine.url)

    def plain_errors(self) -> AbstractContextManager[None]:
        """Turn errors of SQLAlchemy and Optuna in the block into a :class:`DatabaseError` of one line."""
        return plain_errors(self.settings.storage_url, self.settings.home)

    def close(self) -> None:
        """Close all connections."""
        _dispose(self._rdb)
        self.engine.dispose()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Migration:
    """A migration: whose tables, and their versions before (None if there were no tables) and now."""

    what: str
    before: str | None
    now: str


def open_database(settings: Settings) -> Database:
    """Open the database, and create its tables if there are none.

    Any number of processes may do so at once. The call waits for a PostgreSQL server that is starting.

    Raises
    ------
    DatabaseError
        with a message of one line, if the database does not answer, refuses access, cannot be written, or
        its tables have an older or a newer version.
    SettingsError
        if it stores text without an encoding.
    """
    return _when_it_has_started(lambda: _open(settings))


def _open(settings: Settings) -> Database:
    url = make_url(settings.storage_url)
    with plain_errors(settings.storage_url, settings.home):
        engine, options = _connect(url)
        try:
            if (version := _version(engine)) is None:
                with opening_lock(engine):
                    if _version(engine) is None:
                        _make_tables(settings, engine, options)
                version = _version(engine)
            _refuse_older(settings, "anitune", version, schema.head())
            rdb = _optuna_storage(settings, options, make_tables=False)
            try:
                _refuse_older(settings, "Optuna", rdb.get_current_version(), _optuna_versions(rdb)[0])
            except SchemaTooOldError:
                _dispose(rdb)
                raise
            return Database(settings, engine, rdb)
        except BaseException:
            engine.dispose()
            raise


def migrate_database(settings: Settings) -> list[Migration]:
    """Migrate our tables and Optuna's to the versions of the installed programs, one process at a time.

    Raises
    ------
    DatabaseError, SettingsError
        as :func:`open_database`; a migration that fails leaves our tables as they were.
    """
    return _when_it_has_started(lambda: _migrate(settings))


def _migrate(settings: Settings) -> list[Migration]:
    url = make_url(settings.storage_url)
    with plain_errors(settings.storage_url, settings.home):
        engine, options = _connect(url)
        try:
            with opening_lock(engine):
                ours = _version(engine)
                optunas = _optuna_version(engine)
                if ours is None:
                    _make_tables(settings, engine, options)
                rdb = _optuna_storage(settings, options, make_tables=False)
                if rdb.get_current_version() != _optuna_versions(rdb)[0]:
                    rdb.upgrade()
                optuna_now = rdb.get_current_version()
                _dispose(rdb)
                with engine.begin() as connection:
                    schema.upgrade(connection)
        finally:
            engine.dispose()
    return [Migration("Optuna", optunas, optuna_now), Migration("anitune", ours, schema.head())]


def _when_it_has_started(action: Callable[[], R]) -> R:
    """Run an action that first connects to the database; repeat it while the database is starting."""
    said = False

    def say(state: RetryCallState) -> None:
        nonlocal said
        if not said and state.outcome is not None:
            log.info("%s (waiting for at most %.0f s)", state.outcome.exception(), STARTING_PATIENCE)
            said = True

    retrying = Retrying(
        retry=retry_if_exception_type(DatabaseStartingError),
        wait=wait_random_exponential(multiplier=0.1, max=5),
        stop=stop_after_delay(STARTING_PATIENCE),
        before_sleep=say,
        reraise=True,
    )
    return retrying(action)


def _connect(url: URL) -> tuple[Engine, dict[str, Any]]:
    """The engine for our tables, and the options for Optuna's engine."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sqlite = url.get_backend_name() == "sqlite"
    if sqlite:
        _prepare_folder(Path(str(url.database)))
        url = _openable(url)
    options = _engine_options(url)
    try:
        engine = create_engine(url, **options)
    except ModuleNotFoundError:
        raise SettingsError("PostgreSQL needs one more package: pip install 'anitune[postgres]'") from None
    if sqlite:
        _begin_by_ourselves(engine)
    else:
        check_socket_folder(str(url.query.get("host", "")))
        refuse_no_encoding(engine)
    return engine, options


def _is_read_only(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and url.query.get("mode") == "ro"


def _refuse_older(settings: Settings, program: str, version: str | None, head: str) -> None:
    if version != head:
        raise SchemaTooOldError(
            f"{redacted(settings.storage_url)}: its tables were made by an older {program} (version"
            f" {version}, this"
            f" one has {head}): stop the workers, make a backup, and run `anitune migrate`"
        )


def network_filesystem(path: Path, mounts: str) -> str | None:
    """The kind of network file system that holds an absolute path, by the text of ``/proc/mounts``."""
    kind = ""
    longest = -1
    for line in mounts.splitlines():
        _, point, candidate, *_ = line.split()
        if path.is_relative_to(point) and len(point) >= longest:
            kind, longest = candidate, len(point)
    return kind if kind in _NETWORK_FILESYSTEMS else None


def _prepare_folder(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseUnreachableError(
            f"{file.parent}: cannot make this folder for the database: {error.strerror};"
            " choose another one (ANITUNE_HOME, or ANITUNE_STORAGE_URL)"
        ) from error
    mounts = Path("/proc/mounts")
    kind = network_filesystem(file.parent.resolve(), mounts.read_text()) if mounts.exists() else None
    if kind is not None:
        log.warning(
            "%s is on a network file system (%s), where SQLite can lose data:"
            " use PostgreSQL, or a local folder",
            file,
            kind,
        )


def _openable(url: URL) -> URL:
    """The URL of an SQLite file, changed to open read-only where the file or its folder cannot be written."""
    file = Path(str(url.database)).resolve()
    if not file.exists() or (_is_writable(file) and _is_writable(file.parent)):
        return url
    options = {"mode": "ro", "uri": "true"}
    # Nobody writes, so SQLite needs no lock file beside it, and could not create one.
    if not file.with_name(f"{file.name}-wal").exists():
        options["immutable"] = "1"
    return URL.create("sqlite", database=file.as_uri(), query=options)


def _is_writable(path: Path) -> bool:
    # Check the rights of the effective user and, for root, who has all rights, the kind of file system.
    return os.access(path, os.W_OK) and os.access(path, os.W_OK, effective_ids=True)


def _engine_options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": SQLITE_PATIENCE}}
    given = {key: value for key, value in _POSTGRESQL_CONNECTION.items() if key not in url.query}
    return {"connect_args": given, "poolclass": MomentaryPool, "pool_pre_ping": True}


def _begin_by_ourselves(engine: Engine) -> None:
    """Make transactions take SQLite's write lock when they begin.

    The driver would take it at the first write, and fail at once if another process wrote since the first
    read.
    """

    @event.listens_for(engine, "connect")
    def no_hidden_begin(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def refuse_no_encoding(engine: Engine) -> None:
    """Reject PostgreSQL databases with the encoding SQL_ASCII: connecting raises :class:`SettingsError`."""

    @event.listens_for(engine, "connect", insert=True)  # before SQLAlchemy asks for the server's version
    def check(connection: Any, record: Any) -> None:
        if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
            raise SettingsError(
                f"{redacted(engine.url.render_as_string())}: this database has no encoding (SQL_ASCII);"
                " make one with CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0"
            )


def _version(engine: Engine) -> str | None:
    with engine.execution_options(reading=True).connect() as connection:
        return schema.version(connection)


def _optuna_version(engine: Engine) -> str | None:
    with engine.execution_options(reading=True).connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


@contextmanager
def opening_lock(engine: Engine) -> Iterator[None]:
    """Lock under which one process at a time creates or changes the tables of a database."""
    if engine.dialect.name == "sqlite":
        url = engine.url
        if _is_read_only(url):
            raise DatabaseUnreachableError(f"{url.database}: has no tables, and cannot be written")
        try:
            with FileLock(f"{url.database}.lock", timeout=OPENING_PATIENCE):
                yield
        except Timeout:
            raise DatabaseBusyError(
                f"{url.database}: another process has been creating the tables for too long"
            ) from None
        except OSError as error:
            raise DatabaseUnreachableError(
                f"{url.database}: cannot be written: {error.strerror}; free space, or choose another place"
            ) from error
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # Detached, so that the connection is closed instead of returned: closing always frees the lock.
        connection.detach()
        connection.execute(text(f"SET lock_timeout = '{OPENING_PATIENCE:.0f}s'"))
        connection.execute(text(f"SELECT pg_advisory_lock({_OPENING_LOCK})"))
        yield


def _make_tables(settings: Settings, engine: Engine, options: dict[str, Any]) -> None:
    if engine.dialect.name == "sqlite":
        # With WAL readers do not block the writer. The file keeps the mode, so it applies to Optuna too.
        raw = engine.raw_connection()
        try:
            raw.cursor().execute("PRAGMA journal_mode = WAL")
        finally:
            raw.close()
    # Optuna may have created its tables before. It must not add to tables of another version.
    _dispose(_optuna_storage(settings, options, make_tables=_optuna_version(engine) is None))
    with engine.begin() as connection:
        schema.upgrade(connection)


def _optuna_storage(settings: Settings, options: dict[str, Any], *, make_tables: bool) -> RDBStorage:
    # Optuna formats the URL as a template, so braces are doubled.
    url = make_url(settings.storage_url)
    if url.get_backend_name() == "sqlite":
        url = _openable(url)
    template = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    rdb = RDBStorage(
        template,
        engine_kwargs=dict(options),
        skip_table_creation=not make_tables,
        skip_compatibility_check=True,
    )
    version = rdb.get_current_version()
    if version not in _optuna_versions(rdb):
        _dispose(rdb)
        raise SchemaTooNewError(
            f"{redacted(settings.storage_url)}: its tables were made by a newer Optuna (version {version}):"
            " upgrade Optuna"
        )
    return rdb


_known_to_optuna: Final[list[str]] = []


def _optuna_versions(rdb: RDBStorage) -> list[str]:
    """All versions of Optuna's tables, the newest first. Optuna runs the file of each migration to tell."""
    if not _known_to_optuna:
        _known_to_optuna.extend(rdb.get_all_versions())
    return _known_to_optuna


def _dispose(rdb: RDBStorage) -> None:
    rdb.remove_session()
    rdb.engine.dispose()
