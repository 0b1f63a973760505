"""The servers of `anitune up` where they cannot start, or are not ours to stop. No MLflow is started."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine

from dashboards.local_servers import start_servers, stop_servers, with_postgresql
from storage.errors import ServerError
from storage.postgresql import DATABASE, PostgreSQL
from storage.settings import (
    STORAGE_VARIABLE,
    TRACKING_VARIABLE,
    ServerAddresses,
    read_addresses,
    write_addresses,
)


@pytest.fixture
def home(public_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANITUNE_HOME", str(public_folder))
    for variable in (STORAGE_VARIABLE, TRACKING_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    (public_folder / "servers").mkdir()
    return public_folder


def anitune(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "search.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def postgresql(home: Path) -> PostgreSQL:
    return PostgreSQL(home / "servers" / "postgresql", home / "logs" / "postgresql.log")


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Something in a session of its own, without a word of MLflow in its command line, as before its exec."""
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    yield started
    started.kill()
    started.wait(60)


def record_mlflow(home: Path, process: subprocess.Popen[bytes], seconds_ago: float = 0.0) -> None:
    """Let it be known as the MLflow that was started then, before it really began."""
    started = psutil.Process(process.pid).create_time() - seconds_ago
    record = {"pid": process.pid, "started": started, "url": "http://127.0.0.1:1"}
    (home / "servers" / "mlflow.json").write_text(json.dumps(record))


def test_a_port_that_is_taken_is_one_clear_line_and_nothing_is_left_running(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = anitune("up", "--mlflow-port", str(port))
    assert answer.returncode == 2
    *_, line = answer.stderr.splitlines()
    reason = f"cannot listen on 127.0.0.1 port {port}: Address already in use"
    assert line == f"anitune: {reason}; choose another --mlflow-port"
    assert postgresql(home).pid() is None
    assert read_addresses(home / "servers") is None, "a home is switched over once all runs"


def test_a_number_that_another_process_has_now_is_not_ours_to_stop(
    home: Path, process: subprocess.Popen[bytes]
) -> None:
    record_mlflow(home, process, seconds_ago=3600)
    assert not stop_servers(home)
    assert process.poll() is None

    record_mlflow(home, process)
    assert stop_servers(home)
    assert process.poll() is not None


def test_the_servers_of_a_home_are_not_those_of_its_copy(
    home: Path, process: subprocess.Popen[bytes]
) -> None:
    record_mlflow(home, process)
    addresses = ServerAddresses(postgresql(home).url(DATABASE), "http://127.0.0.1:1", socket.gethostname())
    write_addresses(home / "servers", addresses)
    copy = home.with_name(f"{home.name}-copy")
    shutil.copytree(home, copy)
    try:
        assert not stop_servers(copy)
        assert process.poll() is None
    finally:
        shutil.rmtree(copy)
    assert stop_servers(home)


def test_an_mlflow_without_a_secret_is_not_gone_on_with(home: Path, process: subprocess.Popen[bytes]) -> None:
    record_mlflow(home, process)
    answer = anitune("up")
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1] == (
        "anitune: MLflow runs without the secret that protects it, as earlier versions started it: stop it"
        " first with `anitune down`"
    )
    assert postgresql(home).pid() is None
    assert process.poll() is None


def test_a_home_without_servers_has_nothing_to_stop(home: Path) -> None:
    (home / "servers").rmdir()
    answer = anitune("down")
    assert answer.stdout == "No servers are running.\n"
    assert list(home.iterdir()) == []


def test_servers_of_another_machine_are_left_alone(home: Path) -> None:
    addresses = ServerAddresses(postgresql(home).url(DATABASE), "http://127.0.0.1:1", "another-machine")
    write_addresses(home / "servers", addresses)
    data = home / "servers" / "postgresql"
    data.mkdir()
    (data / "postmaster.pid").write_text("1\n")
    with pytest.raises(ServerError, match="started on another-machine: stop them there"):
        start_servers(home)
    with pytest.raises(ServerError, match=f"if that machine is gone, remove {data}/postmaster.pid"):
        stop_servers(home)
    assert (data / "postmaster.pid").read_text() == "1\n"


def test_the_tables_of_a_home_are_migrated_while_its_servers_are_down(
    home: Path, process: subprocess.Popen[bytes]
) -> None:
    server = postgresql(home)
    with socket.create_server(("127.0.0.1", 0)) as free:
        tracking_uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    addresses = ServerAddresses(server.url(DATABASE), tracking_uri, socket.gethostname())
    write_addresses(home / "servers", addresses)

    answer = anitune("migrate", "--json")
    assert answer.returncode == 0, answer.stderr
    made = {migration["what"]: migration["before"] for migration in json.loads(answer.stdout)}
    assert made == {"Optuna": None, "anitune": None, "MLflow": None}
    assert server.pid() is None, "it ran for the migration only"

    answer = anitune("migrate")
    assert [line.split()[0] for line in answer.stdout.splitlines()] == ["Optuna", "anitune", "MLflow"]
    assert answer.stdout.count("up to date") == 3

    with with_postgresql(home) as mlflow:
        engine = create_engine(mlflow)
        with engine.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '7f2a7d5fae7d'")
        engine.dispose()
    answer = anitune("up")
    assert answer.returncode == 1
    assert "its tables were made by an older MLflow (version 7f2a7d5fae7d, " in answer.stderr.splitlines()[-1]
    assert server.pid() is None

    record_mlflow(home, process)
    answer = anitune("migrate")
    assert answer.stderr.splitlines()[-1] == (
        "anitune: MLflow's server uses the old tables: stop it first with `anitune down`"
    )
    assert server.pid() is None
