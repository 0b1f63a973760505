"""Files that no record needs: blobs, images, and what is left of trials. All of it may go while workers work.

A worker stores a blob first and its row afterwards, in between it looks like garbage. So blobs are deleted in
a transaction that lets no artifact row be written, and a worker, once it has written its row, looks whether
the blob is still there. What a killed process left half-written is deleted a day later.

The folder of a trial, and its checkpoint while the trial has not ended, belong to its row, which is there
before them.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import select, text

from storage.blobs.folder import FolderBlobs
from storage.blobs.needed import NAMING, needed_digests
from storage.blobs.place import open_blobs
from storage.blobs.store import StoredBlob
from storage.confined import remove_child
from storage.database import Database
from storage.files import PARTIAL
from storage.ownership import foreign_folders, is_trial, taken
from storage.records.tables import artifacts, studies, trials
from storage.trials.images import IMAGE

UNFINISHED_SECONDS = 86_400.0
"""A file that is being written so long is not written any more."""

_AT_ONCE = 100
"""Blobs that are deleted in one transaction: workers wait for it."""


@dataclass(frozen=True)
class Garbage:
    """A file or folder that nothing needs.

    Attributes
    ----------
    kind
        ``copy``: of an artifact that is kept in the database.
    path
        Of an artifact in the database: its digest.
    blob
        Name of an artifact in the store of blobs.
    """

    kind: Literal["artifact", "copy", "image", "checkpoint", "trial", "partial"]
    path: Path
    bytes: int
    blob: str = ""


def find_garbage(database: Database, checkpoint: str) -> list[Garbage]:
    """What nothing in the records needs of the files in the home folder, and where artifacts are kept.

    Parameters
    ----------
    checkpoint
        Name of the checkpoint in the folder of a trial.

    Raises
    ------
    SettingsError
        if some of the files belong to the studies of another database.
    """
    if foreign := foreign_folders(database):
        raise taken(database, foreign[0])
    of_trials = _trials(database, checkpoint)
    whole = {each.path for each in of_trials}
    return [
        *of_trials,
        *_blobs(database),
        *_images(database),
        *(each for each in _half_written(database) if whole.isdisjoint(each.path.parents)),
    ]


def remove(database: Database, garbage: Collection[Garbage]) -> Iterator[Garbage]:
    """Delete what was found, and tell of each when it is gone; what is needed by now stays."""
    for each in garbage:
        if each.kind != "artifact":
            remove_child(each.path.parent, each.path.name)
            yield each
    blobs = {each.blob: each for each in garbage if each.kind == "artifact"}
    for digest in remove_blobs(database, blobs):
        yield blobs[digest]


def remove_blobs(database: Database, digests: Iterable[str]) -> Iterator[str]:
    """Delete those of the blobs (or half-written ones, by name) that no row names; answers which."""
    store = open_blobs(database)
    remaining = iter(digests)
    while some := list(itertools.islice(remaining, _AT_ONCE)):
        with database.writing() as connection:
            if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
                tables = ", ".join(table.name for table in NAMING)
                connection.execute(text(f"LOCK TABLE {tables} IN SHARE MODE"))
            needed = needed_digests(connection)
            gone = [digest for digest in some if digest not in needed]
            for digest in gone:
                store.delete(digest)
        yield from gone


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def _trials(database: Database, checkpoint: str) -> list[Garbage]:
    # Before the rows are read: a row is there before its folder.
    folders = sorted(path for path in (database.settings.home / "trials").glob("*/*") if is_trial(path))
    query = select(studies.c.name, trials.c.number, trials.c.state).join(
        trials, trials.c.study_id == studies.c.id
    )
    with database.reading() as connection:
        states = {
            database.settings.trial_folder(row.name, row.number): row.state
            for row in connection.execute(query)
        }
    found = []
    for folder in folders:
        if folder not in states:
            found.append(Garbage("trial", folder, size_of(folder)))
        elif states[folder] not in ("running", "paused"):
            of_attempts = sorted(path for path in folder.glob("*") if not path.is_symlink())
            checkpoints = [file for each in of_attempts for file in sorted(each.glob(f"*{checkpoint}"))]
            found += [Garbage("checkpoint", file, size_of(file)) for file in checkpoints]  # refused ones, too
    return found


def _blobs(database: Database) -> list[Garbage]:
    copies = FolderBlobs(database.settings.artifact_copies).stored()
    blobs = open_blobs(database).stored()
    with database.reading() as connection:
        needed = needed_digests(connection)
    return [*_of(blobs, "artifact", needed), *_of(copies, "copy", needed)]


def _of(blobs: list[StoredBlob], kind: Literal["artifact", "copy"], needed: set[str]) -> list[Garbage]:
    old = time.time() - UNFINISHED_SECONDS
    unneeded = (
        blob
        for blob in blobs
        if (blob.name not in needed if blob.written_at is None else blob.written_at < old)
    )
    found = (Garbage(kind, blob.path, blob.bytes, blob.name) for blob in unneeded)
    return sorted(found, key=lambda each: each.path)


def _half_written(database: Database) -> Iterator[Garbage]:
    """What killed processes left of files that were to appear whole, outside of the store of blobs."""
    settings, old = database.settings, time.time() - UNFINISHED_SECONDS
    for top in (settings.home / "trials", settings.home / "promotions", settings.optuna_artifacts):
        for folder, folders, files in os.walk(top):  # follows no link
            for name in (*folders, *files):
                path = Path(folder, name)
                if name.startswith(".") and name.endswith(PARTIAL):
                    with suppress(FileNotFoundError):  # renamed, or deleted, at this moment
                        if path.lstat().st_mtime < old:
                            yield Garbage("partial", path, size_of(path))


def _images(database: Database) -> list[Garbage]:
    """Copies for the Optuna dashboard; what people have uploaded there has other names."""
    images = sorted(database.settings.optuna_artifacts.glob("*"))
    query = select(artifacts.c.study_id, artifacts.c.number, artifacts.c.digest)
    with database.reading() as connection:
        needed = {(row.study_id, row.number, row.digest[:16]) for row in connection.execute(query)}
    return [
        Garbage("image", path, size_of(path))
        for path in images
        if (name := IMAGE.fullmatch(path.name))
        and (int(name["study"]), int(name["number"]), name["digest"]) not in needed
    ]


def remove_images(database: Database, study_id: int) -> None:
    """Delete the copies of a study's images for the Optuna dashboard."""
    for path in database.settings.optuna_artifacts.glob("*"):
        if (name := IMAGE.fullmatch(path.name)) and int(name["study"]) == study_id:
            path.unlink(missing_ok=True)
