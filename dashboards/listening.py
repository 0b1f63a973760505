"""Socket and secret of a server: how its starter hands them over.

The starter opens the socket and hands it over. Otherwise another account of the machine could take the port
between its choice and the moment when the server listens there, and would receive the secret.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dashboards.access import Access, allowed_names
from dashboards.errors import AccessError, AddressError

TOKEN_VARIABLE: Final = "ANITUNE_SERVER_TOKEN"
"""Variable that hands over the secret: no other account can read or change a process's environment."""

_SHORTEST: Final = 20


def listen(host: str, port: int = 0) -> socket.socket:
    """Open a socket that listens on an address of this machine; ``::`` means all addresses, IPv4 included.

    Parameters
    ----------
    port
        0: any free port.

    Raises
    ------
    OSError
        if the address is not this machine's, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server(
        (host, port), family=family, backlog=512, dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6()
    )


def listen_for(option: str, host: str, port: int | None) -> socket.socket:
    """Open a socket for the server whose port is chosen by the command-line option ``option``.

    Raises
    ------
    AddressError
        if the host is not this machine's, or the port is taken.
    """
    try:
        return listen(host, port or 0)
    except OSError as error:
        place = f"{host} port {port}" if port else host
        advice = f"choose another {option}" if port else "see --host"
        # create_server adds the address to the reason.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        raise AddressError(f"cannot listen on {place}: {reason}; {advice}") from None


def port_of(listener: socket.socket) -> int:
    """The port that a socket listens on."""
    port: int = listener.getsockname()[1]
    return port


def arguments_for(host: str, listener: socket.socket, names: Iterable[str] = ()) -> list[str]:
    """The command-line arguments of a server that is handed a socket."""
    return ["--host", host, "--fd", str(listener.fileno()), *(f"--allowed-host={name}" for name in names)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where a server listens and whom it lets in."""
    parser.add_argument("--host", default="127.0.0.1")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--port", type=int)
    place.add_argument("--fd", type=int, help="file descriptor of a socket that is already listening")
    parser.add_argument(
        "--token-file", type=Path, help=f"file with the secret; default: the variable {TOKEN_VARIABLE}"
    )
    parser.add_argument(
        "--allowed-host", action="append", default=[], help="another host name of this server"
    )


def given_listener(arguments: argparse.Namespace) -> socket.socket:
    """The socket that the arguments name, or a new one that listens as they say."""
    if arguments.fd is not None:
        return socket.socket(fileno=arguments.fd)
    return listen(arguments.host, arguments.port)


def given_access(arguments: argparse.Namespace) -> Access:
    """The access rules of a server from its arguments; see :func:`dashboards.access.allowed_names`.

    Raises
    ------
    AccessError
        if the secret is missing or too short.
    """
    file: Path | None = arguments.token_file
    token = (os.environ.get(TOKEN_VARIABLE, "") if file is None else file.read_text()).strip()
    if len(token) < _SHORTEST:
        raise AccessError(
            f"{file or TOKEN_VARIABLE}: must contain a secret of at least {_SHORTEST} characters"
        )
    return Access(token, allowed_names(arguments.host, arguments.allowed_host))
