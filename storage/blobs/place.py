"""Decides where the blobs of a database are, and makes sure that all workers use the same place.

By default blobs are in the home folder, which the machines must then share; this is not recorded. The first
worker with another place in its settings copies the existing blobs there and records the place. From then on
every process uses that place only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select

from storage.addresses import redacted
from storage.blobs.folder import FolderBlobs
from storage.blobs.in_database import DatabaseBlobs
from storage.blobs.needed import needed_digests
from storage.blobs.store import BlobStore
from storage.database import Database, opening_lock
from storage.errors import BlobMissingError, FolderTakenError, SettingsError
from storage.ownership import ownership_marker, read_marker, write_marker
from storage.records.tables import artifact_place, artifacts
from storage.settings import ARTIFACTS_VARIABLE, IN_DATABASE, STORAGE_VARIABLE, Settings

ARTIFACTS_MARKER: Final = ".anitune-artifacts"
"""Name of the file in an artifact folder outside the home that holds the database's ownership marker."""


def open_blobs(database: Database) -> BlobStore:
    """The blob store of a database.

    Raises
    ------
    SettingsError
        if the blobs are in another place than the settings say.
    """
    with database.reading() as connection:
        recorded, marker = _recorded(connection), ownership_marker(connection)
    if recorded is not None:
        _compare(database.settings, recorded, marker)
    else:
        _refuse_foreign(database.settings, marker)
    return _store(database)


def resolve_artifact_location(database: Database) -> None:
    """Agree with the other workers on where blobs are; call it before claiming trials.

    Raises
    ------
    SettingsError
        if the blobs are in another place than the settings say, or the folder belongs to another database.
    BlobMissingError
        if some files of trials are neither in this home folder nor in the new place.
    """
    with database.reading() as connection:
        recorded, marker = _recorded(connection), ownership_marker(connection)
    if recorded is None and database.settings.artifacts_elsewhere:
        with (
            database.plain_errors(),
            opening_lock(database.engine),
        ):  # one worker at a time
            with database.reading() as connection:
                recorded = _recorded(connection)
            if recorded is None:
                _bring_from_home(database)
                _record(database, marker)
    if recorded is not None:
        _compare(database.settings, recorded, marker)


def _record(database: Database, marker: str) -> None:
    settings = database.settings
    values: dict[str, Any] = {"id": 1, "kind": IN_DATABASE}
    if settings.artifacts_in != IN_DATABASE:
        _claim_folder(settings, marker)
        values |= {"kind": "folder", "folder": str(settings.artifacts)}
    with database.writing() as connection:
        connection.execute(insert(artifact_place).values(values))


def _store(database: Database) -> BlobStore:
    if database.settings.artifacts_in == IN_DATABASE:
        return DatabaseBlobs(database)
    return FolderBlobs(database.settings.artifacts)


def _recorded(connection: Connection) -> Row[Any] | None:
    return connection.execute(_PLACE).one_or_none()


_PLACE: Final = select(artifact_place)


def _compare(settings: Settings, recorded: Row[Any], marker: str) -> None:
    url = redacted(settings.storage_url)
    if recorded.kind == IN_DATABASE:
        if settings.artifacts_in != IN_DATABASE:
            raise SettingsError(
                f"{url}: its artifacts are stored in the database: set {ARTIFACTS_VARIABLE}={IN_DATABASE}"
                " here too"
            )
    elif not isinstance(settings.artifacts_in, Path):
        raise SettingsError(
            f"{url}: its artifacts are kept in a folder that its machines share, on another machine known as"
            f" {recorded.folder}: set {ARTIFACTS_VARIABLE} to it here too"
        )
    elif read_marker(settings.artifacts / ARTIFACTS_MARKER) != marker:
        raise SettingsError(
            f"{settings.artifacts}: not the folder with the artifacts of {url}, on another machine known as"
            f" {recorded.folder}: make sure that it is mounted, or correct {ARTIFACTS_VARIABLE}"
        )


def _refuse_foreign(settings: Settings, marker: str) -> None:
    folder = settings.artifacts
    if read_marker(folder / ARTIFACTS_MARKER) not in (None, marker):
        raise FolderTakenError(
            f"{folder}: holds the artifacts of another database than {redacted(settings.storage_url)}:"
            f" correct {STORAGE_VARIABLE}, choose another folder for {ARTIFACTS_VARIABLE}, or remove its"
            f" {ARTIFACTS_MARKER} if that database is gone"
        )


def _claim_folder(settings: Settings, marker: str) -> None:
    _refuse_foreign(settings, marker)
    try:
        write_marker(settings.artifacts / ARTIFACTS_MARKER, marker)
    except OSError as error:
        raise SettingsError(
            f"{settings.artifacts}: cannot be written: {error.strerror}; correct {ARTIFACTS_VARIABLE}, or"
            " its permissions"
        ) from error


def _bring_from_home(database: Database) -> None:
    """Copy the blobs that the records name from this home folder, where they were before."""
    old, new = FolderBlobs(database.settings.home / "artifacts"), _store(database)
    with database.reading() as connection:
        named = connection.execute(select(artifacts.c.digest).distinct()).scalars().all()
        needed = needed_digests(connection)
    if missing := [digest for digest in named if not (new.holds(digest) or old.holds(digest))]:
        raise BlobMissingError(
            f"{len(missing)} of the {len(named)} files of its trials are not in {old.root}: start the first"
            f" worker with {ARTIFACTS_VARIABLE} on the machine that has them"
        )
    for digest in needed:
        if old.holds(digest) and not new.holds(digest):
            new.put(old.path(digest))
