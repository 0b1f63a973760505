from __future__ import annotations

import hashlib
import re
import resource
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from trainer.data.fetch import ANI1_ARCHIVE, fetch_ani1
from trainer.errors import DataError, DownloadError, OutputError
from trainer.progress import no_progress

CONTENT = np.random.default_rng(0).bytes(3_000_000)


@dataclass
class FileServer:
    """One file under /file (and, redirected, under /moved), as a server of archives gives it."""

    content: bytes = CONTENT
    etag: str = '"one"'
    knows_ranges: bool = True
    status: int | None = None
    #: After how many bytes of each answer the connection breaks; answers beyond the list are whole.
    breaks: list[int] = field(default_factory=list)
    #: First byte asked for in each request, and bytes sent in answer.
    requests: list[int] = field(default_factory=list)
    sent: int = 0
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        if request.path == "/moved":
            request.send_response(302)
            request.send_header("Location", "/file")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        begin = self._first_byte(request)
        self.requests.append(begin)
        if self.status is not None or begin >= len(self.content):
            request.send_response(self.status or 416)
            request.send_header("Content-Range", f"bytes */{len(self.content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        body = self.content[begin:]
        request.send_response(206 if begin else 200)
        if begin:
            last = len(self.content) - 1
            request.send_header("Content-Range", f"bytes {begin}-{last}/{len(self.content)}")
        request.send_header("ETag", self.etag)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if self.breaks:
            body = body[: self.breaks.pop(0)]
            request.close_connection = True
        self.sent += len(body)
        request.wfile.write(body)

    def _first_byte(self, request: BaseHTTPRequestHandler) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        same = request.headers.get("If-Range", self.etag) == self.etag
        return int(asked[1]) if asked and same and self.knows_ranges else 0


@pytest.fixture
def server() -> Iterator[FileServer]:
    files = FileServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            files.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        files.url = f"http://127.0.0.1:{http.server_port}/file"
        yield files
        http.shutdown()
        thread.join(60)
        assert not thread.is_alive(), "the server does not end"


@pytest.fixture
def fetch(server: FileServer, tmp_path: Path) -> Callable[[], Path]:
    return lambda: fetch_ani1(tmp_path, no_progress, url=server.url, retry_seconds=0.0)


def refused(kind: type[Exception], fetch: Callable[[], Path]) -> str:
    """The message of the error, which is one line."""
    with pytest.raises(kind) as caught:
        fetch()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {f"{ANI1_ARCHIVE}.lock"}


def test_the_archive_and_its_digest(server: FileServer, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    server.url = server.url.replace("/file", "/moved")
    archive = fetch_ani1(tmp_path / "new" / "folder", lambda *step: seen.append(step), url=server.url)

    assert archive.read_bytes() == CONTENT
    recorded = archive.with_name(f"{ANI1_ARCHIVE}.sha256").read_text()
    assert recorded == f"{hashlib.sha256(CONTENT).hexdigest()}  {ANI1_ARCHIVE}\n"
    assert left_in(archive.parent) == {ANI1_ARCHIVE, f"{ANI1_ARCHIVE}.sha256"}
    downloads = [step for step in seen if step[0] == "download"]
    assert downloads[-1] == ("download", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in downloads] == sorted(done for _, done, _ in downloads)


def test_a_broken_connection_is_taken_up_where_it_broke(
    server: FileServer, fetch: Callable[[], Path]
) -> None:
    server.breaks = [1_200_000, 700_000]
    assert fetch().read_bytes() == CONTENT
    assert len(server.requests) == 3
    assert server.requests[1] == 1_200_000
    assert server.requests[2] == 1_900_000


def test_a_later_call_goes_on(server: FileServer, fetch: Callable[[], Path], tmp_path: Path) -> None:
    server.breaks = [1_200_000, *[0] * 10]
    message = refused(DownloadError, fetch)
    part = tmp_path / f"{ANI1_ARCHIVE}.part"
    assert f"{part} has what was downloaded so far: run this again to continue" in message
    begun = part.stat().st_size
    assert begun > 0

    server.breaks, server.requests, server.sent = [], [], 0
    assert fetch().read_bytes() == CONTENT
    assert server.requests == [begun]
    assert server.sent == len(CONTENT) - begun
    assert left_in(tmp_path) == {ANI1_ARCHIVE, f"{ANI1_ARCHIVE}.sha256"}


@pytest.mark.parametrize("new_size", [3_000_000, 500_000])
def test_another_file_on_the_server_is_fetched_from_its_start(
    new_size: int, server: FileServer, fetch: Callable[[], Path]
) -> None:
    server.breaks = [1_200_000, *[0] * 10]
    refused(DownloadError, fetch)
    server.breaks, server.content, server.etag = [], np.random.default_rng(1).bytes(new_size), '"two"'
    assert fetch().read_bytes() == server.content


@pytest.mark.parametrize("fault", ["no ranges", "no strong version"])
def test_a_server_that_cannot_resume_sends_all_again(
    fault: str, server: FileServer, fetch: Callable[[], Path]
) -> None:
    if fault == "no ranges":
        server.knows_ranges = False
    else:
        server.etag = 'W/"weak"'
    server.breaks = [1_200_000]
    assert fetch().read_bytes() == CONTENT
    assert server.requests == [0, 0]


@pytest.mark.parametrize("surplus", [0, 5])
def test_killed_between_the_last_byte_and_the_renaming(
    surplus: int, server: FileServer, fetch: Callable[[], Path], tmp_path: Path
) -> None:
    part = tmp_path / f"{ANI1_ARCHIVE}.part"
    part.write_bytes(CONTENT + b"x" * surplus)
    (tmp_path / f"{ANI1_ARCHIVE}.part.version").write_text(server.etag)
    assert fetch().read_bytes() == CONTENT
    assert server.sent == (len(CONTENT) if surplus else 0)


def test_a_complete_archive_needs_no_network(server: FileServer, fetch: Callable[[], Path]) -> None:
    fetch()
    server.status = 500
    assert fetch().read_bytes() == CONTENT


def test_a_changed_archive_is_refused(fetch: Callable[[], Path]) -> None:
    archive = fetch()
    archive.write_bytes(CONTENT[:-1] + b"x")
    message = refused(DataError, fetch)
    assert str(archive) in message
    assert "delete it to download it again" in message


def test_the_recorded_digest_holds_for_a_new_download(server: FileServer, fetch: Callable[[], Path]) -> None:
    fetch().unlink()
    server.content = CONTENT[::-1]
    assert "is not the recorded one" in refused(DataError, fetch)


def test_without_a_network(server: FileServer, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        url = f"http://127.0.0.1:{closed.server_port}/file"
    message = refused(DownloadError, lambda: fetch_ani1(tmp_path, no_progress, url=url))
    assert url in message
    assert "is there a network?" in message
    assert left_in(tmp_path) == set()


def test_a_refusal_of_the_server(server: FileServer, fetch: Callable[[], Path], tmp_path: Path) -> None:
    server.status = 404
    assert "404 Not Found" in refused(DownloadError, fetch)
    assert server.requests == [0]
    assert left_in(tmp_path) == set()


def test_two_downloads_into_one_folder(server: FileServer, tmp_path: Path) -> None:
    messages: list[str] = []

    def second(stage: str, done: int, total: int) -> None:
        if not messages:
            messages.append(refused(DownloadError, lambda: fetch_ani1(tmp_path, no_progress, url=server.url)))

    assert fetch_ani1(tmp_path, second, url=server.url).read_bytes() == CONTENT
    assert "another download into this folder is running" in messages[0]


@pytest.mark.parametrize("kind", ["read-only", "a file"])
def test_a_folder_that_cannot_be_written(kind: str, server: FileServer, tmp_path: Path) -> None:
    folder = Path("/proc/anitune")  # not even root can write there
    if kind == "a file":
        folder = tmp_path / "file"
        folder.touch()
    message = refused(OutputError, lambda: fetch_ani1(folder, no_progress, url=server.url))
    assert f"{folder}: cannot be written" in message
    assert server.requests == []


def test_a_full_disk(server: FileServer, fetch: Callable[[], Path], tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk. What fitted is kept for the next call."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, limits[1]))
    try:
        assert f"{tmp_path}: cannot be written" in refused(OutputError, fetch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ANI1_ARCHIVE not in left_in(tmp_path)
    assert fetch().read_bytes() == CONTENT
    assert server.requests[1] > 0
