"""Secrets of the local servers: each start of a server makes a new one, in a file of the home folder.

The file is named after the machine, since machines may share a home folder, and the server's port. Only the
user who started the server can read it, and it is trusted only if that user owns it. It is read again for
each request, so that a process that outlives a restart of the server finds the new secret.
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
    """The file with the secret of the server at a port of this machine."""
    return home / "tokens" / socket.gethostname() / str(port)


def make_token(home: Path, *ports: int) -> str:
    """Make one secret for the servers that start together, and write it for each of their ports."""
    token = secrets.token_urlsafe(_BYTES)
    for port in ports:
        write_private(token_file(home, port), token)
    return token


def write_private(file: Path, text: str) -> None:
    """Write a file that only this user can read; users who share a home folder each have their own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp makes a new file that only its owner can read from the start.
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".new-")
    with os.fdopen(descriptor, "w") as new:
        new.write(text)
    Path(name).replace(file)


def local_token_file(home: Path, url: str) -> Path | None:
    """The file with the secret of the server at ``url``, if this user started it here, for this home."""
    port = local_port(url)
    file = token_file(home, port) if port is not None else None
    return file if file is not None and _read_private(file) is not None else None


def read_token(home: Path, url: str) -> str | None:
    """The secret of the server at ``url``, under the same conditions as :func:`local_token_file`."""
    port = local_port(url)
    return _read_private(token_file(home, port)) if port is not None else None


def _read_private(file: Path) -> str | None:
    """The text of a file that this user owns and nobody else can access; None for any other file."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(descriptor) as opened:
        status = os.fstat(descriptor)
        private = status.st_uid == os.geteuid() and not status.st_mode & 0o077
        return opened.read() if private else None


def local_port(url: str) -> int | None:
    """The port in the URL of an HTTP server on this machine; None for any other URL."""
    try:
        address = urlsplit(url)
        local = address.scheme == "http" and is_loopback(address.hostname or "")
        return address.port if local else None
    except ValueError:
        return None


def remove_token(home: Path, port: int) -> None:
    """Delete the secret of a server that was stopped."""
    with suppress(FileNotFoundError):
        token_file(home, port).unlink()


def is_loopback(host: str) -> bool:
    """Whether a host name or address is a loopback one, which no other machine can reach."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
