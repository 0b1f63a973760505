"""A link that waits under the name of a half-written file is not written through."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

import storage.files
import trainer.files
from storage.blobs.folder import FolderBlobs
from storage.ownership import write_marker
from storage.settings import ServerAddresses, write_addresses
from trainer.data.fetch import fetch_ani1
from trainer.errors import OutputError
from trainer.progress import no_progress

FORESEEN = uuid.UUID(int=7)


def by_blobs(path: Path) -> None:
    source = path.with_name("source")
    source.write_bytes(b"new")
    blobs = FolderBlobs(path.with_name("store"))
    blobs.copy(blobs.put(source), path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "trainer": lambda path: trainer.files.write_by_rename(path, b"new"),
    "blobs": by_blobs,
    "mark": lambda path: write_marker(path, "new"),
    "addresses.json": lambda path: write_addresses(path.parent, ServerAddresses("", "", "")),
}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    victim = tmp_path / "authorized_keys"
    victim.write_text("a key")
    return victim


@pytest.mark.parametrize("name", WRITERS)
def test_a_link_under_a_name_that_can_be_foreseen_is_not_met(tmp_path: Path, victim: Path, name: str) -> None:
    path = tmp_path / "shared" / name
    path.parent.mkdir()
    for planted in (f".{name}.{os.getpid()}.partial", f"{name}.new", f"{name}.part", f".{name}.partial"):
        (path.parent / planted).symlink_to(victim)
    WRITERS[name](path)
    assert path.exists()
    assert victim.read_text() == "a key"


@pytest.mark.parametrize("name", WRITERS)
def test_nor_is_one_under_the_very_name(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(uuid, "uuid4", lambda: FORESEEN)
    path = tmp_path / "shared" / name
    path.parent.mkdir()
    assert storage.files.partial_name(path) == trainer.files.partial_name(path)
    storage.files.partial_name(path).symlink_to(victim)
    with pytest.raises(Exception, match=r"exists|cannot be written"):
        WRITERS[name](path)
    assert victim.read_text() == "a key"
    assert not path.exists()


@pytest.mark.parametrize("replacing", [storage.files.replacing, trainer.files.replacing])
def test_a_failure_leaves_nothing(tmp_path: Path, replacing: Callable[[Path], object]) -> None:
    with pytest.raises(KeyError), replacing(tmp_path / "file"):  # type: ignore[attr-defined]
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_download_goes_on_in_no_link(tmp_path: Path, victim: Path) -> None:
    import http.server
    import threading

    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "ANI1_release.tar.gz.part").symlink_to(victim)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"evil")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            fetch_ani1(
                tmp_path / "archive", no_progress, url=f"http://127.0.0.1:{server.server_address[1]}/x"
            )
    finally:
        server.shutdown()
        server.server_close()
    assert victim.read_text() == "a key"
