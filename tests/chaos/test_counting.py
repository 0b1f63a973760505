"""Chaos counts a fault only if it had its effect."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from storage.database import Database
from storage.records.tables import attempts
from storage.studies import Budget, Study, create_study
from storage.tracking.outbox import MetricRow
from storage.trials.attempts import Attempt
from storage.trials.queue import Claim, WorkerInfo, claim_trial
from tests.chaos.fleet import MET_FULL_DISK, Fleet
from tests.chaos.paused_workers import DRAIN_SECONDS, LONGEST_PAUSE, PausedWorkers
from tests.chaos.plan import Kind, short_plan
from tests.chaos.report import ChaosReport

#: A worker that does nothing until SIGTERM; if it is given words, it prints them and exits with 1.
IDLE_WORKER = """#!/bin/sh
trap 'exit 143' TERM
echo "$WORDS"
case "$WORDS" in "") while :; do sleep 0.05; done;; *) exit 1;; esac
"""


@pytest.fixture
def study(database: Database) -> Study:
    return create_study(database, "chaos", {"sampler": "random"}, Budget(trials=1))


@pytest.fixture
def executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "worker"
    file.write_text(IDLE_WORKER)
    file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(file))
    return file


def claim(study: Study, pid: int, lease: float = 60) -> Claim:
    worker = WorkerInfo(name=f"w{pid}", host="alpha", pid=pid, device="cpu", versions={})
    claimed = claim_trial(study.database, study, worker, lease)
    assert claimed is not None
    return claimed


def one_worker(study: Study, tmp_path: Path, words: str = "") -> tuple[Fleet, int]:
    fleet = Fleet(study, 1, tmp_path / "logs", {"WORDS": words})
    fleet.fill()
    (pid,) = fleet._workers
    time.sleep(0.3)  # until it handles signals
    return fleet, pid


def reap(fleet: Fleet) -> None:
    for _ in range(100):
        fleet.reap()
        if not fleet.size:
            return
        time.sleep(0.05)
    raise AssertionError("the worker did not end")


@pytest.mark.usefixtures("executable")
@pytest.mark.parametrize("kind", ["kill", "terminate"])
def test_a_signal_counts_when_a_worker_ended_by_it(study: Study, tmp_path: Path, kind: Kind) -> None:
    fleet, pid = one_worker(study, tmp_path)
    claim(study, pid)
    assert fleet.choose(random.Random(1)) == pid
    fleet.hurt(kind, pid)
    assert fleet.choose(random.Random(1)) is None
    reap(fleet)
    assert fleet.reached == {kind: 1}
    assert fleet.take_missed() == []


@pytest.mark.usefixtures("executable")
@pytest.mark.parametrize("kind", ["kill", "terminate", "full disk"])
def test_what_meets_a_dead_worker_counts_nothing_and_comes_again(
    study: Study, tmp_path: Path, kind: Kind
) -> None:
    fleet, pid = one_worker(study, tmp_path, words="gave up")
    fleet.hurt(kind, pid)
    reap(fleet)
    assert fleet.reached == {}
    assert (fleet.take_missed(), fleet.take_missed()) == ([kind], [])
    assert fleet.last_words == ["gave up"]


@pytest.mark.usefixtures("executable")
def test_a_full_disk_counts_when_a_checkpoint_met_it(study: Study, tmp_path: Path) -> None:
    fleet, pid = one_worker(study, tmp_path, words=MET_FULL_DISK)
    fleet.hurt("full disk", pid)
    reap(fleet)
    assert (fleet.reached, fleet.take_missed()) == ({"full disk": 1}, [])


@pytest.fixture
def paused(
    study: Study, tmp_path: Path, executable: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Fleet, PausedWorkers, int]]:
    monkeypatch.setattr("tests.chaos.paused_workers.DRAIN_SECONDS", 0.05)
    fleet, pid = one_worker(study, tmp_path)
    yield fleet, PausedWorkers(study, fleet), pid
    fleet.end()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_paused_worker_is_resumed_and_counted_once_its_trial_was_taken_over(
    study: Study, paused: tuple[Fleet, PausedWorkers, int]
) -> None:
    _, paused_workers, pid = paused
    lost = Attempt(study.database, study, claim(study, pid))
    lost.record_config({"width": 8}, {"width": 8}, planned_epochs=2)
    lost.record_metrics([MetricRow("val_mae", 1, 2.0, 1)])
    paused_workers.stop(pid)
    time.sleep(0.1)
    paused_workers.wake()
    assert (len(paused_workers), paused_workers.overtaken, state(pid)) == (1, 0, "T")

    with study.database.writing() as connection:
        connection.execute(update(attempts).values(lease_until=0.0))
    paused_workers.wake()
    assert len(paused_workers) == 1, "its lease is over, and nobody has its trial"

    taker = Attempt(study.database, study, claim(study, os.getpid()))
    taker.record_metrics([MetricRow("val_mae", 2, 1.0, 2)])
    paused_workers.wake()
    assert (len(paused_workers), paused_workers.overtaken, paused_workers.take_missed()) == (0, 1, 0)
    assert state(pid) != "T"
    assert paused_workers.written_since() == 0
    with study.database.writing() as connection:  # as if the fencing token were not checked
        connection.execute(update(attempts).where(attempts.c.attempt == 1).values(last_epoch=2))
    assert paused_workers.written_since() == 1


def test_a_paused_worker_whose_trial_had_ended_counts_nothing(
    study: Study, paused: tuple[Fleet, PausedWorkers, int]
) -> None:
    _, paused_workers, pid = paused
    attempt = Attempt(study.database, study, claim(study, pid))
    paused_workers.stop(pid)
    attempt.finish("complete", value=1.0)
    time.sleep(0.1)
    paused_workers.wake()
    assert (len(paused_workers), paused_workers.overtaken, paused_workers.take_missed()) == (0, 0, 1)
    assert state(pid) != "T"


def test_a_paused_worker_that_nobody_relieves_is_resumed_and_counts_nothing(
    study: Study, paused: tuple[Fleet, PausedWorkers, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.chaos.paused_workers.LONGEST_PAUSE", 0.05)
    _, paused_workers, pid = paused
    claim(study, pid)
    paused_workers.stop(pid)
    time.sleep(0.1)
    paused_workers.wake()
    assert (len(paused_workers), paused_workers.overtaken, paused_workers.take_missed()) == (0, 0, 1)
    assert LONGEST_PAUSE > DRAIN_SECONDS


def test_a_worker_that_had_ended_was_not_paused(
    study: Study, paused: tuple[Fleet, PausedWorkers, int]
) -> None:
    _, paused_workers, pid = paused
    claim(study, pid)
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    paused_workers.stop(pid)
    time.sleep(0.1)
    paused_workers.wake()
    assert (len(paused_workers), paused_workers.overtaken, paused_workers.take_missed()) == (0, 0, 1)


def report(**faults: int) -> ChaosReport:
    counts = {str(kind): count for kind, count in short_plan(1, "front").counts.items()}
    return ChaosReport(
        seed=1,
        study="front",
        seconds=60.0,
        faults=counts | {kind.replace("_", " "): count for kind, count in faults.items()},
        required=counts,
        repeated={"kill": 2},
        worker_ends={"0": 2},
        last_words=[],
        trials={"complete": 8},
        attempts=8,
        metrics=800,
        trials_lost=0,
        trials_duplicated=0,
        metrics_lost=0,
        overshoot=0,
        restarted=0,
        differing=[],
        stale_checkpoints=0,
        awakened=0,
        woken_wrote=0,
        differences=[],
        broken_rules=[],
        differing_features=[],
        ended_without_gain=False,
    )


def test_a_report_states_what_was_reached_and_required() -> None:
    assert report().clean
    text = "\n".join(report().lines())
    assert "     1  workers killed (SIGKILL), of 1 required (2 more had no effect)\n" in text
    assert "MISSING" not in text


@pytest.mark.parametrize("kind", ["kill", "stop", "full_disk"])
def test_a_run_without_a_required_fault_fails(kind: str) -> None:
    less = report(**{kind: 0})
    assert not less.clean
    assert less.missing_faults == {kind.replace("_", " "): 1}
    assert any(line.startswith("  MISSING: 1 x ") for line in less.lines())


def test_a_run_whose_woken_workers_wrote_fails() -> None:
    assert not replace(report(), woken_wrote=1).clean
