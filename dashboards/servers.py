"""Runs our page, the real MLflow UI and the real Optuna dashboard on the databases of the settings."""

from __future__ import annotations

import html
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from dashboards import links
from dashboards.access import ANY_ADDRESS, HEALTH, with_token
from dashboards.environment import mlflow_environment, optuna_environment
from dashboards.errors import AddressError, ServerEndedError
from dashboards.listening import arguments_for, listen_for, port_of
from dashboards.parent_watchdog import GRACE_SECONDS
from storage.settings import Settings
from storage.tokens import is_loopback, make_token, read_token, remove_token, token_file, write_private
from storage.tracking.mlflow_runs import alone_with
from storage.tracking.mlflow_tables import check_tables, follow_folder

logger = logging.getLogger("anitune")

START_SECONDS = 180.0
"""Longest wait for an answer. MLflow needs about 20 s on two cores, and more when it creates its tables."""

POLL_SECONDS = 0.25


@dataclass(frozen=True)
class DashboardAddresses:
    """Addresses of the servers, without a slash at the end; our page is on the Optuna dashboard's.

    Attributes
    ----------
    mlflow_token, optuna_token
        The secrets of these starts; None for an MLflow that was not started in this home.
    """

    mlflow: str
    optuna: str
    mlflow_token: str | None
    optuna_token: str

    def link(self, page: str) -> str:
        """The address of one of their pages as a link that also signs in."""
        of_optuna = page.startswith(f"{self.optuna}/")
        return with_token(page, self.optuna_token if of_optuna else self.mlflow_token)


@dataclass(frozen=True)
class _Server:
    name: str
    process: subprocess.Popen[bytes]
    health: str
    log: Path
    log_start: int

    def check(self) -> None:
        code = self.process.poll()
        if code is not None:
            raise ServerEndedError(
                f"{self.name} has ended unexpectedly (exit code {code}): {self._last_line()} (log:"
                f" {self.log})"
            )

    def _last_line(self) -> str:
        with self.log.open("rb") as file:
            file.seek(self.log_start)
            lines = file.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")

    def answers(self) -> bool:
        # Without the proxy that the environment may name: this is an address of this machine.
        return answers(self.health, trust_env=False)

    def stop(self) -> None:
        """End the server's process group, children included."""
        for signal_, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, 1.0)):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal_)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                self.process.poll()
                if not self._group_is_running():
                    return
                time.sleep(0.05)

    def _group_is_running(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


class Dashboards:
    """The running servers; made by :func:`run_dashboards`."""

    def __init__(self, addresses: DashboardAddresses, servers: tuple[_Server, ...], opener: Path) -> None:
        self.addresses = addresses
        self._servers = servers
        self._opener = opener

    def open(self, link: str) -> None:
        """Open a link in the browser by a page that redirects to it: lists of processes show arguments."""
        write_private(self._opener, f'<meta http-equiv="refresh" content="0; url={html.escape(link)}">\n')
        webbrowser.open(self._opener.as_uri())

    def watch(self) -> None:
        """Watch the servers until one ends, or until the exception of a signal; never returns.

        Raises
        ------
        ServerEndedError
            with the name of the server and the last line of its log.
        """
        while True:
            for server in self._servers:
                server.check()
            time.sleep(POLL_SECONDS)


@contextmanager
def run_dashboards(
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    mlflow_port: int | None = None,
    optuna_port: int | None = None,
    allowed_hosts: Sequence[str] = (),
) -> Iterator[Dashboards]:
    """Start both servers, wait until they answer, and stop them at the end of the block, however it ends.

    If the tracking URI is the address of a server, the pages link to that server and no MLflow is started. A
    port that is not given is a free one; for our page and Optuna it is the usual one of the home if that is
    free. The servers log to files under ``settings.logs``, and let in only those who have the secret of this
    start.

    Parameters
    ----------
    allowed_hosts
        Further names by which the servers may be called, besides the names of this machine.

    Raises
    ------
    AddressError
        if the host is not this machine's, or the port is taken.
    ServerEndedError
        if a server does not start.
    """
    if not is_loopback(host):
        logger.warning(
            "Without TLS, whoever can listen to the network sees the secret of the links, and can then change"
            " and delete studies: where you do not trust it, use an SSH tunnel or a gateway with TLS."
        )
    shown, local = _in_url(socket.gethostname() if host in ANY_ADDRESS else host), _in_url(_reachable(host))
    settings.logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as running:

        def start(
            name: str,
            module: str,
            listener: socket.socket,
            log: str,
            variables: Mapping[str, str],
            *more: str,
        ) -> _Server:
            arguments = [*arguments_for(host, listener, allowed_hosts), *more]
            health = f"http://{local}:{port_of(listener)}{HEALTH}"
            server = _server(
                name, module, arguments, variables, listener, log=settings.logs / log, health=health
            )
            return running.enter_context(server)

        def start_pages(token: str, mlflow: str) -> _Server:
            variables = optuna_environment(settings, token)
            log = "optuna-dashboard.log"
            return start(
                "Optuna dashboard", "dashboards.optuna_server", pages, log, variables, "--mlflow", mlflow
            )

        pages = running.enter_context(_listen_for_pages(settings, host, optuna_port))
        port = port_of(pages)
        if settings.tracking_uri.startswith(("http://", "https://")):
            token = running.enter_context(_secret(settings.home, port))
            mlflow = public_url(settings.tracking_uri)
            servers = [start_pages(token, mlflow)]
            if not answers(f"{settings.tracking_uri.rstrip('/')}/health"):
                logger.warning("The MLflow server %s does not answer.", mlflow)
            mlflow_token = read_token(settings.home, settings.tracking_uri)
        else:
            with alone_with(settings.mlflow_artifacts):  # a relay may be creating the tables
                check_tables(settings.tracking_uri)
                follow_folder(settings.tracking_uri, settings.mlflow_artifacts)
            own = running.enter_context(listen_for("--mlflow-port", host, mlflow_port))
            mlflow, place = f"http://{shown}:{port_of(own)}", str(port_of(own))
            token = mlflow_token = running.enter_context(_secret(settings.home, port, port_of(own)))
            variables = mlflow_environment(settings, token)
            servers = [
                start_pages(token, place),
                start("MLflow", "dashboards.mlflow_server", own, "mlflow.log", variables),
            ]
        _wait_foranswers(servers)
        addresses = DashboardAddresses(mlflow, f"http://{shown}:{port}", mlflow_token, token)
        opener = token_file(settings.home, port).with_suffix(".html")
        running.callback(opener.unlink, missing_ok=True)
        yield Dashboards(addresses, tuple(servers), opener)


@contextmanager
def _secret(home: Path, *ports: int) -> Iterator[str]:
    """Create the secret of the servers on these ports, and remove it at the end of the block."""
    token = make_token(home, *ports)
    try:
        yield token
    finally:
        for port in ports:
            remove_token(home, port)


def _listen_for_pages(settings: Settings, host: str, port: int | None) -> socket.socket:
    if port is None:
        with suppress(AddressError):  # then on any other port
            return listen_for("--optuna-port", host, links.usual_port(settings))
    return listen_for("--optuna-port", host, port)


@contextmanager
def _server(
    name: str,
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    listener: socket.socket,
    *,
    log: Path,
    health: str,
) -> Iterator[_Server]:
    # From now on only the server holds the socket: when the server ends, nobody listens.
    with listener, log.open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(
            # -P: modules of the current folder are never imported.
            [sys.executable, "-P", "-m", "dashboards.parent_watchdog", module, *arguments],
            stdin=subprocess.PIPE,  # held open by this process alone, see dashboards.parent_watchdog
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    server = _Server(name, process, health, log, start)
    with process:
        try:
            yield server
        finally:
            server.stop()


def public_url(url: str) -> str:
    """A server's URL in a form that may be shown and linked to: without user, password and last slash."""
    return str(httpx.URL(url).copy_with(userinfo=b"")).rstrip("/")


def answers(url: str, trust_env: bool = True) -> bool:
    """Whether a server answers this URL with status 200."""
    try:
        return httpx.get(url, timeout=5.0, trust_env=trust_env).status_code == 200
    except httpx.TransportError:
        return False


def _wait_foranswers(servers: list[_Server]) -> None:
    deadline = time.monotonic() + START_SECONDS
    waiting = list(servers)
    while waiting:
        for server in servers:
            server.check()
        waiting = [server for server in waiting if not server.answers()]
        if waiting and time.monotonic() > deadline:
            raise ServerEndedError(
                f"{waiting[0].name} has not answered for {START_SECONDS:.0f} s (log: {waiting[0].log})"
            )
        time.sleep(POLL_SECONDS if waiting else 0)


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
