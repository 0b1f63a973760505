"""One PostgreSQL as it is installed, with 100 connections, serves 120 workers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import func, select
from tenacity import Retrying, stop_after_delay, wait_random_exponential

from storage.database import open_database
from storage.records.tables import attempts, metrics, outbox, trials
from storage.settings import Settings
from storage.studies import Budget, create_study, open_study
from storage.tracking.outbox import MetricRow
from storage.trials.attempts import PASSING, PATIENCE, Attempt
from storage.trials.heartbeat import Heartbeat
from storage.trials.queue import WorkerInfo, claim_trial
from storage.workers import WorkerHeartbeat

WORKERS, TRIALS, EPOCHS = 120, 180, 3
# As `patiently` of search.work.worker, which imports torch: a claim can wait too long for those before it.
PATIENTLY = Retrying(
    retry=PASSING,
    wait=wait_random_exponential(multiplier=0.1, max=10),
    stop=stop_after_delay(PATIENCE),
    reraise=True,
)
EPOCH_SECONDS = (2.0, 5.0)
LIMIT = 170.0  # s, for all of it; on two idle cores it takes less than a minute


def work(settings: Settings, number: int) -> None:
    """A worker that trains nothing: claims, signs of life, metrics, rungs and ends."""
    chance = random.Random(number)
    worker = WorkerInfo(f"w{number}", "here", os.getpid(), "cpu", {})
    with open_database(settings) as database:
        study = open_study(database, "many")
        with WorkerHeartbeat(database, worker, study.name):
            while (claim := PATIENTLY(claim_trial, database, study, worker)) is not None:
                attempt = Attempt(database, study, claim)
                with Heartbeat(attempt):
                    attempt.record_config({"hidden": [8]}, {"layers": 1}, planned_epochs=EPOCHS)
                    for epoch in range(1, EPOCHS):
                        time.sleep(chance.uniform(*EPOCH_SECONDS))
                        attempt.record_metrics([MetricRow("val/loss", epoch, 1.0 / epoch, 1_000 * epoch)])
                    attempt.rung(
                        EPOCHS, 1.0, [MetricRow("val/loss", EPOCHS, 0.1, 9_000)], lambda trial: False
                    )
                    attempt.finish("complete", value=chance.random())
    assert "torch" not in sys.modules


def main(home: str, url: str) -> None:
    """Run all workers, as processes that share what was imported; ends with 1 if one of them fails."""
    settings = Settings(Path(home), url, f"sqlite:///{home}/mlflow.db")
    open_database(settings).close()  # what this makes once, the workers have from the start
    children = []
    for number in range(WORKERS):
        if (child := os.fork()) == 0:
            try:
                work(settings, number)
            except BaseException as error:
                print(f"w{number}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(any(codes))


class Watch:
    """Counts the connections that workers have, until the block ends."""

    def __init__(self, server: str, database: str) -> None:
        self.counts: list[int] = []
        self._server, self._database = server, database
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._count)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _count(self) -> None:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        with psycopg.connect(self._server, autocommit=True) as connection:
            while not self._ended.wait(0.2):
                row = connection.execute(query, (self._database,)).fetchone()
                assert row is not None
                self.counts.append(row[0])


@pytest.fixture
def server(postgresql_server: str) -> str:
    with psycopg.connect(postgresql_server) as connection:
        found = connection.execute("SHOW max_connections").fetchone()
    if found != ("100",):
        pytest.skip(f"this PostgreSQL has another limit than the usual one: {found}")
    return postgresql_server


@pytest.mark.slow
def test_120_workers_share_100_connections(
    server: str, postgresql_url: str, tmp_path: Path, print_report: object
) -> None:
    settings = Settings(tmp_path, postgresql_url, f"sqlite:///{tmp_path}/mlflow.db")
    with open_database(settings) as database:
        study = create_study(database, "many", {"sampler": "random"}, Budget(trials=TRIALS))
        name = str(database.engine.url.database)
        began = time.monotonic()
        with Watch(server, name) as watch:
            workers = subprocess.Popen(
                [sys.executable, __file__, str(tmp_path), postgresql_url],
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                start_new_session=True,
            )
            try:
                _, said = workers.communicate(timeout=LIMIT)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(workers.pid, signal.SIGKILL)
                workers.wait(30)
        seconds = time.monotonic() - began
        assert (workers.returncode, said) == (0, "")
        with database.reading() as connection:
            states = dict(
                connection.execute(select(trials.c.state, func.count()).group_by(trials.c.state)).all()
            )
            tried = connection.execute(select(func.count()).select_from(attempts)).scalar_one()
            told = connection.execute(select(func.count()).where(trials.c.told)).scalar_one()
            values = connection.execute(select(func.count()).select_from(metrics)).scalar_one()
            rows = connection.execute(select(func.count()).select_from(outbox)).scalar_one()
        assert states == {"complete": TRIALS}
        assert tried == told == TRIALS
        assert values == TRIALS * EPOCHS
        assert rows > TRIALS
        assert len(study.optuna.get_trials(deepcopy=False)) == TRIALS
    print_report(  # type: ignore[operator]
        [
            f"{WORKERS} workers, {TRIALS} trials of {EPOCHS} epochs in {seconds:.0f} s, nothing failed;"
            f" connections: {max(watch.counts)} at most,"
            f" {sorted(watch.counts)[len(watch.counts) // 2]} in the median"
        ]
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
