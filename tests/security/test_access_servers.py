"""The real servers of `anitune dashboards`, attacked by another account of the machine."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from dashboards.servers import DashboardAddresses, run_dashboards
from storage.database import open_database
from storage.errors import TrackingUnavailableError
from storage.settings import Settings
from storage.studies import Budget, create_study
from storage.tokens import token_file
from storage.tracking.mlflow_runs import MlflowRuns

# MLflow uses what is deprecated elsewhere; our own warnings stay errors.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")]

NOBODY = 65534
OPTUNA = (
    "/",
    "/anitune/",
    "/dashboard",
    "/api/studies",
    "/api/meta",
    "/mlflow",
    "/static/bundle.js",
    "/csv/1",
)
MLFLOW = (
    "/",
    "/version",
    "/api/2.0/mlflow/experiments/search?max_results=1",
    "/ajax-api/3.0/mlflow/assistant/config",
    "/get-artifact?run_uuid=a&path=b",
    "/graphql",
    "/static-files/index.html",
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("access") / "home"
    settings = Settings(home, f"sqlite:///{home / 'anitune.db'}", f"sqlite:///{home / 'mlflow.db'}")
    with open_database(settings) as database:
        create_study(database, "widths", {}, Budget(trials=1))
    return settings


@pytest.fixture(scope="module")
def addresses(settings: Settings) -> Iterator[DashboardAddresses]:
    with run_dashboards(settings) as running:
        yield running.addresses


def ask(url: str, method: str = "GET", **headers: str) -> httpx.Response:
    return httpx.request(method, url, headers=headers, timeout=60, trust_env=False)


def test_nothing_is_answered_without_the_secret(addresses: DashboardAddresses) -> None:
    for server, paths in ((addresses.optuna, OPTUNA), (addresses.mlflow, MLFLOW)):
        for path in paths:
            for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
                refused = ask(f"{server}{path}", method)
                assert refused.status_code == 401, (method, path)
                assert "widths" not in refused.text
        assert ask(f"{server}/health").text == "OK\n"


def test_it_opens_all_of_both(addresses: DashboardAddresses) -> None:
    for page in (f"{addresses.optuna}/anitune/", f"{addresses.optuna}/dashboard", f"{addresses.mlflow}/"):
        with httpx.Client(follow_redirects=True, timeout=60, trust_env=False) as browser:
            opened = browser.get(addresses.link(page))
            assert (opened.status_code, str(opened.url)) == (200, page)
            assert browser.get(page).status_code == 200
            assert browser.get(f"{addresses.optuna}/mlflow").url == f"{addresses.mlflow}/"


def test_another_account_reads_no_secret(settings: Settings, addresses: DashboardAddresses) -> None:
    files = [
        token_file(settings.home, httpx.URL(url).port or 0) for url in (addresses.mlflow, addresses.optuna)
    ]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    if os.geteuid() != 0:
        return
    for file in files:
        # Pytest's own folders are closed, too: the program is in it already when it becomes another user.
        program = (
            f"import os; os.chdir({str(file.parent)!r}); os.setuid({NOBODY}); open({file.name!r}).read()"
        )
        tried = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert "PermissionError" in tried.stderr


def test_the_secret_is_in_no_log_and_no_list_of_processes(
    settings: Settings, addresses: DashboardAddresses
) -> None:
    token = addresses.optuna_token
    for server in (addresses.optuna, addresses.mlflow):
        for path in ("/", "/nowhere", "/api/studies", "/get-artifact"):
            ask(f"{server}{path}?token={token}")
            ask(f"{server}{path}?token={token}", Host="evil.example")
            ask(f"{server}{path}?token={token}", Authorization=f"Bearer {token}")
            ask(f"{server}{path}?token={token}", "POST", Authorization=f"Bearer {token}")
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    for server in ("dashboards.optuna_server", "dashboards.mlflow_server"):
        assert [line for line in lines if server in line]
    assert not [line for line in lines if token in line]
    holding = [
        path for path in settings.home.rglob("*") if path.is_file() and token.encode() in path.read_bytes()
    ]
    assert {path.parent.parent.name for path in holding} == {"tokens"}
    for process in psutil.process_iter(["cmdline", "environ"]):
        if token in (process.info["environ"] or {}).values():
            assert {"dashboards.optuna_server", "dashboards.mlflow_server"} & set(process.info["cmdline"])


def test_answers_say_no_address_of_ours_elsewhere(addresses: DashboardAddresses) -> None:
    for server in (addresses.optuna, addresses.mlflow):
        for headers in ({}, {"Authorization": f"Bearer {addresses.optuna_token}"}):
            answer = ask(f"{server}/", **headers)
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "access-control-allow-origin" not in answer.headers


def test_programs_send_it_as_mlflows_client_does(
    settings: Settings, addresses: DashboardAddresses, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login anitune password {addresses.mlflow_token}")
    program = (
        "import mlflow, sys\n"
        "for each in mlflow.MlflowClient(sys.argv[1]).search_experiments(): print(each.name)\n"
    )
    ways = {
        "MLFLOW_TRACKING_TOKEN": {"MLFLOW_TRACKING_TOKEN": addresses.mlflow_token or ""},
        "a password": {
            "MLFLOW_TRACKING_USERNAME": "anybody",
            "MLFLOW_TRACKING_PASSWORD": addresses.mlflow_token or "",
        },
        "NETRC, as in the team's server": {"NETRC": str(netrc)},
    }
    for way, environment in ways.items():
        found = subprocess.run(
            [sys.executable, "-c", program, addresses.mlflow],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert found.stdout == "Default\n", (way, found.stderr)


def test_our_own_processes_find_it_in_the_home(
    settings: Settings, addresses: DashboardAddresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANITUNE_HOME", str(settings.home))
    runs = MlflowRuns(addresses.mlflow, settings.home / "mlartifacts")
    assert runs.experiment("by-a-relay", {}) == runs.experiment("by-a-relay", {})
    monkeypatch.setenv("ANITUNE_HOME", str(settings.home.parent))
    with pytest.raises(TrackingUnavailableError, match="Open the link that"):
        MlflowRuns(addresses.mlflow, settings.home / "mlartifacts")
