"""Ownership markers: a file in a folder names the database whose files are there.

Databases may share a home folder, but not the folder of a study in it, which has only the study's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, select

from storage.addresses import redacted
from storage.database import Database
from storage.errors import FolderTakenError
from storage.files import replacing
from storage.records.tables import identity, studies, trials
from storage.settings import HOME_VARIABLE, STORAGE_VARIABLE

STUDY_MARKER: Final = ".anitune-study"
"""Name of the file in the folder of a study's trials that holds the ownership marker of the database."""


def ownership_marker(connection: Connection) -> str:
    """The marker of a database: random, created with its tables, and the same in a copy or backup of it."""
    marker: str = connection.execute(select(identity.c.mark)).scalar_one()
    return marker


def read_marker(file: Path) -> str | None:
    """The marker in a file; None if there is none."""
    try:
        return file.read_text().strip() or None
    except OSError:
        return None


def write_marker(file: Path, marker: str) -> None:
    """Write the marker into a file, so that its folder belongs to the database with this marker."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as new:
        new.write(f"{marker}\n".encode())


def own_study_folder(database: Database, study: str) -> None:
    """Put the ownership marker into the folder of a study's trials; call it before claiming trials.

    Raises
    ------
    FolderTakenError
        if the folder belongs to another database, which has a study of the same name.
    """
    folder = database.settings.study_folder(study)
    if folder in foreign_folders(database):
        raise taken(database, folder)
    if read_marker(folder / STUDY_MARKER) is None:
        with database.reading() as connection:
            marker = ownership_marker(connection)
        write_marker(folder / STUDY_MARKER, marker)


def foreign_folders(database: Database) -> list[Path]:
    """The folders of studies in the home folder that belong to another database.

    A folder without a marker, made by an older version, belongs to the database with trials of that study.
    """
    folders = sorted((database.settings.home / "trials").glob("*/"))
    with database.reading() as connection:
        marker = ownership_marker(connection)
        names = set(connection.execute(select(studies.c.name).join(trials).distinct()).scalars())

    def is_foreign(folder: Path) -> bool:
        if (found := read_marker(folder / STUDY_MARKER)) is not None:
            return found != marker
        return folder.name not in names and any(map(is_trial, folder.iterdir()))

    return list(filter(is_foreign, folders))


def taken(database: Database, folder: Path) -> FolderTakenError:
    """The error for a folder of another database; its message says what to do."""
    return FolderTakenError(
        f"{folder}: its trials belong to another database than {redacted(database.settings.storage_url)}:"
        f" correct {STORAGE_VARIABLE}, set {HOME_VARIABLE} to another folder, or move this one away if nobody"
        " needs it"
    )


def is_trial(folder: Path) -> bool:
    """Whether anitune made this folder for a trial; the target of a link must not be deleted."""
    return folder.name.isdecimal() and not folder.is_symlink() and not folder.parent.is_symlink()
