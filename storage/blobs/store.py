"""Files kept under the SHA-256 digest of their content: the bytes behind every artifact of a trial."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from storage.errors import BlobDamagedError, BlobMissingError, BlobWriteError

_CHUNK = 1 << 20  # bytes
_INCOMING = ".incoming-"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """A folder of files, each named by its digest.

    A blob never changes, so any number of processes may write the same one: each writes a file of its
    own and renames it, and whoever is last replaces equal bytes by equal bytes.

    Parameters
    ----------
    root
        The folder. It is made with the first blob.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, file: Path) -> str:
        """Keep a copy of ``file`` and return the digest that names it.

        The bytes are on the disk when this returns, so that a record written afterwards never names a
        blob that a power cut took.

        Raises
        ------
        BlobWriteError
            if the file cannot be read or the copy not written; no part of it stays.
        """
        try:
            with file.open("rb") as source, self._incoming() as copy:
                digest = _copy_and_hash(source, copy)
                target = self._place(digest)
                target.parent.mkdir(exist_ok=True)
                Path(copy.name).chmod(0o444)
                Path(copy.name).replace(target)
            _flush_folder(target.parent)
        except OSError as error:
            raise BlobWriteError(
                f"{file}: cannot be copied to {self.root}: {error.strerror};"
                " free some space, or correct the folder's rights"
            ) from error
        return digest

    def holds(self, digest: str) -> bool:
        """Whether there is such a blob."""
        return self._place(digest).is_file()

    def all(self) -> list[Path]:
        """The blobs, each named by its digest."""
        return [path for path in self.root.glob("??/*") if _DIGEST.fullmatch(path.name)]

    def unfinished(self) -> list[Path]:
        """What is being copied, or was when its process was killed."""
        return list(self.root.glob(f"{_INCOMING}*"))

    def path(self, digest: str) -> Path:
        """Where the bytes are, to be read only.

        Raises
        ------
        BlobMissingError
            if there is no such blob.
        """
        place = self._place(digest)
        if not place.is_file():
            raise BlobMissingError(
                f"{place}: no such blob; it was deleted, or belongs to another home folder"
            )
        return place

    def delete(self, name: str) -> None:
        """Delete a blob, or what is half-written; who reads it now reads it to the end."""
        place = self.root / name if name.startswith(_INCOMING) else self._place(name)
        place.unlink(missing_ok=True)

    def verify(self, digest: str) -> None:
        """Read the whole blob and compare it with its name.

        Raises
        ------
        BlobMissingError
            if there is no such blob.
        BlobDamagedError
            if its content has another digest.
        """
        place = self.path(digest)
        with place.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise BlobDamagedError(f"{place}: damaged, its content has the digest {found}")

    def _place(self, digest: str) -> Path:
        # A digest comes from a database row: it must never lead out of the root.
        if not _DIGEST.fullmatch(digest):
            raise BlobMissingError(f"{digest!r} is no SHA-256 digest")
        return self.root / digest[:2] / digest

    @contextmanager
    def _incoming(self) -> Iterator[IO[bytes]]:
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.root, prefix=_INCOMING, delete=False) as copy:
            try:
                yield copy
            finally:
                Path(copy.name).unlink(missing_ok=True)


def _copy_and_hash(source: IO[bytes], copy: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        copy.write(chunk)
    copy.flush()
    os.fsync(copy.fileno())
    return digest.hexdigest()


def _flush_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
