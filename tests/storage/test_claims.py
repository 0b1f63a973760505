from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import optuna
import pytest
from sqlalchemy import select, update

from storage.database import Database, open_database
from storage.errors import StudyNotFoundError
from storage.lifecycle import change_state
from storage.records.tables import attempts, trials
from storage.settings import Settings
from storage.studies import Budget, Study, create_study, open_study
from storage.tracking.outbox import MetricRow
from storage.trials.attempts import Attempt
from storage.trials.queue import (
    CRASHES_ALLOWED,
    LOST_HEARTBEATS_ALLOWED,
    WorkerInfo,
    claim_trial,
    next_study,
    open_trials,
)
from tests.leases import let_leases_run_out

MakeStudy = Callable[..., Study]


def claim_all(settings: Settings, name: str, host: str, barrier: object, taken: object) -> None:
    with open_database(settings) as database:
        study = open_study(database, "widths")
        worker = WorkerInfo(name=name, host=host, pid=1, device="cpu", versions={})
        barrier.wait(60)  # type: ignore[attr-defined]
        while (claim := claim_trial(database, study, worker)) is not None:
            taken.put(claim.number)  # type: ignore[attr-defined]
            Attempt(database, study, claim).finish("complete", value=1.0)


def test_four_processes_run_exactly_the_trials_asked_for(
    settings: Settings, make_study: MakeStudy, database: Database
) -> None:
    study = make_study(trials=20)
    context = multiprocessing.get_context("spawn")
    barrier, taken = context.Barrier(4, timeout=60), context.Queue()
    workers = [
        context.Process(target=claim_all, args=(settings, f"w{i}", "alpha", barrier, taken)) for i in range(4)
    ]
    for process in workers:
        process.start()
    numbers = [taken.get(timeout=60) for _ in range(20)]
    for process in workers:
        process.join(60)

    assert [process.exitcode for process in workers] == [0] * 4
    assert sorted(numbers) == list(range(20))
    assert taken.empty()
    told = study.optuna.get_trials()
    assert [trial.number for trial in told] == list(range(20))
    assert all(trial.state is optuna.trial.TrialState.COMPLETE for trial in told)


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A time zone that is not UTC."""
    monkeypatch.setenv("TZ", "JST-9")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("far_east")
def test_times_are_written_as_optuna_writes_them(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study()
    study.optuna.tell(study.optuna.ask(), 1.0)
    claim = claim_trial(database, study, worker)
    assert claim is not None
    Attempt(database, study, claim).finish("complete", value=1.0)
    theirs, ours = study.optuna.get_trials()
    for name in ("datetime_start", "datetime_complete"):
        assert abs(getattr(ours, name) - getattr(theirs, name)) < timedelta(minutes=1)


def test_a_claimed_trial_is_one_that_optuna_could_have_made(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study()
    theirs = study.optuna.ask()
    study.optuna.tell(theirs, 1.0)
    claim = claim_trial(database, study, worker)

    assert claim is not None
    ours = study.optuna_trial(claim.optuna_trial_id)
    ours.suggest_float("x", 0, 1)
    first, second = study.optuna.get_trials()
    assert second.number == claim.number == 1
    assert second.state is optuna.trial.TrialState.RUNNING
    assert second.params == ours.params
    assert second.datetime_start is not None
    assert first.datetime_start is not None
    assert abs((second.datetime_start - first.datetime_start).total_seconds()) < 60
    study.optuna.tell(claim.number, 0.5)
    assert study.optuna.best_trial.number == 1
    assert study.optuna.ask().number == 2


def test_a_trial_in_optunas_queue_comes_before_a_new_one(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=3)
    study.optuna.enqueue_trial({"x": 0.25})
    study.optuna.enqueue_trial({"x": 0.75})
    claims = [claim_trial(database, study, worker) for _ in range(4)]

    assert [claim and claim.number for claim in claims] == [0, 1, 2, None]
    first = claims[0]
    assert first is not None
    assert study.optuna_trial(first.optuna_trial_id).suggest_float("x", 0, 1) == 0.25


def test_a_killed_workers_trial_goes_on_under_its_number_before_all_others(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=2)
    dead, living = claim_trial(database, study, worker), claim_trial(database, study, worker)
    assert dead is not None
    assert living is not None
    config = {"hidden": [64], "learning_rate": 1e-3}
    Attempt(database, study, dead).record_config(config, {"width": 64}, planned_epochs=9)
    let_leases_run_out(database, dead.token)
    second = claim_trial(database, study, replace(worker, name="w2"))

    assert second is not None
    assert (second.number, second.attempt) == (dead.number, 2)
    assert second.optuna_trial_id == dead.optuna_trial_id
    assert (second.config, second.params) == (config, {"width": 64})
    assert second.token != dead.token
    assert claim_trial(database, study, worker) is None
    assert open_trials(database, study) == {0, 1}


def test_a_lease_that_is_renewed_is_not_taken(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=1)
    claim = claim_trial(database, study, worker)
    assert claim is not None
    let_leases_run_out(database, claim.token)
    Attempt(database, study, claim).renew()

    assert claim_trial(database, study, worker) is None


def test_a_trial_handed_back_is_claimed_at_once(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=1)
    claim = claim_trial(database, study, worker)
    assert claim is not None
    Attempt(database, study, claim).hand_back("stopped by Ctrl-C")
    again = claim_trial(database, study, worker)

    assert again is not None
    assert (again.number, again.attempt) == (0, 2)
    assert study.optuna.get_trials()[0].state is optuna.trial.TrialState.RUNNING


def test_a_trial_that_kills_its_workers_is_given_up(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=1)
    for attempt in range(1, CRASHES_ALLOWED + 1):
        claim = claim_trial(database, study, worker)
        assert claim is not None
        assert claim.attempt == attempt
        let_leases_run_out(database, claim.token)

    assert claim_trial(database, study, worker) is None
    (told,) = study.optuna.get_trials()
    assert told.state is optuna.trial.TrialState.FAIL
    assert "died" in told.user_attrs["fail_reason"]


def test_a_preemption_neither_counts_as_a_crash_nor_hides_those_before(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=1)
    for crash in range(1, CRASHES_ALLOWED + 1):
        for _ in range(2):
            preempted = claim_trial(database, study, worker)
            assert preempted is not None
            assert preempted.last_chance is (crash == CRASHES_ALLOWED)
            Attempt(database, study, preempted).hand_back("SIGTERM")
        claim = claim_trial(database, study, worker)
        assert claim is not None
        let_leases_run_out(database, claim.token)

    assert claim_trial(database, study, worker) is None
    assert study.optuna.get_trials()[0].state is optuna.trial.TrialState.FAIL


def test_a_lost_machine_does_not_count_against_the_trials_on_it(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study, other = make_study(trials=1), make_study("other")
    sibling, stranger = replace(worker, pid=worker.pid + 1), replace(worker, pid=99, host="beta")
    for attempt in range(1, LOST_HEARTBEATS_ALLOWED + 1):
        claim = claim_trial(database, study, worker)
        beside, elsewhere = claim_trial(database, other, sibling), claim_trial(database, other, stranger)
        assert claim is not None
        assert claim.attempt == attempt
        assert claim.last_chance is (attempt == LOST_HEARTBEATS_ALLOWED)
        assert beside is not None
        assert elsewhere is not None
        let_leases_run_out(database, claim.token)
        let_leases_run_out(database, beside.token)
        Attempt(database, other, elsewhere).renew()

    # It may be the trial that takes machines down.
    assert claim_trial(database, study, worker) is None
    assert study.optuna.get_trials()[0].state is optuna.trial.TrialState.FAIL


@pytest.mark.parametrize("sign", ["ended", "renewed"])
def test_a_machine_on_which_another_worker_goes_on_was_not_lost(
    make_study: MakeStudy, database: Database, worker: WorkerInfo, sign: str
) -> None:
    study, other = make_study(trials=1), make_study("other")
    for _ in range(CRASHES_ALLOWED):
        claim = claim_trial(database, study, worker)
        beside = claim_trial(database, other, replace(worker, pid=worker.pid + 1))
        assert claim is not None
        assert beside is not None
        let_leases_run_out(database, claim.token)
        if sign == "ended":
            Attempt(database, other, beside).finish("complete", value=1.0)
        else:
            with database.writing() as connection:
                later = {"renewed_at": attempts.c.renewed_at + 60.0}
                connection.execute(update(attempts).where(attempts.c.token == beside.token).values(later))
    assert claim_trial(database, study, worker) is None
    assert study.optuna.get_trials()[0].state is optuna.trial.TrialState.FAIL


def test_a_worker_takes_no_trial_from_itself_and_none_before_its_time(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=3)
    mine, early = claim_trial(database, study, worker), claim_trial(database, study, worker)
    assert mine is not None
    assert early is not None
    let_leases_run_out(database, mine.token)  # of the machine that slept, not of the worker
    Attempt(database, study, early).hand_back("too early")

    third = claim_trial(database, study, worker, in_hand={mine.number}, early={early.number})
    assert third is not None
    assert third.number == 2
    in_hand = {mine.number, third.number}
    assert claim_trial(database, study, worker, in_hand=in_hand, early={early.number}) is None
    again = claim_trial(database, study, worker, in_hand=in_hand)
    assert again is not None
    assert again.number == early.number


def test_a_trial_on_its_last_chance_is_not_claimed_beside_others(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=2)
    for _ in range(CRASHES_ALLOWED - 1):
        claim = claim_trial(database, study, worker)
        assert claim is not None
        assert not claim.last_chance
        let_leases_run_out(database, claim.token)

    other = claim_trial(database, study, worker, in_hand={7})
    assert other is not None
    assert (other.number, other.last_chance) == (1, False)
    assert claim_trial(database, study, worker, in_hand={1}) is None
    last = claim_trial(database, study, worker)
    assert last is not None
    assert (last.number, last.last_chance) == (0, True)


def test_what_a_worker_is_just_ending_is_left_to_the_one_that_ends_it(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=1)
    claim = claim_trial(database, study, worker)
    assert claim is not None
    Attempt(database, study, claim).finish("complete", value=1.0)
    told = select(trials.c.told)
    with database.writing() as connection:
        connection.execute(update(trials).values(told=False))

    for in_hand, expected in (({claim.number}, False), (set(), True)):
        assert claim_trial(database, study, worker, in_hand=in_hand) is None
        with database.reading() as connection:
            assert connection.execute(told).scalar_one() is expected


def test_a_trial_that_gets_on_is_never_given_up(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=1)
    for epoch in range(1, CRASHES_ALLOWED + 3):
        claim = claim_trial(database, study, worker)
        assert claim is not None
        Attempt(database, study, claim).record_metrics([MetricRow("val/loss", epoch, 0.5, 1_000)])
        let_leases_run_out(database, claim.token)


@pytest.mark.parametrize("limit", [{"seconds": 5.0}, {"epochs": 3}])
def test_a_spent_budget_begins_nothing_but_finishes_what_began(
    make_study: MakeStudy, database: Database, worker: WorkerInfo, limit: dict[str, float]
) -> None:
    study = make_study(**limit)
    claim = claim_trial(database, study, worker)
    assert claim is not None
    attempt = Attempt(database, study, claim)
    attempt.record_metrics([MetricRow("val/loss", epoch, 0.5, 1_000) for epoch in (1, 2)])
    assert claim_trial(database, study, worker) is not None

    attempt.record_metrics([MetricRow("val/loss", 3, 0.5, 1_000)])
    with database.writing() as connection:
        # It began six seconds earlier.
        connection.execute(
            update(attempts)
            .where(attempts.c.token == claim.token)
            .values(started_at=attempts.c.started_at - 6)
        )
    assert claim_trial(database, study, worker) is None

    attempt.hand_back("stopped")
    again = claim_trial(database, study, worker)
    assert again is not None
    assert again.number == claim.number


def test_a_budget_may_be_raised(make_study: MakeStudy, database: Database, worker: WorkerInfo) -> None:
    study = make_study(trials=1)
    claims = [claim_trial(database, study, worker), claim_trial(database, study, worker)]
    make_study(trials=2)

    assert [claim and claim.number for claim in claims] == [0, None]
    # A worker that opened the study before sees the new budget too.
    claim = claim_trial(database, study, worker)
    assert claim is not None
    assert claim.number == 1


def test_the_end_of_a_trial_that_is_pending_sync_reaches_optuna_at_the_next_claim(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=1)
    claim = claim_trial(database, study, worker)
    assert claim is not None
    Attempt(database, study, claim).finish("pruned", value=1.5, reason="pruned at epoch 3")
    with database.writing() as connection:
        # The state of a worker that died between its record and Optuna.
        connection.exec_driver_sql("UPDATE trials SET state = 'RUNNING'")
        connection.exec_driver_sql("DELETE FROM trial_values")
        connection.execute(update(trials).values(told=False))
    study = open_study(database, "widths")
    assert study.optuna.get_trials()[0].state is optuna.trial.TrialState.RUNNING

    assert claim_trial(database, study, worker) is None
    (told,) = open_study(database, "widths").optuna.get_trials()
    assert told.state is optuna.trial.TrialState.PRUNED
    assert told.value == 1.5


def test_a_study_deleted_in_the_dashboard_is_said_so(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study()
    database.optuna.delete_study(study.optuna_study_id)

    with pytest.raises(StudyNotFoundError, match="deleted in the Optuna dashboard"):
        claim_trial(database, study, worker)
    with database.reading() as connection:
        assert connection.execute(select(trials)).all() == []


def test_studies_share_a_database_without_sharing_trials(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    one = make_study("one", trials=1)
    other = create_study(database, "other", {}, Budget(trials=1))
    claims = [claim_trial(database, study, worker) for study in (one, other, one, other)]

    assert [claim and claim.number for claim in claims] == [0, 0, None, None]


def test_the_next_study_is_the_first_by_priority_and_age_that_has_a_trial(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    assert next_study(database) is None
    old, young = make_study("old", trials=2), make_study("young")
    create_study(database, "spare", {}, Budget(epochs=5, seconds=60.0), priority=-1)
    assert next_study(database) == "old"
    assert next_study(database, leave={"old"}) == "young"

    first, second = claim_trial(database, old, worker), claim_trial(database, old, worker)
    assert next_study(database) == "young"  # those of old are begun
    assert first is not None
    assert second is not None
    let_leases_run_out(database, first.token)
    assert next_study(database) == "old"
    change_state(database, old, "paused", of={"open"})
    change_state(database, young, "stopped", of={"open"})
    assert next_study(database) == "spare"
    spare = open_study(database, "spare")
    claim = claim_trial(database, spare, worker)
    assert claim is not None
    Attempt(database, spare, claim).record_metrics([MetricRow("loss", e, 0.5, 1) for e in range(1, 6)])
    assert next_study(database) is None  # its epochs are spent

    change_state(database, old, "open", of={"paused"})
    Attempt(database, old, second).hand_back("stopped")
    create_study(database, "old", {"sampler": "random"}, Budget(trials=2), priority=-2)
    create_study(database, "spare", {}, Budget(epochs=6), priority=-1)
    assert next_study(database) == "spare"


def test_a_trial_that_waits_for_its_original_is_nothing_to_come_for(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=2)
    attempts_ = []
    for _ in range(2):
        claim = claim_trial(database, study, worker)
        assert claim is not None
        attempts_.append(Attempt(database, study, claim))
        attempts_[-1].record_config({}, {}, planned_epochs=1, settings="the same")
    first, second = attempts_
    assert second.find_original() is not None
    second.hand_back("waits")
    assert next_study(database) is None
    first.finish("complete", value=1.0)
    assert next_study(database) == "widths"
