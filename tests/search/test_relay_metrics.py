"""What a monitor is told of a relay that delivers to a real MLflow store."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from search.work.relay_metrics import serve_relay_metrics
from storage.database import Database
from storage.records.tables import outbox
from storage.studies import Budget, Study, create_study
from storage.tracking.health import RelayHealth
from storage.tracking.lease import LEASE_SECONDS, take_lease


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def values(port: int) -> dict[str, float]:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=60).text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("anitune_relay_")]
    return {name.removeprefix("anitune_relay_").split("{")[0]: float(value) for name, value in lines}


def get_health(port: int) -> tuple[int, dict[str, Any]]:
    answer = httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False, timeout=60)
    return answer.status_code, answer.json()


@pytest.fixture
def study(database: Database) -> Study:
    study = create_study(database, "tiny", {"seed": 7}, Budget(trials=1))
    study.set_facts({"data": "5f3a"})
    return study


def test_a_relay_tells_what_it_does_and_whether_it_may(study: Study) -> None:
    health, port = RelayHealth(), free_port()
    with serve_relay_metrics("127.0.0.1", port, study, health):
        assert get_health(port)[0] == 503, "it has no lease yet"
        found = values(port)
        assert (found["waiting_rows"], found["parked_rows"]) == (2, 0)
        assert "delivery_seconds" not in found

        health.lease = take_lease(study)
        assert health.lease is not None
        status, said = get_health(port)
        assert (status, said["well"]) == (200, True)
        with health.lease.writing() as connection:
            connection.execute(update(outbox).where(outbox.c.id == 1).values(rejected="refused"))
        health.failed()
        health.passed(5)
        health.passed(0)
        found = values(port)
        assert (found["waiting_rows"], found["parked_rows"]) == (1, 1)
        assert (found["delivered_rows_total"], found["errors_total"]) == (5, 1)
        assert 0 <= found["pass_seconds"] <= found["delivery_seconds"] < 5

        health.lease.renewed -= LEASE_SECONDS + 1
        status, said = get_health(port)
        assert (status, said["well"]) == (503, False)
        assert said["lease_seconds"] > LEASE_SECONDS
        assert values(port)["lease_seconds"] > LEASE_SECONDS
        assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False, timeout=60).status_code == 404


def test_where_the_database_is_away_the_other_numbers_are_told(study: Study) -> None:
    health, port = RelayHealth(), free_port()
    with serve_relay_metrics("127.0.0.1", port, study, health):
        file = study.database.settings.home / "anitune.db"
        study.database.engine.dispose()
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("DROP TABLE anitune_outbox")
        found = values(port)
    assert found["delivered_rows_total"] == 0
    assert "waiting_rows" not in found


@pytest.mark.slow
def test_a_real_relay_serves_them_when_its_environment_says_so(study: Study) -> None:
    settings, port = study.database.settings, free_port()
    relay = subprocess.Popen(
        [sys.executable, "-m", "search.cli.main", "relay", "tiny"],
        env={**os.environ, **settings.environment(), "ANITUNE_RELAY_METRICS_PORT": str(port)},
        stderr=subprocess.PIPE,
        text=True,
    )

    def delivered() -> bool:
        assert relay.poll() is None, relay.communicate(timeout=60)
        try:
            return values(port)["delivered_rows_total"] == 2
        except httpx.ConnectError:
            return False

    try:
        until(delivered, 60)
        assert get_health(port)[1]["well"]
        found = values(port)
        assert (found["waiting_rows"], found["parked_rows"], found["errors_total"]) == (0, 0, 0)
        # Another study's relay on this machine has the same variable: it cannot be watched, and delivers.
        create_study(study.database, "other", {}, Budget(trials=1))
        second = subprocess.Popen(
            [sys.executable, "-m", "search.cli.main", "relay", "other"],
            env={**os.environ, **settings.environment(), "ANITUNE_RELAY_METRICS_PORT": str(port)},
            stderr=subprocess.PIPE,
            text=True,
        )
        said: list[str] = []
        assert second.stderr is not None
        reading = threading.Thread(target=lambda: said.extend(second.stderr or ()), daemon=True)
        reading.start()
        until(lambda: any("relay to" in line for line in said), 60)
        assert any(
            f"the metrics of this relay are not served: --metrics-port {port}: cannot" in line
            for line in said
        )
        second.terminate()
        second.wait(30)
        reading.join(5)
        second.stderr.close()
    finally:
        relay.terminate()
        _, told = relay.communicate(timeout=30)
    assert "relay ends, 0 rows left" in told


def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.1)
