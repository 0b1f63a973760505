"""Folders of a database's files: a mark in them, which the database knows, tells them from another one's.

Databases may share a home folder, but not the folder of a study in it: its name is all that it is known by.
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
"""A file in the folder of a study's trials, whose content is the mark of its database."""


def ownership_marker(connection: Connection) -> str:
    """The mark of a database: random, made with its tables, and the same in a copy or backup of it."""
    marker: str = connection.execute(select(identity.c.mark)).scalar_one()
    return marker


def read_marker(file: Path) -> str | None:
    """The mark in a file; None if there is none."""
    try:
        return file.read_text().strip() or None
    except OSError:
        return None


def write_marker(file: Path, marker: str) -> None:
    """Make the folder of a file the one of the database with this mark."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as new:
        new.write(f"{marker}\n".encode())


def own_study_folder(database: Database, study: str) -> None:
    """Mark the folder of a study's trials; to be called before its trials are claimed.

    Raises
    ------
    FolderTakenError
        if it is of another database, which has a study of the same name.
    """
    folder = database.settings.study_folder(study)
    if folder in foreign_folders(database):
        raise taken(database, folder)
    if read_marker(folder / STUDY_MARKER) is None:
        with database.reading() as connection:
            marker = ownership_marker(connection)
        write_marker(folder / STUDY_MARKER, marker)


def foreign_folders(database: Database) -> list[Path]:
    """The folders of studies, in the home folder, that are of another database.

    One without a mark, as an older program made it, is of the database that has trials of that study.
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
    """What to do about a folder of another database."""
    return FolderTakenError(
        f"{folder}: its trials are of another database than {redacted(database.settings.storage_url)}:"
        f" correct {STORAGE_VARIABLE}, set {HOME_VARIABLE} to another folder, or move this one away if nobody"
        " needs it"
    )


def is_trial(folder: Path) -> bool:
    """Whether it is a trial's, and one that we have made: what a link leads to is not ours to delete."""
    return folder.name.isdecimal() and not folder.is_symlink() and not folder.parent.is_symlink()
