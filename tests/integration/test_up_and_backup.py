"""Homes that are killed, backed up by the commands of docs/backup.md, destroyed, and restored elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from search.cli.main import app
from storage.postgresql import PostgreSQL
from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE
from storage.tokens import read_token
from storage.tracking.mlflow_runs import MlflowRuns
from tests.mlflow_artifacts import artifact

# MLflow uses what is deprecated elsewhere; our own warnings stay errors.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
]

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "backup.md").read_text()
STUDY = """
name: tiny
data: {{files: [{data}]}}
training: {{epochs: 3, hidden: [8], device: cpu}}
pruner: {{kind: none}}
limits: {{trials: 2}}
"""


class Home:
    """A home folder, with real processes that work there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.postgresql = PostgreSQL(path / "servers" / "postgresql", path / "logs" / "postgresql.log")

    def run(self, command: list[str], code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            command,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("ANITUNE_")},
                "ANITUNE_HOME": str(self.path),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended

    def anitune(self, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run([sys.executable, "-m", "search.cli.main", *arguments], code, **environment)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.anitune(*arguments, "--json").stdout)

    def do_as_the_page_says(self, what: str, backup: Path) -> None:
        (script,) = re.findall(f"```sh {what}\n(.*?)```", PAGE, re.DOTALL)
        self.run(["bash", "-e", "-u", "-c", script], BACKUP=str(backup), STUDY="tiny")

    def record(self) -> tuple[dict[str, Any], str]:
        """What the records say of the study, and the digest of the best weights."""
        weights = Path(self._read("best")["weights"])
        assert weights.is_relative_to(self.path)
        return self._read("show"), hashlib.sha256(weights.read_bytes()).hexdigest()

    def _read(self, command: str) -> dict[str, Any]:
        """Output of a command of ``anitune study``, in this process: it ends before the servers do."""
        places = dict.fromkeys((STORAGE_VARIABLE, TRACKING_VARIABLE))
        runner = CliRunner(env={**places, "ANITUNE_HOME": str(self.path)})
        found: dict[str, Any] = json.loads(runner.invoke(app, ["study", command, "tiny", "--json"]).stdout)
        return found

    def kill_servers(self) -> None:
        """End the first process of each without a warning; the others of MLflow's hold its port."""
        pid = self.postgresql.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        os.kill(json.loads((self.path / "servers" / "mlflow.json").read_text())["pid"], signal.SIGKILL)

    def destroy(self) -> None:
        """End all that works there, relays too, and remove the folder."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("ANITUNE_HOME") == str(self.path):
                    process.kill()
        self.postgresql.stop()
        shutil.rmtree(self.path, ignore_errors=True)


@pytest.fixture
def homes(public_folder: Path) -> Iterator[tuple[Home, Home]]:
    both = Home(public_folder / "one"), Home(public_folder / "two")
    yield both
    for home in both:
        home.destroy()


@pytest.fixture
def study_file(tmp_path: Path, data_file: Path) -> str:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(data=data_file))
    return str(file)


def mlflow_shows(home: Home, tracking_uri: str) -> dict[str, Any]:
    """Runs of the study with their numbers and files; ids are MLflow's own matter."""
    with pytest.MonkeyPatch.context() as patch:
        if token := read_token(home.path, tracking_uri):
            patch.setenv("MLFLOW_TRACKING_TOKEN", token)
        return _mlflow_shows(tracking_uri)


def _mlflow_shows(tracking_uri: str) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs), "a run is there twice"
    return {
        run.info.run_name: {
            "status": (run.info.status, run.info.start_time, run.info.end_time),
            "params": run.data.params,
            "history": {
                key: sorted(
                    (point.step, repr(point.value), point.timestamp)
                    for point in client.get_metric_history(run.info.run_id, key)
                )
                for key in run.data.metrics
            },
            "files": _files_of(client, run),
        }
        for run in runs
    }


def _files_of(client: Any, run: Any) -> dict[str, str]:
    """Digests by path. Those of the study's run are written again by each relay, with the ids of runs."""
    files = dict(_files(client, run.info.run_id, None))
    return dict.fromkeys(files, "") if run.info.run_name == "tiny" else files


def _files(client: Any, run: str, folder: str | None) -> Iterator[tuple[str, str]]:
    for entry in client.list_artifacts(run, folder):
        if entry.is_dir:
            yield from _files(client, run, entry.path)
        else:
            yield entry.path, hashlib.sha256(artifact(client, run, entry.path)).hexdigest()


def assert_whole(shown: dict[str, Any]) -> None:
    assert set(shown) == {"tiny", "trial 0", "trial 1"}
    for trial in (shown["trial 0"], shown["trial 1"]):
        assert trial["status"][0] == "FINISHED"
        assert len(trial["history"]["val/mae_kcalmol"]) == 3
        assert "model.safetensors" in trial["files"]


def assert_only_the_secret_opens(home: Home, servers: dict[str, Any], said: str) -> None:
    url = f"{servers['tracking_uri']}/api/2.0/mlflow/experiments/search?max_results=1"
    file = Path(servers["mlflow_token_file"])
    token = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def status(url: str, **headers: str) -> int:
        return httpx.get(url, headers=headers, trust_env=False, timeout=60).status_code

    assert status(url) == 401
    assert status(url, Authorization=f"Bearer {token}") == 200
    for host in ("evil.example", "10.evil.com"):
        assert status(url, Authorization=f"Bearer {token}", Host=host) == 403
    assert servers["mlflow_link"] == f"{servers['tracking_uri']}/?token={token}"
    assert status(servers["mlflow_link"]) == 303

    # As a person's own program, with what `anitune up` says.
    (export,) = (line.strip() for line in said.splitlines() if line.strip().startswith("export "))
    program = "import mlflow; print([each.name for each in mlflow.search_experiments()])"
    found = home.run(["bash", "-e", "-c", f"{export}; python -c '{program}'"])
    assert found.stdout == "['Default']\n"

    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert [line for line in lines if "dashboards.mlflow_server" in line]
    assert not [line for line in lines if token in line]
    kept = [path for path in home.path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert kept == [file]


def test_the_servers_of_a_home(
    homes: tuple[Home, Home], study_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, other = homes
    monkeypatch.setenv("ANITUNE_HOME", str(home.path))
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "")  # signing in sets it
    home.anitune("study", "create", study_file)  # in SQLite, as nothing else is set up

    started = home.anitune("up", "--json")
    servers = json.loads(started.stdout)
    assert servers["started"]
    (line,) = (line for line in started.stderr.splitlines() if "SQLite" in line)
    assert "studies that this home has in SQLite stay there and are not moved" in line
    again = home.anitune("up", ANITUNE_TRACKING_URI="http://elsewhere:5000")
    assert again.stdout.startswith("Already running.\n")
    for value in servers.values():
        assert str(value) in again.stdout or value is True
    assert "ANITUNE_TRACKING_URI is set, and takes precedence over these servers" in again.stderr
    assert "stay there" not in again.stderr
    tracking = servers["tracking_uri"]
    assert_only_the_secret_opens(home, servers, again.stdout)

    assert home.json("study", "list") == []
    home.anitune("study", "run", study_file)
    record, shown = home.record(), mlflow_shows(home, tracking)
    assert record[0]["trials"]["complete"] == 2
    assert_whole(shown)

    outlives_it = MlflowRuns(tracking, home.path / "mlartifacts")  # as a relay does
    experiment = outlives_it.experiment("tiny", {})
    home.kill_servers()
    lost = home.anitune("study", "show", "tiny", code=1)
    (line,) = lost.stderr.splitlines()
    assert line.endswith("; start it with `anitune up`")
    restarted = home.json("up")
    assert restarted["started"]
    assert restarted["tracking_uri"] == tracking
    assert restarted["storage_url"] == servers["storage_url"]
    assert restarted["mlflow_link"] != servers["mlflow_link"], "each start has a secret of its own"
    assert httpx.get(servers["mlflow_link"], trust_env=False).status_code == 401
    assert outlives_it.experiment("tiny", {}) == experiment
    assert home.record() == record
    assert mlflow_shows(home, tracking) == shown

    backup = tmp_path / "backup"
    home.do_as_the_page_says("backup up", backup)
    home.kill_servers()
    home.destroy()
    other.do_as_the_page_says("restore up", backup)
    assert other.record() == record
    assert mlflow_shows(other, other.json("up")["tracking_uri"]) == shown

    assert other.anitune("down").stdout == "Stopped. Start them again with: anitune up\n"
    assert other.postgresql.pid() is None
    assert other.anitune("down").stdout == "No servers are running.\n"


def test_a_home_with_sqlite(homes: tuple[Home, Home], study_file: str, tmp_path: Path) -> None:
    home, other = homes
    home.anitune("study", "run", study_file)
    record, shown = home.record(), mlflow_shows(home, f"sqlite:///{home.path}/mlflow.db")
    assert_whole(shown)

    backup = tmp_path / "backup"
    home.do_as_the_page_says("backup sqlite", backup)
    home.destroy()
    other.do_as_the_page_says("restore sqlite", backup)

    (values, weights), (known, known_weights) = other.record(), record
    for row in (*values["rows"], *known["rows"]):
        del row["mlflow_run_id"]  # MLflow was made anew
    assert (values, weights) == (known, known_weights)
    assert mlflow_shows(other, f"sqlite:///{other.path}/mlflow.db") == shown


def test_files_that_come_and_go_do_not_end_a_backup(homes: tuple[Home, Home], tmp_path: Path) -> None:
    home, _ = homes
    home.anitune("study", "list")
    trial, artifacts = home.path / "trials" / "tiny" / "00000", home.path / "artifacts"
    artifacts.mkdir()
    for number in range(2000):
        (artifacts / f"{number:04d}").write_bytes(b"kept")
    for number in range(200):
        (trial / f"attempt-{number}").mkdir(parents=True)
        (trial / f"attempt-{number}" / "checkpoint").write_bytes(b"state")
    done = Event()

    def work() -> None:
        while not done.is_set():
            for number in range(200):
                (artifacts / f".incoming-{number}").touch()
                (trial / f"attempt-{number}").rename(trial / f"moved-{number}")
            for number in range(200):
                (artifacts / f".incoming-{number}").unlink()
                (trial / f"moved-{number}").rename(trial / f"attempt-{number}")

    worker = Thread(target=work)
    worker.start()
    try:
        home.do_as_the_page_says("backup sqlite", tmp_path / "backup")
    finally:
        done.set()
        worker.join(60)
    assert not worker.is_alive(), "the writer does not end"
    with tarfile.open(tmp_path / "backup" / "files.tar") as files:
        assert {f"artifacts/{number:04d}" for number in range(2000)} <= set(files.getnames())
