"""The last checkpoint of each trial that runs, kept with the artifacts, where machines share no folder.

Each attempt keeps what its training has saved in the transaction of the metrics up to there, which its lease
guards: a worker that has lost the trial replaces nothing. There is one a trial: a new one replaces it, and
the end of the trial removes it. What a worker puts that dies, or is refused, before it names it is garbage.
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
    """A checkpoint that a training has saved, and the number of its last epoch."""

    file: Path
    epoch: int


class StoredCheckpoint:
    """Keeps a checkpoint, if there is one; the block calls :meth:`record` in a transaction, and commits."""

    def __init__(self, database: Database, saved: SavedCheckpoint | None) -> None:
        self._database = database
        self._saved = saved
        self._digest = ""
        self._replaced: str | None = None

    def __enter__(self) -> Self:
        if self._saved is not None:
            # The bytes first: a row never names what is not there.
            self._digest = open_blobs(self._database).put(self._saved.file)
        return self

    def record(self, connection: Connection, attempt: Row[Any]) -> None:
        """Let it be the checkpoint of the trial of an attempt, whose row is locked."""
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
        # Until the row was written nothing told storage.garbage that these bytes are needed.
        if not blobs.holds(self._digest):
            blobs.put(self._saved.file)
        if self._replaced is not None:  # it holds the times of its epochs: no other row names it
            blobs.delete(self._replaced)


def fetch(database: Database, study: Study, number: int, target: Path, after: int) -> int | None:
    """Bring the checkpoint of a trial to ``target`` if it goes further than what is there.

    Where its bytes are lost, that is said, and the trial goes on with what there is.

    Parameters
    ----------
    after
        Last epoch of the checkpoint at ``target``; 0: there is none.

    Returns
    -------
    Its last epoch; None: nothing was brought.
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
    """Remove the row of a trial's checkpoint; the digest of its blob, which is to be deleted then."""
    this = _is(study.id, number)
    dropped = connection.execute(delete(checkpoints).where(*this).returning(checkpoints.c.digest))
    digest: str | None = dropped.scalar()
    return digest


def _is(study_id: int, number: int) -> tuple[Any, ...]:
    return (checkpoints.c.study_id == study_id, checkpoints.c.number == number)
