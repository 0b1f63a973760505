"""Paused trials in the records: who may resume them, and when they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from optuna.trial import TrialState

from storage.database import Database
from storage.errors import LeaseLostError, TrialClosedError
from storage.lifecycle import change_state
from storage.studies import Study, StudyState, summarize_study
from storage.trials.attempts import Attempt
from storage.trials.paused import RungResult, rung_results
from storage.trials.queue import Claim, WorkerInfo, claim_trial, next_study, open_trials
from storage.trials.views import trial_rows

MakeStudy = Callable[..., Study]
RUNG = 3


def first_paused(results: Sequence[RungResult], may_begin: bool) -> int | None:
    return next((result.number for result in results if result.paused), None)


def claimed(database: Database, study: Study, worker: WorkerInfo, **options: object) -> Claim:
    claim = claim_trial(database, study, worker, **options)  # type: ignore[arg-type]
    assert claim is not None
    return claim


def pause(database: Database, study: Study, claim: Claim, value: float, most: int = 100) -> Attempt:
    attempt = Attempt(database, study, claim)
    attempt.record_config({"hidden": [8]}, {"hidden": [8]}, planned_epochs=9)
    assert attempt.rung(RUNG, value, (), decide=lambda trial: True)
    attempt.pause(value, "others were better", {"parameters": 7.0}, most)
    return attempt


def states(database: Database, study: Study) -> list[str]:
    return [trial.state for trial in trial_rows(database, study)]


def test_each_paused_trial_is_resumed_by_one_worker(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=6)
    for n, claim in enumerate([claimed(database, study, worker) for _ in range(6)]):
        pause(database, study, claim, 1.0 + n)
    with ThreadPoolExecutor(6) as pool:
        waiting = [
            pool.submit(claim_trial, database, study, worker, promotion=first_paused) for _ in range(6)
        ]
        claims = [each.result(timeout=60) for each in waiting]
    assert sorted(claim.number for claim in claims if claim is not None) == list(range(6))
    assert {claim.attempt for claim in claims if claim is not None} == {2}
    assert states(database, study) == ["running"] * 6


def test_the_rung_of_a_resumed_trial_is_passed_and_its_earlier_attempt_writes_nothing(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=1)
    earlier = pause(database, study, claimed(database, study, worker), 1.0)
    assert rung_results(database, study) == [RungResult(0, RUNG, 1.0, paused=True)]
    claim = claimed(database, study, worker, promotion=first_paused)
    assert (claim.number, claim.attempt, claim.config) == (0, 2, {"hidden": [8]})
    assert rung_results(database, study) == [RungResult(0, RUNG, 1.0, paused=False)]
    assert Attempt(database, study, claim).rung(RUNG, 1.0, (), decide=lambda trial: True) is False
    with pytest.raises(LeaseLostError):
        earlier.finish("complete", 0.5)


def test_pausing_twice_is_pausing_once(make_study: MakeStudy, database: Database, worker: WorkerInfo) -> None:
    study = make_study(trials=1)
    attempt = pause(database, study, claimed(database, study, worker), 1.0)
    attempt.pause(1.0, "others were better", {}, 100)  # the acknowledgement of the first time was lost
    assert states(database, study) == ["paused"]


@pytest.mark.parametrize("state", ["paused", "stopped"])
def test_a_study_that_is_not_open_resumes_nothing(
    make_study: MakeStudy, database: Database, worker: WorkerInfo, state: StudyState
) -> None:
    study = make_study(trials=1)
    pause(database, study, claimed(database, study, worker), 1.0)
    change_state(database, study, state, of=("open",))
    assert claim_trial(database, study, worker, promotion=first_paused) is None
    assert states(database, study) == ["paused"]
    assert next_study(database) is None
    change_state(database, study, "open", of=(state,))
    assert next_study(database) == study.name


def test_paused_trials_end_as_pruned_when_none_can_be_promoted_any_more(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=2)
    running = claimed(database, study, worker)
    pause(database, study, claimed(database, study, worker), 2.0)
    assert claim_trial(database, study, worker) is None
    assert states(database, study) == ["running", "paused"], "what runs may still change the rung"
    assert open_trials(database, study) == {0, 1}
    Attempt(database, study, running).finish("complete", 1.0)
    assert claim_trial(database, study, worker) is None
    (_, trial) = trial_rows(database, study)
    assert (trial.state, trial.value, trial.reason) == ("pruned", 2.0, "others were better")
    assert trial.summary == {"parameters": 7.0}
    told = study.optuna.get_trials()[1]
    assert (told.state, told.value) == (TrialState.PRUNED, 2.0)
    assert "paused" not in told.user_attrs
    assert open_trials(database, study) == set()


def test_the_least_promising_of_too_many_end_as_pruned(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=3)
    claims = [claimed(database, study, worker) for _ in range(3)]
    for claim, value in zip(claims, (1.0, 3.0, 2.0), strict=True):
        pause(database, study, claim, value, most=2)
    assert states(database, study) == ["paused", "pruned", "paused"]
    assert summarize_study(database, study).trials["paused"] == 2
    assert len(rung_results(database, study)) == 3, "it still counts at its rung"


def test_a_thread_takes_no_trial_that_another_thread_of_its_worker_has_just_paused(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=1)
    pause(database, study, claimed(database, study, worker), 1.0)
    assert claim_trial(database, study, worker, in_hand={0}, promotion=first_paused) is None
    assert states(database, study) == ["paused"]
    assert claimed(database, study, worker, promotion=first_paused).number == 0


@pytest.mark.parametrize("paused_before", [True, False])
def test_a_trial_that_was_ended_in_optuna_is_not_trained_on(
    make_study: MakeStudy, database: Database, worker: WorkerInfo, paused_before: bool
) -> None:
    study = make_study(trials=2)
    first, second = claimed(database, study, worker), claimed(database, study, worker)
    if paused_before:
        pause(database, study, first, 1.0)
        study.optuna.tell(0, state=TrialState.FAIL)
        pause(database, study, second, 2.0)
        assert claimed(database, study, worker, promotion=first_paused).number == 1
        (trial, _) = trial_rows(database, study)
        assert (trial.state, trial.reason) == ("failed", "it was ended or deleted in the Optuna dashboard")
        return
    attempt = Attempt(database, study, first)
    attempt.record_config({"hidden": [8]}, {"hidden": [8]}, planned_epochs=9)
    assert attempt.rung(RUNG, 1.0, (), decide=lambda trial: True)
    study.optuna.tell(0, state=TrialState.FAIL)
    with pytest.raises(TrialClosedError):
        attempt.pause(1.0, "others were better", {}, 100)
    attempt.finish("failed", reason="it was ended in Optuna")  # as the worker does
    assert states(database, study)[0] == "failed"


def test_a_worker_of_all_studies_leaves_paused_trials_to_those_who_train(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=2)
    running = claimed(database, study, worker)
    pause(database, study, claimed(database, study, worker), 1.0)
    assert next_study(database) is None
    Attempt(database, study, running).finish("complete", 1.0)
    assert next_study(database) == study.name


def test_a_duplicate_waits_for_a_trial_that_was_resumed_meanwhile(
    make_study: MakeStudy, database: Database, worker: WorkerInfo
) -> None:
    study = make_study(trials=2)
    first = Attempt(database, study, claimed(database, study, worker))
    first.record_config({"hidden": [8]}, {"hidden": [8]}, planned_epochs=9, settings="same")
    first.rung(RUNG, 1.0, (), decide=lambda trial: True)
    first.pause(1.0, "others were better", {"parameters": 7.0}, 100)
    second = Attempt(database, study, claimed(database, study, worker))
    second.record_config({"hidden": [8]}, {"hidden": [8]}, planned_epochs=9, settings="same")
    original = second.find_original()
    assert original is not None
    assert (original.number, original.state, original.value) == (0, "pruned", 1.0)
    resumed = claimed(database, study, worker, promotion=first_paused)
    assert not second.reuse_result(original)
    Attempt(database, study, resumed).finish("complete", 0.5)
    original = second.find_original()
    assert original is not None
    assert second.reuse_result(original)
    assert [(t.state, t.value) for t in trial_rows(database, study)] == [("complete", 0.5)] * 2
