"""The servers of ``anitune up``: a PostgreSQL and an MLflow server for all processes of one machine.

They live in the folder ``servers`` of a home, each in a session of its own, and outlast the command that
started them. What is there: ``postgresql``, the data of both databases; ``mlflow.json``, MLflow's process;
``addresses.json``, by which every later command finds them; ``lock``, held while one starts or stops them.
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
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from filelock import FileLock, Timeout

from dashboards.errors import AddressError, ServerEndedError
from dashboards.lifeline import GRACE_SECONDS
from dashboards.servers import POLL_SECONDS, START_SECONDS, answers, free_ports, mlflow_environment
from storage.database import open_database
from storage.errors import SchemaTooOldError, ServerError
from storage.postgresql import DATABASE, MLFLOW_DATABASE, PostgreSQL
from storage.settings import Addresses, Settings, read_addresses, write_addresses
from storage.tracking.mlflow_tables import check_tables

HOST = "127.0.0.1"

_MLFLOW = "mlflow.json"
_CLOCK_SECONDS = 2.0
"""A process's start time moves by so much when the clock is set."""


@dataclass(frozen=True)
class Standing:
    """The servers as they stand.

    Attributes
    ----------
    addresses
        Of both.
    postgresql, mlflow
        Process ids.
    tools
        Folder of PostgreSQL's own programs, such as ``psql`` and ``pg_dump``.
    """

    addresses: Addresses
    postgresql: int | None
    mlflow: int
    tools: Path


def start_servers(home: Path, mlflow_port: int | None = None) -> tuple[Standing, bool]:
    """Start what does not run, and wait until it answers; also whether anything was started.

    A start that fails, or is interrupted, stops again what it started.

    Parameters
    ----------
    home
        The home folder, absolute.
    mlflow_port
        For MLflow; by default that of the last time, else one that is free.

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
    postgresql = _postgresql(home)
    with _alone(home) as servers, ExitStack() as undo:
        known = read_addresses(servers)
        _refuse_elsewhere(servers, known)
        began = postgresql.start()
        if began:
            undo.callback(postgresql.stop)
        mlflow = _running(servers)
        if mlflow is not None and known is None:  # its start was killed before it was done
            _end(mlflow)
            mlflow = None
        if mlflow is None:
            if known is not None and mlflow_port is None:
                mlflow_port = httpx.URL(known.tracking_uri).port
            (port,) = free_ports(HOST, {"--mlflow-port": mlflow_port})
            known = Addresses(postgresql.url(DATABASE), f"http://{HOST}:{port}", socket.gethostname())
            open_database(Settings(home, _with_driver(known.storage_url), known.tracking_uri)).close()
            behind = Settings(
                home, _with_driver(known.storage_url), _with_driver(postgresql.url(MLFLOW_DATABASE))
            )
            check_tables(behind.tracking_uri)
            process = _start_mlflow(behind, port)
            mlflow = process.pid
            undo.callback(_end, mlflow)
            _wait_for_mlflow(known.tracking_uri, process, _log(behind))
            began = True
        assert known is not None, "MLflow runs by itself, or was started here"
        _refuse_other_port(known, mlflow_port)
        write_addresses(servers, known)
        undo.pop_all()
    return Standing(known, postgresql.pid(), mlflow, postgresql.tools), began


def stop_servers(home: Path) -> bool:
    """Stop what runs of the servers of a home; answers whether anything did.

    Raises
    ------
    ServerError
        if one does not stop.
    """
    servers = home / "servers"
    if not servers.exists():
        return False
    with _alone(home):
        _refuse_elsewhere(servers, read_addresses(servers))
        mlflow = _running(servers)
        if mlflow is not None:
            _end(mlflow)
        (servers / _MLFLOW).unlink(missing_ok=True)
        return _postgresql(home).stop() or mlflow is not None


@contextmanager
def with_postgresql(home: Path) -> Iterator[str]:
    """Let PostgreSQL run for the block, and give the URL of MLflow's database.

    MLflow's server is not started. It must be down where its tables are of an older version: they cannot be
    changed under it.

    Raises
    ------
    ServerError
        if MLflow's server uses tables of an older version.
    """
    with _alone(home) as servers:
        _refuse_elsewhere(servers, read_addresses(servers))
        postgresql = _postgresql(home)
        started = postgresql.start()
        try:
            url = _with_driver(postgresql.url(MLFLOW_DATABASE))
            if _running(servers) is not None:
                try:
                    check_tables(url)
                except SchemaTooOldError:
                    raise ServerError("MLflow's server uses the old tables: first `anitune down`") from None
            yield url
        finally:
            if started:
                postgresql.stop()


def _postgresql(home: Path) -> PostgreSQL:
    return PostgreSQL(home / "servers" / "postgresql", home / "logs" / "postgresql.log")


def _with_driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


@contextmanager
def _alone(home: Path) -> Iterator[Path]:
    """Hold the lock of the folder of the servers, which is made if need be."""
    servers = home / "servers"
    servers.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(servers / "lock", timeout=START_SECONDS):
            yield servers
    except Timeout:
        raise ServerError(
            f"{servers}: another process has been starting or stopping these for long"
        ) from None


def _refuse_elsewhere(servers: Path, known: Addresses | None) -> None:
    pid_file = servers / "postgresql" / "postmaster.pid"
    if known is not None and known.host != socket.gethostname() and pid_file.exists():
        raise ServerError(
            f"the servers of {servers.parent} were started on {known.host}: stop them there with"
            f" `anitune down`; if that machine is gone, remove {pid_file}"
        )


def _refuse_other_port(known: Addresses, port: int | None) -> None:
    if port not in (None, httpx.URL(known.tracking_uri).port):
        raise AddressError(f"MLflow is running already at {known.tracking_uri}: first `anitune down`")


def _start_mlflow(settings: Settings, port: int) -> subprocess.Popen[bytes]:
    settings.logs.mkdir(parents=True, exist_ok=True)
    # Any port: a tunnel to this machine may begin at another one.
    hosts = {"MLFLOW_SERVER_ALLOWED_HOSTS": "localhost:*,127.0.0.1:*"}
    with _log(settings).open("ab") as output:
        process = subprocess.Popen(
            # -P: what lies in the current folder is never imported.
            [
                sys.executable,
                "-P",
                "-m",
                "mlflow",
                "server",
                "--host",
                HOST,
                "--port",
                str(port),
                "--workers",
                "1",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**hosts, **os.environ, **mlflow_environment(settings, HOST, port)},
            start_new_session=True,
        )
    started = psutil.Process(process.pid).create_time()
    new = settings.servers / f"{_MLFLOW}.new"
    new.write_text(json.dumps({"pid": process.pid, "started": started}) + "\n")
    new.replace(settings.servers / _MLFLOW)
    return process


def _log(settings: Settings) -> Path:
    return settings.logs / "mlflow-server.log"


def _wait_for_mlflow(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not answers(f"{url}/health", trust_env=False):
        if process.poll() is not None:
            lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
            last = lines[-1] if lines else "it said nothing"
            raise ServerEndedError(
                f"MLflow ended by itself (exit code {process.returncode}): {last} (log: {log})"
            )
        if time.monotonic() > deadline:
            raise ServerEndedError(f"MLflow has not answered for {START_SECONDS:.0f} s (log: {log})")
        time.sleep(POLL_SECONDS)


def _running(servers: Path) -> int | None:
    """MLflow's process, if it is the one that was started: after a reboot its number may be another's."""
    try:
        record = json.loads((servers / _MLFLOW).read_text())
        process = psutil.Process(record["pid"])
        same = abs(process.create_time() - record["started"]) < _CLOCK_SECONDS
        return process.pid if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None


def _end(pid: int) -> None:
    """End a session's process group, children included."""
    group = [process for process in psutil.process_iter() if _group(process.pid) == pid]
    for signal_ in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(pid, signal_)
        _, group = psutil.wait_procs(group, timeout=GRACE_SECONDS)
        if not group:
            return
    raise ServerError(f"MLflow's processes {sorted(process.pid for process in group)} do not end")


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
