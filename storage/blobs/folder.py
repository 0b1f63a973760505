"""Blob store in a folder."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from storage.blobs.store import BlobStore, StoredBlob, checked_digest, is_digest
from storage.confined import child, remove_child
from storage.errors import BlobMissingError, BlobWriteError, OutsideFolderError
from storage.files import PARTIAL

_CHUNK = 1 << 20  # bytes
_INCOMING = ".incoming-"
_HALF_WRITTEN = re.compile(rf"{re.escape(_INCOMING)}[^/]+|[0-9a-f]{{2}}/\.[^/]+{re.escape(PARTIAL)}")


class FolderBlobs(BlobStore):
    """Blobs as files of a folder, each named by its digest.

    Any number of processes may write the same blob: each writes its own file and renames it, so the last one
    replaces equal bytes by equal bytes.

    Parameters
    ----------
    root
        The folder. The first blob creates it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, file: Path) -> str:
        try:
            with file.open("rb") as source, self._incoming() as copy:
                digest = _copy_and_hash(source, copy)
                target = self.place(digest)
                target.parent.mkdir(exist_ok=True)
                Path(copy.name).chmod(0o444)
                Path(copy.name).replace(target)
            _flush_folder(target.parent)
        except OSError as error:
            raise BlobWriteError(
                f"{file}: cannot be copied to {self.root}: {error.strerror};"
                " free some space, or correct the permissions of the folder"
            ) from error
        return digest

    def holds(self, digest: str) -> bool:
        return self.place(digest).is_file()

    def read(self, digest: str) -> Iterator[bytes]:
        with self.path(digest).open("rb") as file:
            while piece := file.read(_CHUNK):
                yield piece

    def path(self, digest: str) -> Path:
        place = self.place(digest)
        if not place.is_file():
            raise BlobMissingError(
                f"{place}: no such blob; it was deleted, or is on another machine"
                " (docs/launching.md: machines without a shared folder)"
            )
        return place

    def place(self, digest: str) -> Path:
        """The path of the blob, whether it exists or not."""
        checked_digest(digest)
        return self.root / digest[:2] / digest

    def delete(self, name: str) -> None:
        # The name may come from a record, which others can write, and the blob's folder may be a link.
        if is_digest(name) or _HALF_WRITTEN.fullmatch(name):
            folder, _, file = (f"{name[:2]}/{name}" if is_digest(name) else name).rpartition("/")
            with suppress(OutsideFolderError):
                remove_child(child(self.root, folder) if folder else self.root, file)

    def stored(self) -> list[StoredBlob]:
        folders = [path for path in self.root.glob("??") if not path.is_symlink()]
        half_written = [*self.root.glob(f"{_INCOMING}*")]
        half_written += [path for folder in folders for path in folder.glob(f".*{PARTIAL}")]
        finished = [path for folder in folders for path in folder.glob("*") if is_digest(path.name)]
        found = []
        for path in (*finished, *half_written):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # just renamed or deleted
            name, written = (
                (path.name, None)
                if is_digest(path.name)
                else (
                    str(path.relative_to(self.root)),
                    status.st_mtime,
                )
            )
            found.append(StoredBlob(name, path, status.st_size, written))
        return found

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
