"""Files kept under the SHA-256 digest of their content: the bytes behind every artifact of a trial."""

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
    """A blob, or what is half-written.

    Attributes
    ----------
    name
        The digest; of what is half-written, a name that :meth:`BlobStore.delete` knows.
    path
        Where it is; in a database, its name.
    written_at
        When what is half-written last grew, s since 1970; None: it is finished.
    """

    name: str
    path: Path
    bytes: int
    written_at: float | None = None


class BlobStore(ABC):
    """Blobs, each named by its digest. One never changes, so any number of processes may write the same."""

    @abstractmethod
    def put(self, file: Path) -> str:
        """Keep a copy of ``file`` and return the digest that names it.

        It is durable when this returns, so that a record written afterwards never names a blob that a power
        cut took. A damaged one of the same digest is replaced.

        Raises
        ------
        BlobWriteError
            if the file cannot be read or the copy not written; no part of it stays.
        """

    @abstractmethod
    def holds(self, digest: str) -> bool:
        """Whether there is such a blob."""

    @abstractmethod
    def read(self, digest: str) -> Iterator[bytes]:
        """The content, piece by piece.

        Raises
        ------
        BlobMissingError
            at the first piece, if there is no such blob.
        """

    @abstractmethod
    def path(self, digest: str) -> Path:
        """A file of this machine with the content, to be read only.

        Raises
        ------
        BlobMissingError
            if there is no such blob.
        """

    @contextmanager
    def lend(self, digest: str) -> Iterator[Path]:
        """A file of this machine with exactly that content, as long as the block lasts.

        Raises
        ------
        BlobMissingError, BlobDamagedError
            as :meth:`verify`.
        BlobWriteError
            if it must be copied to this machine, and cannot.
        """
        self.verify(digest)
        yield self.path(digest)

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete a blob, or what is half-written; who reads its file now reads it to the end."""

    @abstractmethod
    def stored(self) -> list[StoredBlob]:
        """All that there is."""

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
        """Let there be a file with the content at ``target``, which replaces what is there.

        Raises
        ------
        BlobMissingError, BlobDamagedError
            as :meth:`verify`; what is at ``target`` stays.
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
                " free some space, or correct the folder's rights"
            ) from error


def is_digest(name: str) -> bool:
    """Whether it can name a blob."""
    return _DIGEST.fullmatch(name) is not None


def checked_digest(digest: str) -> str:
    """The digest itself. It comes from a database row: it must never lead out of a store.

    Raises
    ------
    BlobMissingError
        if it is none.
    """
    if not is_digest(digest):
        raise BlobMissingError(f"{digest!r} is no SHA-256 digest")
    return digest


def _compare(digest: str, found: str) -> None:
    if found != digest:
        raise BlobDamagedError(f"blob {digest}: damaged, its content has the digest {found}")
