"""Checks and migrates MLflow's tables, where MLflow is used through a database instead of a server.

MLflow creates its tables itself, and migrates older ones whenever a newer version opens them and misses a
table. So their version is checked before MLflow opens them.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, String, column, create_engine, func, literal, select, table, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from storage.addresses import redacted, sqlite_file
from storage.database import Migration, opening_lock, refuse_no_encoding
from storage.database_errors import plain_errors
from storage.errors import SchemaTooNewError, SchemaTooOldError, SettingsError

_PLACE = ".place"
"""Name of a file in MLflow's artifact folder that lists the addresses of this folder in MLflow's tables.

A database outside the home folder has its own such file, with a digest in its name."""

_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""MLflow's tables and columns that hold addresses of files."""

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's log lines may hold the URL with a password; our own errors report failures.
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
}


def is_database(tracking_uri: str) -> bool:
    """Whether MLflow's tables are accessed directly, not through a server."""
    try:
        return make_url(tracking_uri).get_backend_name() in ("sqlite", "postgresql")
    except ArgumentError:
        return False


def check_tables(tracking_uri: str) -> None:
    """Refuse tables of another version; a database without tables passes, and so does a server.

    If there are tables, the check imports MLflow.

    Raises
    ------
    SchemaTooOldError, SchemaTooNewError
        with a message of one line.
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
            f"{redacted(tracking_uri)}: its tables were made by an older MLflow (version {found}, this one"
            " has"
            f" {head}): stop the workers, make a backup, and run `anitune migrate`"
        )


def follow_folder(tracking_uri: str, artifact_root: Path) -> None:
    """Update the artifact addresses in MLflow's tables after a home folder was renamed or copied.

    MLflow stores the absolute address of the folder of each experiment, run and model. A file in the artifact
    folder lists its former addresses; the addresses below them are changed in one transaction. A database
    outside the home folder may serve another home. Its addresses change only once the former folder is gone;
    until then the file keeps the former address.

    Only one process at a time may call this, and the tables must have the version of the installed MLflow.
    """
    alone, here = _moves_along(tracking_uri, artifact_root), artifact_root.as_uri()
    name = _PLACE if alone else f"{_PLACE}-{sha256(redacted(tracking_uri).encode()).hexdigest()[:16]}"
    file = artifact_root / name
    known = file.read_text().split() if file.exists() else None
    if known == [here]:
        return
    left = [place for place in known or () if place != here]
    if _version(tracking_uri) is not None:
        with plain_errors(tracking_uri, Path()):
            engine = create_engine(tracking_uri)
            try:
                with engine.begin() as connection:
                    former = left if known is not None else _former_places(connection, artifact_root)
                    left = [place for place in former if not alone and _folder(place).exists()]
                    for place in former:
                        if place not in left:
                            _replace_beginnings(connection, place, here)
            finally:
                engine.dispose()
    if known != [*left, here]:
        new = file.with_name(f"{name}.new")
        new.write_text("".join(f"{place}\n" for place in (*left, here)))
        new.replace(file)


def _moves_along(tracking_uri: str, artifact_root: Path) -> bool:
    database = sqlite_file(tracking_uri)
    return database is not None and database.resolve().is_relative_to(artifact_root.parent.resolve())


def _folder(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def _former_places(connection: Connection, artifact_root: Path) -> list[str]:
    """Former addresses of a folder without that file, taken from the experiments whose files are in it."""
    experiments = table("experiments", column("artifact_location", String))
    found = set()
    for location in connection.scalars(select(experiments.c.artifact_location)):
        place, _, name = str(location).rpartition("/")
        if place.startswith("file:///") and place.endswith(f"/{artifact_root.name}"):
            found |= {place} if (artifact_root / unquote(name)).is_dir() else set()
    return sorted(found - {artifact_root.as_uri()})


def _replace_beginnings(connection: Connection, old: str, new: str) -> None:
    for name, address in _ADDRESSES:
        rows = table(name, column(address, String))
        known = rows.c[address]
        connection.execute(
            update(rows)
            .where(func.substr(known, 1, len(old) + 1) == f"{old}/")
            .values({address: literal(new) + func.substr(known, len(old) + 1)})
        )


def migrate_tables(tracking_uri: str) -> Migration:
    """Create MLflow's tables, or migrate them to the installed version, one process at a time.

    Raises
    ------
    DatabaseError
        with a message of one line.
    """
    with suppress(SchemaTooOldError):
        check_tables(tracking_uri)
    os.environ.update(QUIET)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    before = _version(tracking_uri)
    head, _ = _known()
    if before != head:
        from storage.tracking.mlflow_private import upgrade  # MLflow takes seconds to import

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
        return None  # connecting would create the file
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
    """The table version of the installed MLflow, and all earlier versions with it."""
    os.environ.update(QUIET)
    mlflow = importlib.util.find_spec("mlflow")
    assert mlflow is not None, "it is a dependency"
    assert mlflow.origin is not None
    scripts = ScriptDirectory(str(Path(mlflow.origin).parent / "store" / "db_migrations"))
    head = scripts.get_current_head()
    assert head is not None, "there are migrations"
    return head, {revision.revision for revision in scripts.walk_revisions()}
