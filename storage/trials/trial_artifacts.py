"""Artifacts of a trial: the bytes in the blob store, a row that names them, and a message for MLflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, bindparam, insert, select, update

from storage.blobs.names import checked_name
from storage.blobs.place import open_blobs
from storage.database import Database
from storage.records.keys import of_trial, trial_key
from storage.records.tables import artifacts
from storage.tracking.outbox import ArtifactMessage, enqueue

StoredArtifacts = Mapping[str, tuple[str, int]]
"""Digest and size (bytes) of files, by their paths within the run, such as ``plots/loss.png``."""


@contextmanager
def stored(database: Database, files: Mapping[str, Path]) -> Iterator[StoredArtifacts]:
    """Store the bytes of files; the block writes the rows that name them, and commits.

    Raises
    ------
    BlobWriteError
        if there is no room for them.
    ArtifactNameError
        if a path could lead out of the run's folder.
    """
    if not files:
        yield {}
        return
    blobs = open_blobs(database)
    # Store the bytes first, so that a row never names a missing file.
    kept = {checked_name(path): (blobs.put(file), file.stat().st_size) for path, file in files.items()}
    yield kept
    # Before the rows were written, storage.garbage may have deleted these bytes as unneeded.
    for path, (digest, _) in kept.items():
        if not blobs.holds(digest):
            blobs.put(files[path])


def record(connection: Connection, study_id: int, number: int, attempt: int, kept: StoredArtifacts) -> None:
    """Write the rows of files, replacing earlier ones, and enqueue messages for new or changed files."""
    ours = trial_key(study_id, number)
    known = {row.path: row.digest for row in connection.execute(_KNOWN, ours)}
    for path, (digest, size) in kept.items():
        if known.get(path) == digest:
            continue
        values = {"digest": digest, "size": size, "attempt": attempt}
        if path in known:
            connection.execute(_CHANGED, {**ours, "of_path": path, **values})
        else:
            key = {"study_id": study_id, "number": number, "path": path}
            connection.execute(_NEW, {**key, "position": len(known) + 1, **values})
        known[path] = digest
        enqueue(connection, study_id, number, [ArtifactMessage(path=path, digest=digest, size=size)])


_KNOWN: Final = select(artifacts.c.path, artifacts.c.digest).where(of_trial(artifacts))
_CHANGED: Final = update(artifacts).where(of_trial(artifacts), artifacts.c.path == bindparam("of_path"))
_NEW: Final = insert(artifacts)
