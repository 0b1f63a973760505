"""Secrets of the servers of this machine: each start of a server has one, in a file of its home folder.

The file is named by the machine and the server's port: machines may share a home folder. It can be read by
nobody but the user who started the server, is believed only if it is theirs, and is read again for each
request, so that a process that outlives a restart of the server finds the new secret.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

_BYTES = 24


def token_file(home: Path, port: int) -> Path:
    """Where the secret of the server at a port of this machine is kept."""
    return home / "tokens" / socket.gethostname() / str(port)


def make_token(home: Path, *ports: int) -> str:
    """Make the secret of a start, of a server for each of the ports."""
    token = secrets.token_urlsafe(_BYTES)
    for port in ports:
        write_private(token_file(home, port), token)
    return token


def write_private(file: Path, text: str) -> None:
    """Write a file that nobody but this user can read; users who share a home each have their own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp: a new file, open to its owner alone from the start.
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".new-")
    with os.fdopen(descriptor, "w") as new:
        new.write(text)
    Path(name).replace(file)


def local_token_file(home: Path, url: str) -> Path | None:
    """The file with the secret of the server at ``url``, if this user started that here, in this home."""
    port = local_port(url)
    file = token_file(home, port) if port is not None else None
    return file if file is not None and _read_private(file) is not None else None


def read_token(home: Path, url: str) -> str | None:
    """The secret in that file."""
    port = local_port(url)
    return _read_private(token_file(home, port)) if port is not None else None


def _read_private(file: Path) -> str | None:
    """The text of a file that this user wrote for nobody else; None of any other, and where there is none."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(descriptor) as opened:
        status = os.fstat(descriptor)
        private = status.st_uid == os.geteuid() and not status.st_mode & 0o077
        return opened.read() if private else None


def local_port(url: str) -> int | None:
    """The port of a server of this machine that speaks HTTP; None if ``url`` is not of one."""
    try:
        address = urlsplit(url)
        local = address.scheme == "http" and is_loopback(address.hostname or "")
        return address.port if local else None
    except ValueError:
        return None


def remove_token(home: Path, port: int) -> None:
    """Forget the secret of a server that was stopped."""
    with suppress(FileNotFoundError):
        token_file(home, port).unlink()


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own, which no other machine reaches."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
