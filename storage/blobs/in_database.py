"""Blob store in the database of the records, which every worker can reach."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import delete, insert, select
from sqlalchemy.dialects import postgresql

from storage.blobs.folder import FolderBlobs
from storage.blobs.store import BlobStore, StoredBlob, checked_digest
from storage.database import Database
from storage.errors import BlobDamagedError, BlobMissingError, BlobWriteError
from storage.files import partial_name
from storage.records.tables import blob_parts, blobs, now

PART: Final = 4 << 20
"""Bytes per row: PostgreSQL's limit is 1 GB, and client and server hold a few copies of a row in memory."""


class DatabaseBlobs(BlobStore):
    """Blobs as rows of a PostgreSQL database; a requested file is copied into a folder of this machine."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._copies = FolderBlobs(database.settings.artifact_copies)

    def put(self, file: Path) -> str:
        try:
            with file.open("rb") as source:
                digest = hashlib.file_digest(source, "sha256").hexdigest()
                source.seek(0)
                pieces = iter(lambda: source.read(PART), b"")
                if self._write(digest, file.stat().st_size, pieces) != digest:
                    raise BlobWriteError(f"{file}: was changed while it was read; it is not stored")
        except OSError as error:
            raise BlobWriteError(f"{file}: cannot be read: {error.strerror}") from error
        return digest

    def _write(self, digest: str, size: int, pieces: Iterator[bytes]) -> str:
        """Write all rows, or none if the content has another digest; return the digest of the content."""
        found = hashlib.sha256()
        with self._database.plain_errors(), self._database.engine.connect() as connection:
            row = postgresql.insert(blobs).values(digest=digest, size=size, created_at=now())
            # The update locks the row, so that a second writer of the same blob waits for the first.
            known = row.on_conflict_do_update(index_elements=["digest"], set_={"size": size})
            connection.execute(known)
            connection.execute(delete(blob_parts).where(blob_parts.c.digest == digest))
            for part, content in enumerate(pieces):
                found.update(content)
                values = {"digest": digest, "part": part, "content": content}
                connection.execute(insert(blob_parts).values(values))
            if found.hexdigest() == digest:
                connection.commit()
        return found.hexdigest()

    def holds(self, digest: str) -> bool:
        with self._database.reading() as connection:
            query = select(blobs.c.digest).where(blobs.c.digest == checked_digest(digest))
            return connection.execute(query).first() is not None

    def read(self, digest: str) -> Iterator[bytes]:
        with self._database.reading() as connection:  # one snapshot, even if another process writes meanwhile
            query = select(blobs.c.digest).where(blobs.c.digest == checked_digest(digest))
            if connection.execute(query).first() is None:
                raise BlobMissingError(f"blob {digest}: the database does not have it; it was deleted")
            for part in itertools.count():
                this = (blob_parts.c.digest == digest, blob_parts.c.part == part)
                content = connection.execute(select(blob_parts.c.content).where(*this)).scalar()
                if content is None:
                    return
                yield content

    def path(self, digest: str) -> Path:
        try:
            self._copies.verify(digest)
        except (BlobMissingError, BlobDamagedError):
            self.copy(digest, self._copies.place(digest))
        return self._copies.path(digest)

    @contextmanager
    def lend(self, digest: str) -> Iterator[Path]:
        # Not the permanent copy, which others may read. Its name marks it as unfinished, and so as garbage.
        lent = partial_name(self._copies.place(digest))
        self.copy(digest, lent)
        try:
            yield lent
        finally:
            lent.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        with self._database.writing() as connection:
            connection.execute(delete(blobs).where(blobs.c.digest == name))  # its parts go with it
        self._copies.delete(name)

    def stored(self) -> list[StoredBlob]:
        with self._database.reading() as connection:
            rows = connection.execute(select(blobs.c.digest, blobs.c.size)).all()
        return [StoredBlob(row.digest, Path(row.digest), row.size) for row in rows]
