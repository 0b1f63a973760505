from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import delete

from storage.database import Database
from storage.errors import StudyNotFoundError, StudyStateError
from storage.lifecycle import change_state, extend_budget, lease_holders, study_state
from storage.records.tables import outbox, studies
from storage.studies import Budget, Study, StudyState, list_studies
from storage.trials import heartbeat
from storage.trials.attempts import Attempt
from storage.trials.heartbeat import Heartbeat
from storage.trials.queue import Claim, WorkerInfo, claim_trial
from tests.leases import let_leases_run_out

MakeStudy = Callable[..., Study]
ANY: tuple[StudyState, ...] = ("open", "paused", "stopped", "archived")


def claimed(database: Database, study: Study, worker: WorkerInfo) -> Claim:
    claim = claim_trial(database, study, worker)
    assert claim is not None
    return claim


@pytest.mark.parametrize("state", ["paused", "stopped", "archived"])
def test_only_an_open_study_gives_trials(
    database: Database, make_study: MakeStudy, worker: WorkerInfo, state: StudyState
) -> None:
    study = make_study(trials=3)
    Attempt(database, study, claimed(database, study, worker)).hand_back("stopped")
    change_state(database, study, state, of=ANY)
    assert claim_trial(database, study, worker) is None

    change_state(database, study, "open", of=ANY)
    claim = claimed(database, study, worker)
    assert (claim.number, claim.attempt) == (0, 2)


@pytest.mark.parametrize(
    ("state", "unwanted"), [("open", False), ("paused", False), ("stopped", True), ("archived", True)]
)
def test_a_worker_learns_that_its_study_was_stopped_when_it_renews_its_lease(
    database: Database,
    make_study: MakeStudy,
    worker: WorkerInfo,
    monkeypatch: pytest.MonkeyPatch,
    state: StudyState,
    unwanted: bool,
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEATS_PER_LEASE", 1200)  # each 0.05 s
    study = make_study()
    attempt = Attempt(database, study, claimed(database, study, worker))
    with Heartbeat(attempt) as beating:
        change_state(database, study, state, of=ANY)
        assert beating.unwanted.wait(10.0 if unwanted else 0.5) is unwanted
        assert not beating.lost.is_set()
    attempt.hand_back("the study was stopped")
    assert lease_holders_of(database, study) == []


def lease_holders_of(database: Database, study: Study) -> list[str]:
    with database.reading() as connection:
        return lease_holders(connection, study)


def test_lease_holders_are_those_that_hold_a_lease(
    database: Database, make_study: MakeStudy, worker: WorkerInfo
) -> None:
    study = make_study()
    dead = claimed(database, study, replace(worker, name="dead"))
    let_leases_run_out(database, dead.token)
    other = make_study("other")
    claimed(database, other, replace(worker, name="elsewhere"))
    claimed(database, study, worker)
    claimed(database, study, worker)
    assert lease_holders_of(database, study) == ["w1"]


def test_a_change_that_a_state_does_not_allow_says_the_way_out(
    database: Database, make_study: MakeStudy
) -> None:
    study = make_study()
    change_state(database, study, "archived", of=ANY)
    with pytest.raises(StudyStateError, match="'widths' is archived: anitune study archive --undo widths"):
        change_state(database, study, "open", of=("paused", "stopped"))
    assert study_state(database, study) == "archived"


def test_an_archived_study_is_not_among_the_others(database: Database, make_study: MakeStudy) -> None:
    study, _ = make_study("one"), make_study("other")
    change_state(database, study, "archived", of=ANY)
    assert [(summary.name, summary.state) for summary in list_studies(database)] == [("other", "open")]
    assert [summary.name for summary in list_studies(database, archived=True)] == ["one"]


def test_a_budget_is_extended_for_workers_that_are_there(
    database: Database, make_study: MakeStudy, worker: WorkerInfo
) -> None:
    study = make_study(trials=1, seconds=60.0)
    claimed(database, study, worker)
    assert claim_trial(database, study, worker) is None

    assert extend_budget(database, study, Budget(trials=2)) == Budget(trials=3, seconds=60.0)
    assert extend_budget(database, study, Budget(seconds=30.0)) == Budget(trials=3, seconds=90.0)
    assert [claimed(database, study, worker).number for _ in range(2)] == [1, 2]
    assert claim_trial(database, study, worker) is None


def test_a_limit_that_is_not_there_cannot_be_extended(database: Database, make_study: MakeStudy) -> None:
    study = make_study(trials=1)
    with pytest.raises(StudyStateError, match="no limit of epochs"):
        extend_budget(database, study, Budget(trials=1, epochs=5))
    assert extend_budget(database, study, Budget()) == Budget(trials=1)


def test_a_study_that_was_deleted_is_said_so(
    database: Database, make_study: MakeStudy, worker: WorkerInfo
) -> None:
    study = make_study()
    with database.writing() as connection:
        connection.execute(delete(outbox))
        connection.execute(delete(studies))
    for act in (
        lambda: claim_trial(database, study, worker),
        lambda: study_state(database, study),
        lambda: extend_budget(database, study, Budget()),
    ):
        with pytest.raises(StudyNotFoundError, match="was deleted"):
            act()
