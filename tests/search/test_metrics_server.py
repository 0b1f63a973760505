from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from search.errors import SearchError
from search.work.metrics import Counting, serve_metrics
from search.work.worker import SilentWatcher, TrialNews
from storage.trials.queue import LEASE_SECONDS


class Sign:
    """Of a worker that the database has heard of just now."""

    silent = 0.0


class Seeing(SilentWatcher):
    """A watcher that remembers what it is told."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def begun(self, news: TrialNews, progress: object) -> None:
        self.seen.append(("begun", news.number))

    def epoch(self, number: int, done: int) -> None:
        self.seen.append(("epoch", number, done))

    def ended(self, news: TrialNews, progress: object) -> None:
        self.seen.append(("ended", news.number))


NEWS = TrialNews("tiny", 0, None, "384-8-1 silu", "running", planned_epochs=9)


@pytest.fixture
def sign() -> Sign:
    return Sign()


@pytest.fixture
def seeing() -> Seeing:
    return Seeing()


@pytest.fixture
def port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture
def counting(sign: Sign, seeing: Seeing, port: int) -> Iterator[Counting]:
    with serve_metrics("127.0.0.1", port, seeing, sign) as served:  # type: ignore[arg-type]
        yield served


def values(port: int) -> dict[str, float]:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_what_a_worker_does_is_counted_and_passed_on(counting: Counting, seeing: Seeing, port: int) -> None:
    assert values(port)["anitune_epochs_total"] == 0
    counting.begun(NEWS, None)  # type: ignore[arg-type]
    counting.epoch(0, 0)  # before its first one
    counting.epoch(0, 1)
    counting.epoch(0, 2)
    counting.begun(replace(NEWS, number=1), None)  # type: ignore[arg-type]
    counting.epoch(1, 40)  # it goes on where another worker left it
    counting.epoch(1, 41)
    counting.epoch(1, 42)
    assert values(port)["anitune_epochs_total"] == 4
    assert values(port)["anitune_trials_in_hand"] == 2
    counting.ended(replace(NEWS, state="pruned"), None)  # type: ignore[arg-type]
    found = values(port)
    assert found["anitune_trials_in_hand"] == 1
    assert found['anitune_trials_total{state="pruned"}'] == 1
    assert found['anitune_trials_total{state="complete"}'] == 0
    assert seeing.seen == [
        ("begun", 0),
        ("epoch", 0, 0),
        ("epoch", 0, 1),
        ("epoch", 0, 2),
        ("begun", 1),
        ("epoch", 1, 40),
        ("epoch", 1, 41),
        ("epoch", 1, 42),
        ("ended", 0),
    ]


@pytest.mark.usefixtures("counting")
def test_health_is_whether_the_database_hears_of_the_worker(sign: Sign, port: int) -> None:
    answer = httpx.get(f"http://127.0.0.1:{port}/health")
    assert (answer.status_code, answer.json()) == (200, {"well": True, "silent_seconds": 0.0})
    sign.silent = LEASE_SECONDS + 1
    answer = httpx.get(f"http://127.0.0.1:{port}/health")
    assert (answer.status_code, answer.json()["well"]) == (503, False)
    assert values(port)["anitune_silent_seconds"] == LEASE_SECONDS + 1
    assert httpx.get(f"http://127.0.0.1:{port}/elsewhere").status_code == 404


@pytest.mark.usefixtures("counting")
def test_a_port_that_is_taken_is_one_line(sign: Sign, seeing: Seeing, port: int) -> None:
    with (
        pytest.raises(SearchError, match=f"--metrics-port {port}: cannot listen"),
        serve_metrics("127.0.0.1", port, seeing, sign),  # type: ignore[arg-type]
    ):
        pass
