"""Download of the official ANI-1 archive; it can be resumed, and its digest is recorded and checked."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from pathlib import Path

import httpx
from filelock import FileLock, Timeout
from tenacity import Retrying, retry_if_exception_type, wait_exponential

from trainer.errors import DataError, DownloadError
from trainer.files import cannot_be_written, put_in_place, write_by_rename
from trainer.progress import Progress

#: figshare collection doi 10.6084/m9.figshare.c.3846712, about 4.6 GB.
ANI1_URL = "https://ndownloader.figshare.com/files/9057631"
ANI1_ARCHIVE = "ANI1_release.tar.gz"

_CHUNK = 1 << 20
_ATTEMPTS = 5


def fetch_ani1(to: Path, progress: Progress, *, url: str = ANI1_URL, retry_seconds: float = 1.0) -> Path:
    """Download the ANI-1 archive into the folder ``to``, or check the one that is there.

    An interrupted download continues where it stopped, also in a later call, from the ``.part`` file.
    The SHA-256 of the finished archive is written beside it on first use and compared from then on.

    Parameters
    ----------
    progress : called with the bytes done and the total
    retry_seconds : wait before the second attempt; it doubles with each further attempt

    Raises
    ------
    DownloadError
        if the server cannot be reached or refuses; the bytes received so far are kept for the next call.
    DataError
        if the digest of the archive differs from the recorded one.
    OutputError
        if ``to`` cannot be written.
    """
    archive = to / ANI1_ARCHIVE
    try:
        to.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(FileLock(to / f"{ANI1_ARCHIVE}.lock", timeout=0))
            except Timeout:
                raise DownloadError(f"{to}: another download into this folder is running") from None
            if not archive.exists():
                _download(archive, url, progress, retry_seconds)
            _check_digest(archive, progress)
    except OSError as error:
        raise cannot_be_written(to, error) from error
    return archive


def _download(archive: Path, url: str, progress: Progress, retry_seconds: float) -> None:
    part = archive.with_name(f"{archive.name}.part")
    attempts = Retrying(
        retry=retry_if_exception_type(httpx.TransportError),
        # Without a single byte received there is probably no network, so retrying is pointless.
        stop=lambda attempt: attempt.attempt_number >= _ATTEMPTS or not part.exists(),
        wait=wait_exponential(multiplier=retry_seconds),
        reraise=True,
    )
    try:
        attempts(_continue_download, part, url, progress)
    except httpx.HTTPStatusError as error:
        raise DownloadError(
            f"{url}: the server answers {error.response.status_code} {error.response.reason_phrase}; "
            "see https://doi.org/10.6084/m9.figshare.c.3846712"
        ) from error
    except httpx.HTTPError as error:
        kept = (
            f"{part} has what was downloaded so far: run this again to continue"
            if part.exists()
            else "is there a network?"
        )
        raise DownloadError(f"{url}: cannot be downloaded ({error}); {kept}") from error
    put_in_place(part, archive)
    _validator_file(part).unlink(missing_ok=True)


def _continue_download(part: Path, url: str, progress: Progress) -> None:
    """Append the missing bytes to ``part``, or start over if the file on the server has changed."""
    begun = part.stat().st_size if part.exists() else 0
    validator = _validator_file(part)
    headers = {"Accept-Encoding": "identity"}
    if begun and (version := validator.read_text() if validator.exists() else ""):
        headers |= {"Range": f"bytes={begun}-", "If-Range": version}
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=30.0) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            # Nothing is left to send: the last call ended between the last byte and the renaming.
            if response.headers.get("Content-Range") != f"bytes */{begun}":
                part.unlink()
                _continue_download(part, url, progress)
            return
        response.raise_for_status()
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
        done = begun if resumed else 0
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {begun}-"):
            raise DownloadError(f"{url}: the server sends another range of bytes than was requested")
        total = done + int(response.headers.get("Content-Length", 0))
        with open(part, "ab" if resumed else "wb", opener=_open_no_link) as file:
            # Only now has the content of an earlier version been removed from the file.
            write_by_rename(validator, _version(response).encode())
            for chunk in response.iter_bytes():
                file.write(chunk)
                done += len(chunk)
                progress("download", done, max(done, total))


def _open_no_link(path: str, flags: int) -> int:
    """Open without following links: the name is fixed, to allow resuming, so somebody could plant a link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _version(response: httpx.Response) -> str:
    """Return the validator for ``If-Range``, which may not be a weak ETag (RFC 9110, section 13.1.5)."""
    tag: str = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _validator_file(part: Path) -> Path:
    """Return the path of the file that stores the server's version of the archive, for ``If-Range``."""
    return part.with_name(f"{part.name}.version")


def _check_digest(archive: Path, progress: Progress) -> None:
    record = archive.with_name(f"{archive.name}.sha256")
    found = _digest(archive, progress)
    if not record.exists():
        # In the format of sha256sum, which can check it too.
        write_by_rename(record, f"{found}  {archive.name}\n".encode())
    elif (recorded := record.read_text().split()[0]) != found:
        raise DataError(
            f"{archive}: its SHA-256 {found[:12]}... is not the recorded one, {recorded[:12]}...: "
            "it has changed or is damaged; delete it to download it again"
        )


def _digest(path: Path, progress: Progress) -> str:
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress("checksum", done, total)
    return digest.hexdigest()
