"""Two machines that share a PostgreSQL and no folder: one is lost, the other loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import select

from search.work.reproduce import recorded_trial
from storage.blobs.place import open_blobs
from storage.database import Database, open_database
from storage.records.tables import attempts, checkpoints, metrics, relays
from storage.settings import Settings
from storage.studies import open_study
from storage.tracking.mlflow_runs import MlflowRuns
from storage.trials.views import trial_rows
from tests.chaos.reproduce import differing
from tests.leases import let_leases_run_out

# MLflow uses what is deprecated elsewhere; our own warnings stay errors.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")

EPOCHS = 80
STUDY = """
name: tiny
data: {{files: [{data}]}}
training: {{epochs: {epochs}, hidden: [8], batch_size: 16, dropout: 0.1, device: cpu, checkpoint_seconds: 0}}
pruner: {{kind: none}}
limits: {{trials: 1}}
"""


class Machines:
    """Homes beside each other, and real processes that work in them."""

    def __init__(self, folder: Path, database: str) -> None:
        self.one, self.two = (
            Settings(folder / home, database, f"sqlite:///{folder / 'mlflow.db'}", "database")
            for home in ("home-1", "home-2")
        )

    def start(self, settings: Settings, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "search.cli.main", *arguments],
            env={**os.environ, **settings.environment(), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, settings: Settings, *arguments: str) -> str:
        process = self.start(settings, *arguments)
        out, said = process.communicate(timeout=180)
        assert process.returncode == 0, out + said
        return out


def end_relay(database: Database) -> None:
    with database.reading() as connection:
        pids = connection.execute(select(relays.c.pid)).scalars().all()
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def machines(tmp_path: Path, postgresql_url: str) -> Machines:
    return Machines(tmp_path, postgresql_url)


@pytest.fixture
def database(machines: Machines) -> Iterator[Database]:
    """As the second machine sees it."""
    with open_database(machines.two) as opened:
        yield opened
        end_relay(opened)


@pytest.mark.slow
def test_a_machine_without_a_shared_folder_goes_on_where_the_lost_one_was(
    machines: Machines, database: Database, tmp_path: Path, data_file: Path
) -> None:
    # MLflow's tables are there: a relay that is killed while MLflow makes them leaves half of them.
    MlflowRuns(machines.one.tracking_uri, machines.one.home / "mlartifacts")
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(data=data_file, epochs=EPOCHS))
    worker = machines.start(machines.one, "study", "run", str(file), "--pack", "1")
    deadline = time.monotonic() + 120
    while not kept_epochs(database):
        assert worker.poll() is None, worker.communicate(timeout=60)
        assert time.monotonic() < deadline, "no checkpoint is kept in the database"
        time.sleep(0.02)
    worker.send_signal(signal.SIGKILL)
    worker.communicate(timeout=60)
    end_relay(database)
    # The machine is gone, but for what MLflow has of it.
    for path in machines.one.home.iterdir():
        if path.name != "mlartifacts":
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    # Nobody waits for the minute after which a silent worker has lost its trials.
    let_leases_run_out(database)
    machines.run(machines.two, "worker", "tiny", "--pack", "1")

    with database.reading() as connection:
        tried = connection.execute(select(attempts).order_by(attempts.c.attempt)).all()
        second = connection.execute(select(metrics.c.step).where(metrics.c.attempt == 2)).scalars().all()
    reached = tried[0].last_epoch
    assert 0 < reached < EPOCHS
    # It went on at the next epoch; none was trained twice.
    assert [(row.epochs, row.last_epoch) for row in tried] == [(reached, reached), (EPOCHS - reached, EPOCHS)]
    assert set(second) == set(range(reached + 1, EPOCHS + 1))
    assert kept_epochs(database) == []

    study = open_study(database, "tiny")
    (trial,) = trial_rows(database, study)
    assert trial.state == "complete"
    assert trial.config is not None
    digests = {file.path: file.digest for file in trial.artifacts}
    recorded = recorded_trial(database, study, [trial], 0)
    assert differing(study.config, machines.two.features, [recorded], processes=1) == []

    machines.run(machines.two, "sync", "tiny")
    verified = json.loads(machines.run(machines.two, "study", "verify", "tiny", "--json"))
    assert (verified["agree"], verified["differences"]) == (True, [])
    assert verified["artifacts"] == len(digests) > 3
    assert {blob.name for blob in open_blobs(database).stored()} >= set(digests.values())


def kept_epochs(database: Database) -> list[int]:
    with database.reading() as connection:
        return list(connection.execute(select(checkpoints.c.epoch)).scalars())
