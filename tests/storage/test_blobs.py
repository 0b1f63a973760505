"""What every store of blobs promises, and what a folder and a database promise beyond that."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from storage.blobs.folder import FolderBlobs
from storage.blobs.in_database import PART, DatabaseBlobs
from storage.blobs.store import BlobStore
from storage.database import open_database
from storage.errors import BlobDamagedError, BlobMissingError, BlobWriteError
from storage.records.tables import blob_parts
from storage.settings import Settings


@pytest.fixture(scope="module")
def both(
    make_postgresql_database: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, BlobStore]]:
    """A store of each kind, for all tests: none deletes what it has not put."""
    folder = tmp_path_factory.mktemp("stores")
    url = make_postgresql_database()
    settings = Settings(folder / "home", url, f"sqlite:///{folder / 'mlflow.db'}", "database")
    with open_database(settings) as database:
        yield {"folder": FolderBlobs(folder / "blobs"), "database": DatabaseBlobs(database)}


@pytest.fixture(params=["folder", "database"])
def store(request: pytest.FixtureRequest, both: dict[str, BlobStore]) -> BlobStore:
    return both[request.param]


@pytest.fixture
def folder_store(tmp_path: Path) -> FolderBlobs:
    return FolderBlobs(tmp_path / "blobs")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "loss.png"
    file.write_bytes(b"a picture")
    return file


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"a\nb\r\n\\x00\xff", os.urandom(PART), os.urandom(2 * PART + 17)],
    ids=["empty", "zero", "escapes", "one part", "three parts"],
)
def test_a_blob_is_named_by_its_sha256_and_keeps_its_bytes(
    store: BlobStore, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "in").write_bytes(content)
    digest = store.put(tmp_path / "in")

    assert digest == hashlib.sha256(content).hexdigest()
    assert store.holds(digest)
    assert store.path(digest).read_bytes() == content
    assert b"".join(store.read(digest)) == content
    store.verify(digest)
    (found,) = [blob for blob in store.stored() if blob.name == digest]
    assert (found.bytes, found.written_at) == (len(content), None)


def test_what_happens_to_the_file_later_does_not_change_the_blob(store: BlobStore, file: Path) -> None:
    digest = store.put(file)
    file.write_bytes(b"another picture")
    store.verify(digest)
    assert store.path(digest).read_bytes() == b"a picture"


def test_equal_content_is_kept_once_also_when_many_put_it_together(store: BlobStore, tmp_path: Path) -> None:
    content = os.urandom(1000)
    (tmp_path / "model").write_bytes(content)
    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(store.put, [tmp_path / "model"] * 40))
    (digest,) = digests
    store.verify(digest)
    assert [blob.bytes for blob in store.stored() if blob.name == digest] == [1000]


def test_a_deleted_blob_is_gone_and_can_be_put_again(store: BlobStore, file: Path) -> None:
    digest = store.put(file)
    store.path(digest)
    store.delete(digest)
    assert not store.holds(digest)
    for use in (store.path, store.verify):
        with pytest.raises(BlobMissingError, match=digest):
            use(digest)
    store.delete(digest)
    assert store.put(file) == digest
    store.verify(digest)


def test_a_copy_replaces_what_is_there_or_changes_nothing(store: BlobStore, file: Path) -> None:
    digest = store.put(file)
    target = file.with_name("new") / "copy"
    store.copy(digest, target)
    assert target.read_bytes() == b"a picture"
    target.write_bytes(b"an older one")
    with pytest.raises(BlobMissingError):
        store.copy("0" * 64, target)
    assert files_below(target.parent) == [target]
    assert target.read_bytes() == b"an older one"
    store.copy(digest, target)
    assert target.read_bytes() == b"a picture"


@pytest.mark.parametrize("digest", ["../../etc/passwd", "", "0" * 63, "Z" * 64, "/etc/passwd"])
def test_a_digest_never_leads_out_of_the_store(store: BlobStore, digest: str) -> None:
    for use in (store.path, store.holds, store.verify):
        with pytest.raises(BlobMissingError, match="SHA-256"):
            use(digest)


def test_a_file_that_is_not_there_leaves_nothing_behind(store: BlobStore, tmp_path: Path) -> None:
    before = sorted(blob.name for blob in store.stored())
    with pytest.raises(BlobWriteError, match=r"gone\.png.*No such file"):
        store.put(tmp_path / "gone.png")
    assert sorted(blob.name for blob in store.stored()) == before


def test_damage_in_a_folder_is_noticed_and_repaired_by_the_next_put(
    folder_store: FolderBlobs, file: Path
) -> None:
    digest = folder_store.put(file)
    blob = folder_store.path(digest)
    blob.chmod(0o644)
    blob.write_bytes(b"a pictura")

    with pytest.raises(BlobDamagedError, match="damaged"):
        folder_store.verify(digest)
    with pytest.raises(BlobDamagedError, match="damaged"):
        folder_store.copy(digest, file)
    assert file.read_bytes() == b"a picture"
    assert folder_store.put(file) == digest
    folder_store.verify(digest)


def test_a_full_disk_says_so_and_leaves_nothing_behind(
    folder_store: FolderBlobs, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BlobWriteError, match=r"loss\.png.*No space left on device; free some space"):
        folder_store.put(file)
    assert files_below(folder_store.root) == []


def test_a_place_that_cannot_be_a_folder_says_so(tmp_path: Path, file: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(BlobWriteError, match="taken"):
        FolderBlobs(tmp_path / "taken").put(file)


def test_damage_in_a_database_or_its_copies_is_noticed_and_repaired(
    both: dict[str, BlobStore], file: Path
) -> None:
    store = both["database"]
    assert isinstance(store, DatabaseBlobs)
    file.write_bytes(b"a picture that is damaged")
    digest = store.put(file)
    copy = store.path(digest)
    copy.write_bytes(b"something else")
    assert store.path(digest).read_bytes() == file.read_bytes()

    database = store._database
    with database.writing() as connection:
        connection.execute(update(blob_parts).where(blob_parts.c.digest == digest).values(content=b"b"))
    with pytest.raises(BlobDamagedError, match="damaged"):
        store.verify(digest)
    assert store.path(digest).read_bytes() == file.read_bytes()  # the copy is intact
    assert store.put(file) == digest
    store.verify(digest)
    with database.reading() as connection:
        parts = select(func.count()).where(blob_parts.c.digest == digest)
        assert connection.execute(parts).scalar_one() == 1


def test_a_file_that_changes_while_it_is_put_is_not_kept(
    both: dict[str, BlobStore], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = both["database"]
    file.write_bytes(b"the first content")
    first = hashlib.sha256(b"the first content").hexdigest()

    def digest_and_write(source: object, name: str) -> hashlib._Hash:
        file.write_bytes(b"the other content")
        return hashlib.sha256(b"the first content")

    monkeypatch.setattr(hashlib, "file_digest", digest_and_write)
    with pytest.raises(BlobWriteError, match="changed"):
        store.put(file)
    assert not store.holds(first)
