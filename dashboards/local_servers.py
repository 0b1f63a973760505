"""The servers of ``anitune up``: a PostgreSQL and an MLflow server for all processes of one machine.

Their files are in the folder ``servers`` of a home. Each server runs in a session of its own, and outlasts
the command that started it. The folder holds: ``postgresql``, the data of both databases; ``mlflow.json``,
MLflow's process; ``addresses.json``, by which every later command finds the servers; ``lock``, held while a
command starts or stops them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil
from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from dashboards.access import HEALTH, with_token
from dashboards.environment import mlflow_environment
from dashboards.errors import AddressError, ServerEndedError
from dashboards.listening import arguments_for, listen_for, port_of
from dashboards.parent_watchdog import GRACE_SECONDS
from dashboards.servers import POLL_SECONDS, START_SECONDS, answers
from storage.database import open_database
from storage.errors import SchemaTooOldError, ServerError
from storage.files import replacing
from storage.postgresql import DATABASE, MLFLOW_DATABASE, PostgreSQL
from storage.settings import ServerAddresses, Settings, read_addresses, write_addresses
from storage.tokens import make_token, read_token, remove_token, token_file
from storage.tracking.mlflow_tables import check_tables

HOST = "127.0.0.1"

_MLFLOW = "mlflow.json"
_CLOCK_SECONDS = 2.0
"""A process's start time may shift by up to this much when the clock is set."""


@dataclass(frozen=True)
class _Mlflow:
    """MLflow's first process: its id, its start (seconds since 1970-01-01 UTC), and the URL of the server."""

    pid: int
    started: float
    url: str

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        port = httpx.URL(self.url).port
        assert port is not None, self.url
        return port


@dataclass(frozen=True)
class LocalServers:
    """The state of the running servers.

    Attributes
    ----------
    addresses
        Addresses of both servers.
    postgresql, mlflow
        Process ids.
    tools
        Folder of PostgreSQL's own programs, such as ``psql`` and ``pg_dump``.
    token_file
        The file with the secret of MLflow's server.
    link
        Link to MLflow's pages that also signs in.
    """

    addresses: ServerAddresses
    postgresql: int | None
    mlflow: int
    tools: Path
    token_file: Path
    link: str


def start_servers(home: Path, mlflow_port: int | None = None) -> tuple[LocalServers, bool]:
    """Start the servers that are not running, and wait until they answer.

    Also returns whether any was started. A start that fails or is interrupted stops what it started.

    Parameters
    ----------
    home
        The home folder, absolute.
    mlflow_port
        Port for MLflow; by default that of the last start, else a free one.

    Raises
    ------
    SettingsError
        if the extra ``postgres`` is not installed, or the data is of another version of PostgreSQL.
    ServerError, ServerEndedError
        if a server does not start.
    AddressError
        if the port is taken.
    DatabaseError
        if the tables are of an older or newer version.
    """
    postgresql = PostgreSQL.of(home)
    with _alone(home) as servers, ExitStack() as undo:
        known = _known(home)
        began = postgresql.start()
        if began:
            undo.callback(postgresql.stop)
        mlflow = _running(servers)
        if mlflow is None:
            _stop_mlflow(servers)  # children that a killed server left
            if known is not None and mlflow_port is None:
                mlflow_port = httpx.URL(known.tracking_uri).port
            listener = undo.enter_context(listen_for("--mlflow-port", HOST, mlflow_port))
            behind = Settings(
                home, _with_driver(postgresql.url(DATABASE)), _with_driver(postgresql.url(MLFLOW_DATABASE))
            )
            open_database(behind).close()
            check_tables(behind.tracking_uri)
            mlflow = _start_mlflow(behind, listener)
            undo.callback(_stop_mlflow, servers)
            began = True
        elif mlflow_port not in (None, mlflow.port):
            raise AddressError(
                f"MLflow is already running at {mlflow.url}: stop it first with `anitune down`"
            )
        token = read_token(home, mlflow.url)
        if token is None:
            raise ServerError(
                "MLflow runs without the secret that protects it, as earlier versions started it: stop it"
                " first with `anitune down`"
            )
        _wait_for_mlflow(home, mlflow)
        addresses = ServerAddresses(postgresql.url(DATABASE), mlflow.url, socket.gethostname())
        write_addresses(servers, addresses)
        undo.pop_all()
    secret = token_file(home, mlflow.port)
    link = with_token(mlflow.url, token)
    return LocalServers(addresses, postgresql.pid(), mlflow.pid, postgresql.tools, secret, link), began


def stop_servers(home: Path) -> bool:
    """Stop the running servers of a home; returns whether there were any.

    Raises
    ------
    ServerError
        if one does not stop.
    """
    servers = home / "servers"
    if not servers.exists():
        return False
    with _alone(home):
        _known(home)
        mlflow = _stop_mlflow(servers)
        return PostgreSQL.of(home).stop() or mlflow


@contextmanager
def with_postgresql(home: Path) -> Iterator[str]:
    """Run PostgreSQL for the block, and yield the URL of MLflow's database.

    MLflow's server is not started. It must be down if its tables are of an older version, because they cannot
    be migrated while it uses them.

    Raises
    ------
    ServerError
        if MLflow's server uses tables of an older version.
    """
    with _alone(home) as servers:
        _known(home)
        postgresql = PostgreSQL.of(home)
        started = postgresql.start()
        try:
            url = _with_driver(postgresql.url(MLFLOW_DATABASE))
            if _running(servers) is not None:
                try:
                    check_tables(url)
                except SchemaTooOldError:
                    raise ServerError(
                        "MLflow's server uses the old tables: stop it first with `anitune down`"
                    ) from None
            yield url
        finally:
            if started:
                postgresql.stop()


def _with_driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


@contextmanager
def _alone(home: Path) -> Iterator[Path]:
    """Hold the lock of the servers' folder, which is created if needed."""
    servers = home / "servers"
    servers.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(servers / "lock", timeout=START_SECONDS):
            yield servers
    except Timeout:
        raise ServerError(
            f"{servers}: another process has been starting or stopping these servers for too long"
        ) from None


def _known(home: Path) -> ServerAddresses | None:
    """The addresses of the last start; None if this folder was copied from theirs."""
    servers = home / "servers"
    known = read_addresses(servers)
    pid_file = servers / "postgresql" / "postmaster.pid"
    if known is not None and known.host != socket.gethostname() and pid_file.exists():
        raise ServerError(
            f"the servers of {servers.parent} were started on {known.host}: stop them there with"
            f" `anitune down`; if that machine is gone, remove {pid_file}"
        )
    if known is None or known.are_of(home):
        return known
    (servers / _MLFLOW).unlink(missing_ok=True)
    return None


def _start_mlflow(settings: Settings, listener: socket.socket) -> _Mlflow:
    log = _mlflow_log(settings.home)
    log.parent.mkdir(parents=True, exist_ok=True)
    port = port_of(listener)
    token = make_token(settings.home, port)
    # From now on only the server holds the socket: when the server ends, nobody listens.
    with listener, log.open("ab") as output:
        pid = subprocess.Popen(
            # -P: modules of the current folder are never imported.
            [sys.executable, "-P", "-m", "dashboards.mlflow_server", *arguments_for(HOST, listener)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=mlflow_environment(settings, token),
            pass_fds=[listener.fileno()],
            start_new_session=True,
        ).pid
    mlflow = _Mlflow(pid, psutil.Process(pid).create_time(), f"http://{HOST}:{port}")
    with replacing(settings.servers / _MLFLOW) as file:
        file.write(json.dumps(asdict(mlflow)).encode() + b"\n")
    return mlflow


def _mlflow_log(home: Path) -> Path:
    return home / "logs" / "mlflow-server.log"


def _wait_for_mlflow(home: Path, mlflow: _Mlflow) -> None:
    log = _mlflow_log(home)
    deadline = time.monotonic() + START_SECONDS
    while not answers(f"{mlflow.url}{HEALTH}", trust_env=False):
        if _running(home / "servers") is None:
            lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
            raise ServerEndedError(
                f"MLflow has ended unexpectedly: {(lines or ['it printed nothing'])[-1]} (log: {log})"
            )
        if time.monotonic() > deadline:
            raise ServerEndedError(f"MLflow has not answered for {START_SECONDS:.0f} s (log: {log})")
        time.sleep(POLL_SECONDS)


def _running(servers: Path) -> _Mlflow | None:
    mlflow = _recorded(servers)
    running = mlflow is not None and any(process.pid == mlflow.pid for process in _processes(mlflow))
    return mlflow if running else None


def _recorded(servers: Path) -> _Mlflow | None:
    try:
        return TypeAdapter(_Mlflow).validate_json((servers / _MLFLOW).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise ServerError(
            f"{servers / _MLFLOW}: damaged; stop the processes of MLflow, if there are any, and remove it"
        ) from None


def _processes(mlflow: _Mlflow) -> list[psutil.Process]:
    """Running processes of MLflow's group, which is named by the first one; the others may outlive it."""
    with suppress(psutil.NoSuchProcess):
        if abs(psutil.Process(mlflow.pid).create_time() - mlflow.started) > _CLOCK_SECONDS:
            return []  # the id is another process's now, as after a reboot
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            ours = os.getpgid(process.pid) == mlflow.pid and process.status() != psutil.STATUS_ZOMBIE
            # The first process is known by its start time: just after the start it has no command line yet.
            if ours and (process.pid == mlflow.pid or "mlflow" in " ".join(process.cmdline())):
                found.append(process)
    return found


def _stop_mlflow(servers: Path) -> bool:
    """End MLflow's processes; returns whether there were any."""
    mlflow = _recorded(servers)
    processes = _processes(mlflow) if mlflow is not None else []
    waiting = processes
    for signal_ in (signal.SIGTERM, signal.SIGKILL):
        for process in waiting:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal_)
        _, waiting = psutil.wait_procs(waiting, timeout=GRACE_SECONDS)
    if waiting:
        raise ServerError(f"MLflow's processes {sorted(process.pid for process in waiting)} do not end")
    (servers / _MLFLOW).unlink(missing_ok=True)
    if mlflow is not None:
        remove_token(servers.parent, mlflow.port)
    return bool(processes)
