"""Interface of blob stores, which keep the files of artifacts under the SHA-256 digest of their content."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage.errors import BlobDamagedError, BlobMissingError, BlobWriteError
from storage.files import replacing

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredBlob:
    """A blob, or an unfinished file of one.

    Attributes
    ----------
    name
        The digest; for an unfinished file, a name that :meth:`BlobStore.delete` accepts.
    path
        Path of the file; in a database, the name of the blob.
    written_at
        Last write to an unfinished file, s since 1970; None if it is finished.
    """

    name: str
    path: Path
    bytes: int
    written_at: float | None = None


class BlobStore(ABC):
    """Blobs named by their digests. A blob never changes, so many processes may write the same one."""

    @abstractmethod
    def put(self, file: Path) -> str:
        """Store a copy of ``file`` and return its digest, which names it.

        The copy is durable when this returns, so that a record written afterwards never names a blob that a
        power cut destroyed. A damaged blob with the same digest is replaced.

        Raises
        ------
        BlobWriteError
            if the file cannot be read or the copy cannot be written; no part of it stays.
        """

    @abstractmethod
    def holds(self, digest: str) -> bool:
        """Whether there is such a blob."""

    @abstractmethod
    def read(self, digest: str) -> Iterator[bytes]:
        """Yield the content in pieces.

        Raises
        ------
        BlobMissingError
            at the first piece, if there is no such blob.
        """

    @abstractmethod
    def path(self, digest: str) -> Path:
        """A file on this machine with the content; it must not be changed.

        Raises
        ------
        BlobMissingError
            if there is no such blob.
        """

    @contextmanager
    def lend(self, digest: str) -> Iterator[Path]:
        """A file on this machine with verified content, which may disappear after the block.

        Raises
        ------
        BlobMissingError, BlobDamagedError
            as :meth:`verify`.
        BlobWriteError
            if it cannot be copied to this machine.
        """
        self.verify(digest)
        yield self.path(digest)

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete a blob or an unfinished file; a process that has the file open can read it to the end."""

    @abstractmethod
    def stored(self) -> list[StoredBlob]:
        """All blobs and unfinished files."""

    def verify(self, digest: str) -> None:
        """Read the whole blob and compare it with its name.

        Raises
        ------
        BlobMissingError
            if there is no such blob.
        BlobDamagedError
            if its content has another digest.
        """
        found = hashlib.sha256()
        for piece in self.read(digest):
            found.update(piece)
        _compare(digest, found.hexdigest())

    def copy(self, digest: str, target: Path) -> None:
        """Copy the content to ``target``, replacing an existing file.

        Raises
        ------
        BlobMissingError, BlobDamagedError
            as :meth:`verify`; an existing file at ``target`` stays.
        BlobWriteError
            if it cannot be written.
        """
        found = hashlib.sha256()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as file:
                for piece in self.read(digest):
                    found.update(piece)
                    file.write(piece)
                _compare(digest, found.hexdigest())
        except OSError as error:
            raise BlobWriteError(
                f"{target}: cannot be written: {error.strerror};"
                " free some space, or correct the permissions of the folder"
            ) from error


def is_digest(name: str) -> bool:
    """Whether a name is a SHA-256 digest, and so can name a blob."""
    return _DIGEST.fullmatch(name) is not None


def checked_digest(digest: str) -> str:
    """Validate a digest from a database row and return it: as a path it must not lead out of a store.

    Raises
    ------
    BlobMissingError
        if it is not a SHA-256 digest.
    """
    if not is_digest(digest):
        raise BlobMissingError(f"{digest!r} is not a SHA-256 digest")
    return digest


def _compare(digest: str, found: str) -> None:
    if found != digest:
        raise BlobDamagedError(f"blob {digest}: damaged, its content has the digest {found}")
