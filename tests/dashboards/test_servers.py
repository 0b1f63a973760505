"""The real servers: they answer, are reached by whom they should be, and never outlive who started them."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from select import select as has_output

import httpx
import pytest
from sqlalchemy import select

from dashboards import links
from dashboards.environment import mlflow_environment, optuna_environment
from dashboards.errors import AddressError, ServerEndedError
from dashboards.servers import Dashboards, public_url, run_dashboards
from storage.database import open_database
from storage.records.tables import relays
from storage.settings import Settings
from storage.studies import Budget, create_study
from storage.tokens import is_loopback

PASSWORD = "open-sesame"


def get(url: str, token: str | None = None, **headers: str) -> httpx.Response:
    signed_in = {"Authorization": f"Bearer {token}"} if token is not None else {}
    return httpx.get(url, headers={**signed_in, **headers}, timeout=30, trust_env=False)


def create_experiment(server: str, token: str, origin: str) -> int:
    """The status of the answer when a page of ``origin`` asks for one."""
    return httpx.post(
        f"{server}/api/2.0/mlflow/experiments/create",
        headers={"Authorization": f"Bearer {token}", "Origin": origin},
        json={"name": "widths"},
        timeout=30,
        trust_env=False,
    ).status_code


def led_to(running: Dashboards) -> httpx.URL:
    """Where the address of MLflow beside our pages leads."""
    addresses = running.addresses
    return httpx.URL(get(f"{addresses.optuna}/mlflow/", addresses.optuna_token).headers["location"])


def listens(url: str) -> bool:
    address = httpx.URL(url)
    try:
        socket.create_connection((address.host, address.port or 80), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.05)


def children() -> dict[int, str]:
    """The command lines of the processes that this one started, by id, as anybody may see them."""
    found = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    return {int(pid): Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in found}


@pytest.fixture
def mlflow_elsewhere() -> Iterator[str]:
    """The URL, with a password, of a server that answers as a healthy MLflow does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"OK")

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://someone:{PASSWORD}@127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def settings(tmp_path: Path, mlflow_elsewhere: str) -> Settings:
    """An empty home, and MLflow elsewhere: only the Optuna dashboard is started, which is quick."""
    home = tmp_path / "home"
    return Settings(home, storage_url=f"sqlite:///{home / 'anitune.db'}", tracking_uri=mlflow_elsewhere)


@pytest.fixture
def embedded(tmp_path: Path) -> Settings:
    """An empty home with everything in it."""
    home = tmp_path / "home"
    return Settings(
        home,
        storage_url=f"sqlite:///{home / 'anitune.db'}",
        tracking_uri=f"sqlite:///{home / 'mlflow.db'}",
    )


@pytest.mark.slow
def test_both_answer_other_machines_and_refuse_other_sites(
    embedded: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with open_database(embedded) as database:
        study = create_study(database, "widths", {}, Budget(trials=1))
        with run_dashboards(embedded, host="0.0.0.0", allowed_hosts=["widths.example"]) as running:
            optuna, mlflow = running.addresses.optuna, running.addresses.mlflow
            token = running.addresses.optuna_token
            (shown,) = get(f"{optuna}/api/studies", token).json()["study_summaries"]
            assert (shown["study_id"], shown["study_name"]) == (study.optuna_study_id, "widths")

            assert get(f"{optuna}/", token).headers["location"] == "/anitune/"
            assert "widths" in get(f"{optuna}/anitune/studies/widths", token).text
            assert get(f"{optuna}/dashboard", token).status_code == 200

            assert socket.gethostname() in mlflow
            for site in ("http://evil.example", "http://10.evil.com", "null"):
                assert create_experiment(mlflow, token, site) == 403
            assert create_experiment(mlflow, token, mlflow) == 200
            address = socket.gethostbyname(socket.gethostname())
            for server in (optuna, mlflow):
                for foreign in ("evil.example", "10.evil.com", "10.0.0.1.evil.com", "192.0.2.1"):
                    assert get(f"{server}/", token, Host=foreign).status_code == 403
                for name in (address, "localhost:7", "widths.example"):
                    assert get(f"{server}/", token, Host=name).status_code in (200, 302)

            assert led_to(running) == httpx.URL(f"{mlflow}/?token={token}")
    assert not listens(optuna)
    assert not listens(mlflow)
    assert [path for path in (embedded.home / "tokens").rglob("*") if path.is_file()] == []
    assert "Without TLS, whoever can listen to the network sees the secret" in caplog.text
    assert (embedded.home / "mlflow.db").exists()
    assert not Path("mlruns").exists()


def start_command(settings: Settings, *arguments: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """``anitune dashboards`` and the links that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "search.cli.main", "dashboards", "--json", *arguments],
        env={**os.environ, **settings.environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert has_output([process.stdout], [], [], 120)[0], "the dashboards print no links"
    line = process.stdout.readline()
    assert line, process.communicate(timeout=60)
    return process, json.loads(line)


@pytest.mark.slow
def test_nothing_outlives_a_killed_command(embedded: Settings) -> None:
    process, links = start_command(embedded)
    assert listens(links["mlflow"])
    assert listens(links["optuna"])
    process.kill()
    process.communicate(timeout=60)
    until(lambda: not listens(links["mlflow"]) and not listens(links["optuna"]))


@pytest.mark.slow
def test_ctrl_c_stops_the_server_without_a_word(settings: Settings) -> None:
    with open_database(settings) as database:
        study = create_study(database, "widths", {}, Budget(trials=1))
    process, links = start_command(settings, "--study", "widths")
    page, _, token = links["optuna_study"].partition("?token=")
    assert page.endswith(f"/dashboard/studies/{study.optuna_study_id}")
    assert get(links["optuna_study"]).status_code == 303
    assert get(page, token).status_code == 200
    process.send_signal(signal.SIGINT)
    said, complained = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")
    assert "Traceback" not in complained
    assert "Aborted" not in complained
    assert not listens(links["optuna"])
    with open_database(settings) as database, database.reading() as connection:
        for relay in connection.scalars(select(relays.c.pid)):
            os.kill(relay, signal.SIGKILL)  # it would try to reach MLflow for an hour


@pytest.mark.slow
def test_the_browser_is_opened_without_the_secret_among_its_arguments(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(f'#!/bin/sh\necho "$@" >{seen}.new && mv {seen}.new {seen}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    process, links = start_command(settings, "--open")
    until(seen.exists)
    page = Path(httpx.URL(seen.read_text().strip()).path)
    token = links["page"].partition("?token=")[2]
    assert token not in seen.read_text()
    assert f"url={links['page']}" in page.read_text()
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert not page.exists()


def test_a_server_elsewhere_is_linked_to_without_its_password(settings: Settings) -> None:
    with run_dashboards(settings) as running:
        assert running.addresses.mlflow == settings.tracking_uri.replace(f"someone:{PASSWORD}@", "")
        assert led_to(running) == httpx.URL(running.addresses.mlflow)
        assert running.addresses.mlflow_token is None
        lines = " ".join(children().values())
        assert "dashboards.optuna_server" in lines
        for secret in (PASSWORD, running.addresses.optuna_token, settings.storage_url):
            assert secret not in lines


def test_pages_of_other_sites_do_not_reach_the_dashboard_of_this_machine(settings: Settings) -> None:
    with run_dashboards(settings) as running:
        token, port = running.addresses.optuna_token, httpx.URL(running.addresses.optuna).port
        url = f"{running.addresses.optuna}/api/studies"
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "10.0.0.1"):
            assert get(url, token, Host=host).status_code == 403
        for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
            assert get(url, token, Host=host).status_code == 200


def test_its_servers_know_no_more_of_a_person_than_they_need(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "for artifacts")
    monkeypatch.setenv("PGPASSWORD", "for PostgreSQL")
    shared = Settings(settings.home, "postgresql+psycopg://a@b/c", "postgresql+psycopg://a@b/d")
    with run_dashboards(settings):
        (pid,) = (pid for pid, line in children().items() if "dashboards.optuna_server" in line)
        environment = Path(f"/proc/{pid}/environ").read_text()
    assert f"ANITUNE_HOME={settings.home}" in environment
    for secret in ("GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"):
        assert secret not in environment
    monkeypatch.setenv("PGP_PASSPHRASE", "mine")
    unneeded = {
        "GITHUB_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "PGPASSWORD",
        "PGP_PASSPHRASE",
        "ANITUNE_STORAGE_URL",
    }
    assert not unneeded & set(mlflow_environment(settings, "secret"))
    assert not {"PGP_PASSPHRASE"} & set(mlflow_environment(shared, "secret"))
    for needed in (mlflow_environment(shared, "secret"), optuna_environment(shared, "secret")):
        assert needed["PGPASSWORD"] == "for PostgreSQL"


def test_a_server_elsewhere_that_is_away_is_said(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    away = Settings(settings.home, settings.storage_url, f"http://someone:{PASSWORD}@127.0.0.1:{port}")
    with run_dashboards(away):
        assert f"The MLflow server http://127.0.0.1:{port} does not answer" in caplog.text
    assert PASSWORD not in caplog.text


def test_the_end_of_a_server_is_reported_with_its_last_words(settings: Settings) -> None:
    settings.home.mkdir()
    (settings.home / "anitune.db").write_text("This is no database.\n" * 100)
    words = r"Optuna dashboard has ended .* file is not a database; .*\.log"
    with pytest.raises(ServerEndedError, match=words), run_dashboards(settings):
        pytest.fail("it cannot have come up")


def test_a_server_that_is_killed_later_is_reported(settings: Settings) -> None:
    with run_dashboards(settings) as running:
        (ours,) = (pid for pid, line in children().items() if "dashboards.optuna_server" in line)
        os.kill(ours, signal.SIGKILL)
        with pytest.raises(
            ServerEndedError, match=r"Optuna dashboard has ended unexpectedly \(exit code -9\)"
        ):
            running.watch()


def test_a_port_in_use_is_one_clear_line(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = f"127.0.0.1 port {port}: Address already in use; choose another --optuna-port"
        with pytest.raises(AddressError, match=words), run_dashboards(settings, optuna_port=port):
            pytest.fail("it cannot have come up")


def test_an_address_of_another_machine_is_one_clear_line(settings: Settings) -> None:
    words = r"cannot listen on 192.0.2.1: .*--host"
    with pytest.raises(AddressError, match=words), run_dashboards(settings, host="192.0.2.1"):
        pytest.fail("it cannot have come up")


def test_the_first_page_has_the_same_address_each_time(settings: Settings) -> None:
    usual = links.usual_port(settings)
    with run_dashboards(settings) as running:
        assert running.addresses.optuna == f"http://127.0.0.1:{usual}"
        with run_dashboards(settings) as beside:  # then it is taken
            assert beside.addresses.optuna != running.addresses.optuna


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1", "::1", "localhost"])
def test_only_this_machine_reaches(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "node7.example"])
def test_others_reach(host: str) -> None:
    assert not is_loopback(host)


def test_public_url() -> None:
    assert public_url("https://user:secret@mlflow.example:8443/base/") == "https://mlflow.example:8443/base"
