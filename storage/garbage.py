"""Finds and removes files that no record needs: blobs, images and remains of trials, also while workers run.

A worker stores a blob first and its row afterwards; in between the blob looks like garbage. So blobs are
deleted in a transaction that blocks writes of artifact rows, and a worker checks that the blob still exists
once it has written its row. Files that a killed process left half-written are deleted a day later.

The folder of a trial, and its checkpoint while the trial has not ended, belong to the trial's row, which
exists before them.
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
"""Age from which an unfinished file counts as abandoned, s."""

_AT_ONCE = 100
"""Number of blobs deleted in one transaction, for which workers wait."""


@dataclass(frozen=True)
class Garbage:
    """A file or folder that nothing needs.

    Attributes
    ----------
    kind
        ``copy`` is a file copy of an artifact that the database holds.
    path
        For an artifact in the database, its digest.
    blob
        Name of an artifact in the store of blobs.
    """

    kind: Literal["artifact", "copy", "image", "checkpoint", "trial", "partial"]
    path: Path
    bytes: int
    blob: str = ""


def find_garbage(database: Database, checkpoint: str) -> list[Garbage]:
    """Find the files in the home folder and the artifact store that no record needs.

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
    """Delete the garbage and yield each item once it is gone; an item that is needed by now stays."""
    for each in garbage:
        if each.kind != "artifact":
            remove_child(each.path.parent, each.path.name)
            yield each
    blobs = {each.blob: each for each in garbage if each.kind == "artifact"}
    for digest in remove_blobs(database, blobs):
        yield blobs[digest]


def remove_blobs(database: Database, digests: Iterable[str]) -> Iterator[str]:
    """Delete the blobs (or half-written ones, by name) that no row names; yield those deleted."""
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
    # List the folders before reading the rows: a row exists before its folder.
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
            found += [Garbage("checkpoint", file, size_of(file)) for file in checkpoints]  # rejected ones too
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
    """Files outside the blob store that killed processes left unfinished."""
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
    """Unneeded copies for the Optuna dashboard; files that people uploaded there have other names."""
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
