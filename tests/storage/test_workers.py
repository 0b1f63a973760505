from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from sqlalchemy import Connection, func, select, update

from storage.database import Database
from storage.errors import DatabaseUnreachableError
from storage.records.tables import workers
from storage.studies import Study
from storage.tracking.outbox import MetricRow
from storage.trials.attempts import Attempt
from storage.trials.queue import WorkerInfo, claim_trial
from storage.workers import EPOCH_SECONDS, RETENTION_SECONDS, TrialInHand, WorkerHeartbeat, live_workers
from tests.leases import let_leases_run_out


def train(database: Database, study: Study, worker: WorkerInfo, epochs: int) -> Attempt:
    """A trial in hand, with so many epochs of two seconds each."""
    claim = claim_trial(database, study, worker)
    assert claim is not None
    attempt = Attempt(database, study, claim)
    attempt.record_config({"epochs": 10}, {}, planned_epochs=10)
    attempt.record_metrics([MetricRow(EPOCH_SECONDS, n, 2.0, n) for n in range(1, epochs + 1)])
    return attempt


def test_a_worker_is_seen_while_it_runs(database: Database, worker: WorkerInfo) -> None:
    with WorkerHeartbeat(database, worker, "widths", gpu="3"):
        (seen,) = live_workers(database)
        assert (seen.name, seen.host, seen.pid, seen.device) == ("w1", "alpha", 17, "cpu")
        assert (seen.gpu, seen.study, seen.trials, seen.structures_per_second) == ("3", "widths", (), None)
        assert 0 <= seen.silent < 30
    assert live_workers(database) == []


def test_a_worker_shows_its_trials_and_its_speed(
    database: Database, make_study: Callable[..., Study], worker: WorkerInfo
) -> None:
    study, other = make_study(trials=5), replace(worker, name="w2")
    with WorkerHeartbeat(database, worker, "widths") as sign, WorkerHeartbeat(database, other, None):
        sign.set_structures(96)
        train(database, study, worker, epochs=4)
        train(database, study, worker, epochs=0)
        train(database, study, other, epochs=2)
        train(database, study, other, epochs=10).finish("complete", value=1.0)
        first, second = live_workers(database)
        assert first.trials == (TrialInHand("widths", 0, 1, 4, 10), TrialInHand("widths", 1, 1, 0, 10))
        assert first.structures_per_second == 48.0
        assert second.trials == (TrialInHand("widths", 2, 1, 2, 10),)
        assert second.structures_per_second is None  # nobody said how many structures an epoch has


def test_a_trial_that_was_taken_over_counts_the_epochs_of_all_its_attempts(
    database: Database, make_study: Callable[..., Study], worker: WorkerInfo
) -> None:
    study = make_study(trials=1)
    train(database, study, replace(worker, name="w0"), epochs=4).hand_back("preempted")
    with WorkerHeartbeat(database, worker, "widths"):
        assert claim_trial(database, study, worker) is not None
        (seen,) = live_workers(database)
        assert seen.trials == (TrialInHand("widths", 0, 2, 4, 10),)


def test_a_trial_whose_lease_has_lapsed_is_in_nobodys_hand(
    database: Database, make_study: Callable[..., Study], worker: WorkerInfo
) -> None:
    with WorkerHeartbeat(database, worker, "widths"):
        train(database, make_study(trials=1), worker, epochs=1)
        let_leases_run_out(database)
        assert live_workers(database)[0].trials == ()


def test_a_worker_without_heartbeats_is_not_shown_and_forgotten_in_time(
    database: Database, worker: WorkerInfo
) -> None:
    def count(connection: Connection) -> int:
        return connection.execute(select(func.count()).select_from(workers)).scalar_one()

    killed = WorkerHeartbeat(database, worker, "widths")
    killed.__enter__()
    with database.writing() as connection:
        renewed = workers.c.renewed_at - RETENTION_SECONDS - 1
        connection.execute(update(workers).values(lease_until=renewed, renewed_at=renewed))
    assert live_workers(database) == []
    with WorkerHeartbeat(database, worker, "widths"), database.reading() as connection:
        assert count(connection) == 1
    killed.__exit__()


def test_a_heartbeat_is_renewed_also_after_the_database_was_away(
    database: Database, worker: WorkerInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def away() -> Iterator[Connection]:
        raise DatabaseUnreachableError
        yield

    with WorkerHeartbeat(database, worker, "widths", seconds=0.4) as sign:
        with monkeypatch.context() as patch:
            patch.setattr(database, "writing", away)
            time.sleep(0.6)
            assert sign.silent > 0.4
            assert live_workers(database) == []
        deadline = time.monotonic() + 30
        while not live_workers(database):
            assert time.monotonic() < deadline, "the sign of life is not renewed"
            time.sleep(0.05)
        assert sign.silent < 0.4
