import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.blobs.store import BlobStore
from storage.errors import BlobDamagedError, BlobMissingError, BlobWriteError


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "loss.png"
    file.write_bytes(b"a picture")
    return file


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@given(content=st.binary(max_size=1000))
def test_a_blob_is_named_by_its_sha256_and_keeps_its_bytes(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("blobs")
    (folder / "in").write_bytes(content)
    store = BlobStore(folder / "out")

    digest = store.put(folder / "in")

    assert digest == hashlib.sha256(content).hexdigest()
    assert store.path(digest).read_bytes() == content
    store.verify(digest)


def test_a_file_larger_than_one_read_is_kept_whole(store: BlobStore, tmp_path: Path) -> None:
    content = os.urandom(3 * 2**20 + 17)
    (tmp_path / "model").write_bytes(content)
    assert store.path(store.put(tmp_path / "model")).read_bytes() == content


def test_what_happens_to_the_file_later_does_not_change_the_blob(store: BlobStore, file: Path) -> None:
    digest = store.put(file)
    file.write_bytes(b"another picture")
    store.verify(digest)
    assert store.path(digest).read_bytes() == b"a picture"


def test_equal_content_is_kept_once_also_when_many_put_it_together(store: BlobStore, file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(store.put, [file] * 40))
    assert len(digests) == 1
    assert files_below(store.root) == [store.path(digests.pop())]


def test_damage_is_noticed_and_mended_by_the_next_put(store: BlobStore, file: Path) -> None:
    digest = store.put(file)
    blob = store.path(digest)
    blob.chmod(0o644)
    blob.write_bytes(b"a pictura")

    with pytest.raises(BlobDamagedError, match="damaged"):
        store.verify(digest)
    assert store.put(file) == digest
    store.verify(digest)


def test_a_missing_blob_is_named(store: BlobStore) -> None:
    with pytest.raises(BlobMissingError, match="no such blob"):
        store.path("0" * 64)


@pytest.mark.parametrize("digest", ["../../etc/passwd", "", "0" * 63, "Z" * 64, "/etc/passwd"])
def test_a_digest_never_leads_out_of_the_store(store: BlobStore, digest: str) -> None:
    with pytest.raises(BlobMissingError, match="SHA-256"):
        store.path(digest)


def test_a_file_that_is_not_there_leaves_nothing_behind(store: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(BlobWriteError, match=r"gone\.png.*No such file"):
        store.put(tmp_path / "gone.png")
    assert files_below(store.root) == []


def test_a_full_disk_says_so_and_leaves_nothing_behind(
    store: BlobStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BlobWriteError, match=r"loss\.png.*No space left on device; free some space"):
        store.put(file)
    assert files_below(store.root) == []


def test_a_place_that_cannot_be_a_folder_says_so(tmp_path: Path, file: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(BlobWriteError, match="taken"):
        BlobStore(tmp_path / "taken").put(file)
