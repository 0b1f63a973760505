from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url, text

from storage import connections
from storage.database import Database, open_database
from storage.errors import DatabaseBusyError
from storage.settings import Settings
from storage.studies import Study
from storage.tracking.outbox import MetricRow
from storage.trials.attempts import Attempt
from storage.trials.heartbeat import Heartbeat
from storage.trials.queue import WorkerInfo, claim_trial
from storage.workers import WorkerHeartbeat

pytestmark = pytest.mark.parametrize("settings", ["postgresql"], indirect=True)


@pytest.fixture
def connected(settings: Settings, postgresql_server: str) -> Iterator[Callable[[], int]]:
    """Counts the connections to the database of the test."""
    name = make_url(settings.storage_url).database
    with psycopg.connect(postgresql_server, autocommit=True) as connection:

        def count() -> int:
            query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
            found = connection.execute(query, (name,)).fetchone()
            assert found is not None
            return int(found[0])

        yield count


def wait_until_none(count: Callable[[], int], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while count():
        assert time.monotonic() < until, "a connection stays"
        time.sleep(0.05)


def test_a_worker_has_none_while_it_trains(
    database: Database,
    make_study: Callable[..., Study],
    worker: WorkerInfo,
    connected: Callable[[], int],
) -> None:
    study = make_study()
    with WorkerHeartbeat(database, worker, "widths"):
        claim = claim_trial(database, study, worker)
        assert claim is not None
        attempt = Attempt(database, study, claim)
        with Heartbeat(attempt):
            attempt.record_config({"hidden": [8]}, {"layers": 1}, planned_epochs=2)
            attempt.rung(1, 2.0, [MetricRow("val/loss", 1, 0.5, 1_000)], lambda trial: False)
            assert 1 <= connected() <= 2  # of our tables, and of Optuna's
            wait_until_none(connected)
            attempt.renew()
            assert connected() == 1
            wait_until_none(connected)
        attempt.finish("complete", 1.0)
    wait_until_none(connected)


def test_what_comes_at_once_takes_one_connection(database: Database) -> None:
    def backend() -> int:
        with database.reading() as connection:
            return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())

    first = backend()
    assert [backend() for _ in range(20)] == [first] * 20
    time.sleep(3 * connections.IDLE_SECONDS)
    assert backend() != first


def test_who_uses_one_all_the_time_gives_it_back_as_well(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LONGEST_SECONDS", 0.3)
    backends = set()
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        with database.reading() as connection:
            backends.add(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
    assert len(backends) > 2


def test_threads_keep_one_together(database: Database, connected: Callable[[], int]) -> None:
    together = threading.Barrier(7, timeout=10)

    def work() -> None:
        with database.reading():
            together.wait(60)
            together.wait(60)

    wait_until_none(connected)
    with ThreadPoolExecutor(6) as pool:
        working = [pool.submit(work) for _ in range(6)]
        together.wait(60)
        assert connected() == 6
        together.wait(60)
        for each in working:
            each.result()
    wait_until_none(connected)


def test_a_connection_that_broke_while_it_was_kept_is_not_used(
    database: Database, postgresql_server: str
) -> None:
    with database.reading() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with psycopg.connect(postgresql_server, autocommit=True) as server:
        server.execute("SELECT pg_terminate_backend(%s)", (pid,))
    with database.reading() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


@pytest.fixture
def limited(database: Database, postgresql_server: str, tmp_path: Path) -> Iterator[Settings]:
    """The database, for a role that may have one connection."""
    url = database.engine.url
    with psycopg.connect(postgresql_server, autocommit=True) as server:
        server.execute("DROP ROLE IF EXISTS anitune_test_limited")
        server.execute("CREATE ROLE anitune_test_limited LOGIN CONNECTION LIMIT 1 PASSWORD 'x'")
    name = url.database
    owner = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO anitune_test_limited")
        connection.execute("GRANT ALL ON SCHEMA public TO anitune_test_limited")
    as_role = url.set(username="anitune_test_limited", password="x").render_as_string(hide_password=False)
    yield Settings(tmp_path, as_role, f"sqlite:///{tmp_path}/mlflow.db")
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute("DROP OWNED BY anitune_test_limited")
    with psycopg.connect(postgresql_server, autocommit=True) as server:
        server.execute("DROP ROLE anitune_test_limited")
    assert name


def test_where_none_is_free_it_is_waited_for(limited: Settings) -> None:
    with open_database(limited) as one, open_database(limited) as other, ThreadPoolExecutor(1) as pool:

        def ask() -> int:
            with other.reading() as connection:
                return int(connection.execute(text("SELECT 1")).scalar_one())

        with one.reading():
            waiting = pool.submit(ask)
            time.sleep(0.5)
            assert not waiting.done()
        assert waiting.result(timeout=10) == 1


def test_for_so_long_and_then_it_is_said(limited: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_database(limited) as one, open_database(limited) as other, one.reading():
        monkeypatch.setattr(connections, "PATIENCE", 0.5)
        with pytest.raises(DatabaseBusyError, match="has no free connection") as raised, other.reading():
            pass
        assert "raise its max_connections" in str(raised.value)
        assert "anitune up" not in str(raised.value)
        with pytest.raises(DatabaseBusyError, match="no free connection"), other.plain_errors():
            other.optuna.get_all_studies()
