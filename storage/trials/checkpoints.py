"""Stores the last checkpoint of each running trial with the artifacts, where machines share no folder.

An attempt records a checkpoint in the same transaction as the metrics up to its epoch. The lease guards this
transaction, so a worker that has lost the trial replaces nothing. Each trial has one checkpoint: a new one
replaces it, and the end of the trial removes it. If a worker stores the bytes and then dies or is refused
before it writes their row, they are garbage.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Row, delete, insert, select, update

from storage.blobs.place import open_blobs
from storage.database import Database
from storage.errors import BlobDamagedError, BlobMissingError
from storage.records.tables import checkpoints
from storage.studies import Study

log = logging.getLogger("anitune")


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint file of a training, and the number of its last epoch."""

    file: Path
    epoch: int


class StoredCheckpoint:
    """Stores a checkpoint, if there is one; the block calls :meth:`record` in a transaction, and commits."""

    def __init__(self, database: Database, saved: SavedCheckpoint | None) -> None:
        self._database = database
        self._saved = saved
        self._digest = ""
        self._replaced: str | None = None

    def __enter__(self) -> Self:
        if self._saved is not None:
            # Store the bytes first, so that a row never names a missing blob.
            self._digest = open_blobs(self._database).put(self._saved.file)
        return self

    def record(self, connection: Connection, attempt: Row[Any]) -> None:
        """Make it the checkpoint of the attempt's trial; the row of the attempt must be locked."""
        if self._saved is None:
            return
        this = _is(attempt.study_id, attempt.number)
        known = connection.execute(select(checkpoints.c.digest).where(*this)).scalar()
        values = {
            "attempt": attempt.attempt,
            "epoch": self._saved.epoch,
            "digest": self._digest,
            "size": self._saved.file.stat().st_size,
        }
        if known is None:
            key = {"study_id": attempt.study_id, "number": attempt.number}
            connection.execute(insert(checkpoints).values(**key, **values))
        else:
            connection.execute(update(checkpoints).where(*this).values(values))
        self._replaced = known if known != self._digest else None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._saved is None or kind is not None:
            return
        blobs = open_blobs(self._database)
        # Before the row was written, storage.garbage may have deleted these bytes as unneeded.
        if not blobs.holds(self._digest):
            blobs.put(self._saved.file)
        if self._replaced is not None:  # it contains the times of its epochs, so no other row names it
            blobs.delete(self._replaced)


def fetch(database: Database, study: Study, number: int, target: Path, after: int) -> int | None:
    """Copy the stored checkpoint of a trial to ``target`` if it is later than the one there.

    If its bytes are lost, a warning is logged, and the trial continues with the file at ``target``.

    Parameters
    ----------
    after
        Last epoch of the checkpoint at ``target``; 0 if there is none.

    Returns
    -------
    Last epoch of the copied checkpoint; None if nothing was copied.
    """
    if not database.settings.artifacts_elsewhere:
        return None
    with database.reading() as connection:
        row = connection.execute(select(checkpoints).where(*_is(study.id, number))).one_or_none()
    if row is None or row.epoch <= after:
        return None
    try:
        open_blobs(database).copy(row.digest, target)
    except (BlobMissingError, BlobDamagedError) as error:
        log.warning("trial %d: its checkpoint of epoch %d is lost: %s", number, row.epoch, error)
        return None
    epoch: int = row.epoch
    return epoch


def drop(connection: Connection, study: Study, number: int) -> str | None:
    """Remove the row of a trial's checkpoint; return the digest of its blob, which the caller must delete."""
    this = _is(study.id, number)
    dropped = connection.execute(delete(checkpoints).where(*this).returning(checkpoints.c.digest))
    digest: str | None = dropped.scalar()
    return digest


def _is(study_id: int, number: int) -> tuple[Any, ...]:
    return (checkpoints.c.study_id == study_id, checkpoints.c.number == number)
