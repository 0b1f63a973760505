from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from storage.database import Database
from storage.records.tables import attempts
from storage.studies import Study, summarize_study
from storage.tracking.outbox import MetricRow
from storage.trials.attempts import Attempt
from storage.trials.queue import WorkerInfo, claim_trial
from storage.trials.views import TrialRow, trial_row, trial_rows
from tests.leases import let_leases_run_out


def epochs(first: int, last: int) -> list[MetricRow]:
    return [
        MetricRow(key, step, 0.5, 1_000 * step) for step in range(first, last + 1) for key in ("loss", "mae")
    ]


def lasted(database: Database, attempt: Attempt, seconds: float) -> None:
    """Let a running attempt have begun some time ago, and shown its last sign of life just now."""
    with database.writing() as connection:
        connection.execute(
            update(attempts)
            .where(attempts.c.token == attempt.claim.token)
            .values(started_at=attempts.c.renewed_at - seconds)
        )


@pytest.fixture
def study(database: Database, make_study: Callable[..., Study], worker: WorkerInfo, tmp_path: Path) -> Study:
    """One trial in each state; of the complete ones number 4 is the best."""
    study = make_study(trials=6)

    def claim() -> Attempt:
        claimed = claim_trial(database, study, worker)
        assert claimed is not None
        attempt = Attempt(database, study, claimed)
        attempt.record_config({"epochs": 10}, {"width": 64}, planned_epochs=10, tags={"arch": "a"})
        return attempt

    complete, pruned, failed, running, best, handed_back = (claim() for _ in range(6))
    complete.record_metrics(epochs(1, 10))
    complete.finish("complete", value=2.0)
    pruned.record_metrics(epochs(1, 3))
    pruned.finish("pruned", value=1.0, reason="pruned at epoch 3")
    failed.record_metrics(epochs(1, 2))
    failed.finish("failed", reason="the loss was not finite")
    running.record_metrics(epochs(1, 5))
    plot = tmp_path / "loss.png"
    plot.write_bytes(b"12345")
    best.record_artifacts({"plots/loss.png": plot})
    best.record_metrics(epochs(1, 10))
    lasted(database, best, 30)
    best.finish("complete", value=1.5, summary={"parameters": 98.0}, tags={"best": "yes"})
    lasted(database, handed_back, 20)
    handed_back.record_metrics(epochs(1, 4))
    handed_back.hand_back("stopped by Ctrl-C")
    return study


def by_number(database: Database, study: Study) -> dict[int, TrialRow]:
    return {row.number: row for row in trial_rows(database, study)}


def test_the_rows_say_what_became_of_each_trial(database: Database, study: Study, worker: WorkerInfo) -> None:
    rows = trial_rows(database, study)

    assert [row.number for row in rows] == list(range(6))
    assert [row.state for row in rows] == [
        "complete",
        "pruned",
        "failed",
        "running",
        "complete",
        "interrupted",
    ]
    assert [row.value for row in rows] == [2.0, 1.0, None, None, 1.5, None]
    assert [row.epochs for row in rows] == [10, 3, 2, 5, 10, 4]
    assert [row.reason for row in rows][1:3] == ["pruned at epoch 3", "the loss was not finite"]
    best = rows[4]
    assert best.config == {"epochs": 10}
    assert best.params == {"width": 64}
    assert best.summary == {"parameters": 98.0}
    assert best.tags == {"arch": "a", "best": "yes"}
    assert best.worker == worker
    assert best.ended is not None
    assert [(file.path, file.size) for file in best.artifacts] == [("plots/loss.png", 5)]
    assert best.seconds == pytest.approx(30, abs=3)


def test_one_trial_is_read_as_among_all(database: Database, study: Study) -> None:
    for number, row in by_number(database, study).items():
        alone = trial_row(database, study, number)
        # What runs has lasted longer by now.
        assert replace(alone, seconds=row.seconds) == row


def test_a_trial_whose_worker_lost_its_heartbeat_is_shown_as_interrupted(
    database: Database, study: Study
) -> None:
    let_leases_run_out(database)
    assert by_number(database, study)[3].state == "interrupted"


def test_a_trial_in_two_attempts_counts_the_time_and_epochs_of_both(
    database: Database, study: Study, worker: WorkerInfo
) -> None:
    claim = claim_trial(database, study, replace(worker, name="w2"))
    assert claim is not None
    assert claim.number == 5
    second = Attempt(database, study, claim)
    second.record_metrics(epochs(3, 6))  # from the checkpoint of epoch 2
    second.record_metrics(epochs(6, 8))
    lasted(database, second, 40)
    second.finish("complete", value=3.0)

    row = by_number(database, study)[5]
    assert row.attempt == 2
    assert row.worker.name == "w2"
    assert row.epochs == 8
    assert row.trained_epochs == 4 + 6
    assert row.seconds == pytest.approx(60, abs=5)


def test_the_time_after_a_worker_died_is_not_counted(
    database: Database, study: Study, worker: WorkerInfo
) -> None:
    with database.writing() as connection:
        # It worked for 50 s and then was silent for 1000.
        connection.execute(
            update(attempts)
            .where(attempts.c.number == 3)
            .values(
                started_at=attempts.c.started_at - 1050,
                renewed_at=attempts.c.renewed_at - 1000,
                lease_until=attempts.c.lease_until - 1000,
            )
        )
    claims = [claim_trial(database, study, worker) for _ in range(2)]
    assert [claim and claim.number for claim in claims] == [3, 5]
    assert by_number(database, study)[3].seconds == pytest.approx(50, abs=5)


def test_the_summary_of_a_study(database: Database, study: Study) -> None:
    summary = summarize_study(database, study)

    assert summary.trials == {
        "running": 1,
        "interrupted": 1,
        "paused": 0,
        "complete": 2,
        "pruned": 1,
        "failed": 1,
    }
    assert (summary.best_number, summary.best_value) == (4, 1.5)
    assert summary.epochs == 10 + 3 + 2 + 5 + 10 + 4
    assert summary.epochs_saved == 7
    assert summary.seconds == pytest.approx(50, abs=10)
    assert summary.budget.trials == 6


def test_a_study_without_a_complete_trial_has_no_best(
    database: Database, make_study: Callable[..., Study]
) -> None:
    summary = summarize_study(database, make_study("new"))
    assert (summary.best_number, summary.best_value, summary.seconds, summary.epochs) == (None, None, 0, 0)
