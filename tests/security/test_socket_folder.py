"""A home of a long name has its PostgreSQL's socket in /tmp, where another account may have been first."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.database import open_database
from storage.errors import ServerError
from storage.postgresql import PostgreSQL
from storage.settings import Settings


@pytest.fixture
def server(tmp_path: Path) -> PostgreSQL:
    data = tmp_path / ("long" * 30) / "data"
    data.mkdir(parents=True)
    return PostgreSQL(data, tmp_path / "log")


@pytest.fixture(params=["anybody may enter it", "of another account", "a link"])
def impostor(request: pytest.FixtureRequest, server: PostgreSQL, tmp_path: Path) -> Iterator[list[bytes]]:
    """A folder of somebody else with a socket, that hears what is said to it."""
    folder, heard = server._socket_folder, list[bytes]()
    real = folder
    if request.param == "a link":
        real = folder.with_name(f"{folder.name}-of-another")
        folder.symlink_to(real)
    real.mkdir()
    real.chmod(0o777 if request.param == "anybody may enter it" else 0o700)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(real / ".s.PGSQL.5432"))
        listening.listen()

        def hear() -> None:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                heard.append(connection.recv(1000))

        thread = threading.Thread(target=hear, daemon=True)
        thread.start()
        if request.param == "of another account":
            if os.geteuid() != 0:
                pytest.skip("only root can give a folder away")
            os.chown(real, 4711, 4711)
        yield heard
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    (real / ".s.PGSQL.5432").unlink()
    real.rmdir()
    folder.unlink(missing_ok=True)


def test_nothing_is_said_to_the_socket_of_another(
    server: PostgreSQL, impostor: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "secret")
    url = server.url("anitune").replace("postgresql://", "postgresql+psycopg://")
    with pytest.raises(
        ServerError, match=r"^/tmp/anitune-\w+: this folder does not belong to anitune; remove it"
    ):
        open_database(Settings(tmp_path, url, f"sqlite:///{tmp_path}/mlflow.db"))
    monkeypatch.setattr(server, "pid", lambda: os.getpid())
    with pytest.raises(ServerError, match="this folder does not belong to anitune"):
        server._answers()
    assert impostor == []
