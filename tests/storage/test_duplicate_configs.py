from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from sqlalchemy import select

from storage.database import Database
from storage.errors import LeaseLostError
from storage.records.tables import outbox, rungs
from storage.studies import Study, summarize_study
from storage.tracking.outbox import MetricRow, read_message
from storage.trials.attempts import Attempt
from storage.trials.duplicate_configs import OriginalTrial
from storage.trials.queue import WorkerInfo, claim_trial
from storage.trials.views import metric_history, trial_rows

MakeStudy = Callable[..., Study]


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    return make_study(trials=3)


@pytest.fixture
def begin(database: Database, study: Study, worker: WorkerInfo) -> Callable[..., Attempt]:
    """Begins or goes on with the next trial; its settings are the same each time."""

    def begun(settings: str | None = "the same") -> Attempt:
        claim = claim_trial(database, study, worker)
        assert claim is not None
        attempt = Attempt(database, study, claim)
        if claim.config is None:
            config = {"seed": claim.number}
            attempt.record_config(config, {"layers": 1}, planned_epochs=9, settings=settings)
        return attempt

    return begun


def train(attempt: Attempt, folder: Path) -> None:
    """Three epochs, a rung after each of the first two, and a plot."""
    for step in (1, 2):
        rows = [MetricRow("val/loss", step, 0.5 / step, 1_000 * step)]
        assert not attempt.rung(step, 2.0 / step, rows, lambda trial: False)
    attempt.record_metrics([MetricRow("val/loss", 3, math.nan, 3_000)])
    (folder / "loss.png").write_bytes(b"plot")
    attempt.record_artifacts({"plots/loss.png": folder / "loss.png"})


def messages(database: Database, number: int) -> list[Any]:
    query = select(outbox.c.kind, outbox.c.payload).where(outbox.c.number == number).order_by(outbox.c.id)
    with database.reading() as connection:
        return [read_message(*row) for row in connection.execute(query)]


@pytest.mark.parametrize("state", ["complete", "pruned"])
def test_the_second_ends_as_the_first_has_ended(
    database: Database, study: Study, begin: Callable[..., Attempt], tmp_path: Path, state: Any
) -> None:
    first = begin()
    assert first.find_original() is None
    train(first, tmp_path)
    reason = "others were better" if state == "pruned" else None
    first.finish(state, value=0.75, reason=reason, summary={"parameters": 98.0}, tags={"arch": "8-1"})
    second = begin()
    original = second.find_original()
    assert original == OriginalTrial(0, state, 0.75, 3)
    for _ in range(2):  # the acknowledgement of the first was lost
        second.reuse_result(original)

    one, other = trial_rows(database, study)
    assert (other.state, other.value, other.reason) == (one.state, one.value, one.reason)
    assert (other.summary, other.artifacts, other.epochs) == (one.summary, one.artifacts, one.epochs)
    assert (other.trained_epochs, other.tags["same_as"]) == (0, "trial 0")
    assert repr(metric_history(database, study, 1)) == repr(metric_history(database, study, 0))
    with database.reading() as connection:
        kept = connection.execute(select(rungs.c.number, rungs.c.step, rungs.c.value, rungs.c.stop)).all()
    assert sorted(kept) == [(n, step, 2.0 / step, False) for n in (0, 1) for step in (1, 2)]

    told, again = study.optuna.get_trials()
    assert again.state is {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}[state]
    assert (again.value, again.intermediate_values) == (told.value, {1: 2.0, 2: 1.0})
    assert again.user_attrs["same_as"] == "trial 0"

    *_, end = heard = messages(database, 1)
    assert [message.kind for message in heard] == ["trial_start", "metrics", "artifact", "trial_end"]
    assert [row.time_ms for row in heard[1].rows] == [1_000, 2_000, 3_000]
    assert end.tags == {"same_as": "trial 0"}
    assert claim_trial(database, study, first.claim.worker) is not None
    assert claim_trial(database, study, first.claim.worker) is None  # three were asked for
    assert summarize_study(database, study).epochs == 3


def test_the_second_waits_without_a_lease_until_the_first_has_ended(
    database: Database, begin: Callable[..., Attempt], study: Study, worker: WorkerInfo
) -> None:
    first, second = begin(), begin()
    assert first.find_original() == OriginalTrial(1, "running", None, 0)  # who asks first waits
    assert second.find_original() is None
    first.hand_back("waits")
    third = begin("other")
    assert third.claim.number == 2
    assert claim_trial(database, study, worker) is None  # nothing else is left

    second.finish("complete", value=1.0)
    again = begin()
    assert (again.claim.number, again.claim.attempt) == (0, 2)
    assert again.find_original() == OriginalTrial(1, "complete", 1.0, 0)


def test_a_first_that_fails_leaves_the_training_to_the_next_that_asks(begin: Callable[..., Attempt]) -> None:
    first, second, third = begin(), begin(), begin()
    assert second.find_original() is not None
    assert third.find_original() is not None
    assert first.find_original() is None
    second.hand_back("waits")
    third.hand_back("waits")
    first.finish("failed", reason="the loss was not finite")
    second = begin()
    assert second.find_original() is None
    third = begin()
    assert third.find_original() == OriginalTrial(1, "running", None, 0)


def test_a_trial_that_has_epochs_is_trained_to_its_end(begin: Callable[..., Attempt]) -> None:
    first = begin()
    first.record_metrics([MetricRow("val/loss", 1, 0.5, 1_000)])
    begin()  # has not asked yet
    first.hand_back("stopped")
    again = begin()
    assert (again.claim.number, again.claim.attempt) == (0, 2)
    assert again.find_original() is None


def test_trials_that_are_not_compared_are_no_duplicates(begin: Callable[..., Attempt]) -> None:
    begin(None).finish("complete", value=1.0)
    assert begin(None).find_original() is None
    assert begin().find_original() is None


def test_a_worker_that_lost_its_lease_takes_no_result(
    database: Database, study: Study, begin: Callable[..., Attempt]
) -> None:
    begin().finish("complete", value=1.0)
    second = begin()
    original = second.find_original()
    assert original is not None
    second.hand_back("stopped")
    begin()
    for write in (second.find_original, lambda: second.reuse_result(original)):
        with pytest.raises(LeaseLostError):
            write()
    assert trial_rows(database, study)[1].state == "running"
    assert metric_history(database, study, 1) == {}
