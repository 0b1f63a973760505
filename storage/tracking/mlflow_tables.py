"""The versions of MLflow's tables, where MLflow is a database of ours and no server.

MLflow makes and changes them itself: those of an older MLflow, whenever a newer one opens them and misses a
table. So they are looked at before MLflow opens them.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from contextlib import suppress
from pathlib import Path

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from storage.addresses import redacted
from storage.database import Migration, opening_lock, refuse_no_encoding
from storage.errors import SchemaTooNewError, SchemaTooOldError, SettingsError
from storage.faults import plain_errors

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Its log lines may hold the URL with a password; what goes wrong is said by our errors.
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
}


def is_database(tracking_uri: str) -> bool:
    """Whether MLflow's tables are reached directly, and not through a server."""
    try:
        return make_url(tracking_uri).get_backend_name() in ("sqlite", "postgresql")
    except ArgumentError:
        return False


def check_tables(tracking_uri: str) -> None:
    """Refuse tables of another version; a database without tables is right, and so is a server.

    MLflow is imported where there are tables.

    Raises
    ------
    SchemaTooOldError, SchemaTooNewError
        in one line.
    """
    if not is_database(tracking_uri):
        return
    found = _version(tracking_uri)
    if found is None:
        return
    head, known = _known()
    if found not in known:
        raise SchemaTooNewError(
            f"{redacted(tracking_uri)}: its tables were made by a newer MLflow (version {found}):"
            " upgrade MLflow"
        )
    if found != head:
        raise SchemaTooOldError(
            f"{redacted(tracking_uri)}: its tables are of an older MLflow (version {found}, this one has"
            f" {head}): stop the workers, make a backup, and run `anitune migrate`"
        )


def migrate_tables(tracking_uri: str) -> Migration:
    """Make MLflow's tables, or bring them to the version of the installed one; one process at a time does so.

    Raises
    ------
    DatabaseError
        in one line.
    """
    with suppress(SchemaTooOldError):
        check_tables(tracking_uri)
    os.environ.update(QUIET)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    before = _version(tracking_uri)
    head, _ = _known()
    if before != head:
        from mlflow.db import upgrade

        with plain_errors(tracking_uri, Path()):
            engine = create_engine(tracking_uri)
            try:
                with opening_lock(engine):
                    upgrade.callback(tracking_uri)  # type: ignore[misc]
            finally:
                engine.dispose()
    return Migration("MLflow", before, head)


def _version(tracking_uri: str) -> str | None:
    url = make_url(tracking_uri)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        return None  # looking would make the file
    try:
        engine = create_engine(url)
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{redacted(tracking_uri)}: no driver {error.name}; write postgresql+psycopg://..., and"
            " pip install 'anitune[postgres]'"
        ) from None
    if url.get_backend_name() == "postgresql" and url.get_driver_name() == "psycopg":
        refuse_no_encoding(engine)
    with plain_errors(tracking_uri, Path()):
        try:
            with engine.connect() as connection:
                return MigrationContext.configure(connection).get_current_revision()
        finally:
            engine.dispose()


def _known() -> tuple[str, set[str]]:
    """The version of the installed MLflow, and all that it has had."""
    os.environ.update(QUIET)
    mlflow = importlib.util.find_spec("mlflow")
    assert mlflow is not None, "it is a dependency"
    assert mlflow.origin is not None
    scripts = ScriptDirectory(str(Path(mlflow.origin).parent / "store" / "db_migrations"))
    head = scripts.get_current_head()
    assert head is not None, "there are migrations"
    return head, {revision.revision for revision in scripts.walk_revisions()}
