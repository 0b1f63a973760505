"""Several objectives: what Optuna has of a trial is what the record says, also after edits and crashes."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.trial import TrialState
from sqlalchemy import delete, update

from storage.audit import verify
from storage.database import Database
from storage.optuna_private import RESULTS
from storage.records.tables import trials
from storage.repair import repair
from storage.studies import Budget, Study, create_study, open_study, summarize_study
from storage.trials import finalize, optuna_rows
from storage.trials.attempts import Attempt
from storage.trials.front import knee, pareto_front, study_front
from storage.trials.queue import WorkerInfo, claim_trial
from storage.trials.views import trial_rows

# MLflow uses what is deprecated elsewhere; our own warnings stay errors.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")

OBJECTIVES = ["val_mae", "parameters"]
LABELS = ["val MAE, kcal/mol", "parameters"]


@pytest.fixture
def study(database: Database) -> Study:
    return create_study(database, "two", {"objectives": OBJECTIVES}, Budget(trials=10))


def ended(
    study: Study, worker: WorkerInfo, value: float, parameters: float, settings: str | None = None
) -> int:
    claim = claim_trial(study.database, study, worker)
    assert claim is not None
    attempt = Attempt(study.database, study, claim)
    attempt.record_config({"hidden": [8]}, {"layers": 1}, planned_epochs=3, settings=settings)
    if (original := attempt.find_original()) is not None:
        assert attempt.reuse_result(original)
    else:
        attempt.finish("complete", value, summary={"parameters": parameters})
    return claim.number


def test_a_study_has_the_directions_and_names_of_its_objectives(study: Study, database: Database) -> None:
    assert [direction.name for direction in study.optuna.directions] == ["MINIMIZE", "MINIMIZE"]
    assert study.optuna.metric_names == LABELS
    assert summarize_study(database, study).objectives == ("val_mae", "parameters")
    old = create_study(database, "old", {"sampler": "random"}, Budget(trials=1))
    assert (old.objectives, old.optuna.metric_names) == (("val_mae",), LABELS[:1])


def test_a_creation_that_was_interrupted_does_not_decide_the_objectives(database: Database) -> None:
    database.optuna.create_new_study(directions=create_study_directions(1), study_name="two")
    study = create_study(database, "two", {"objectives": OBJECTIVES}, Budget(trials=1))
    assert len(study.optuna.directions) == 2


def create_study_directions(count: int) -> Any:
    from optuna.study import StudyDirection

    return [StudyDirection.MINIMIZE] * count


def test_optuna_has_all_values_of_a_trial(study: Study, worker: WorkerInfo) -> None:
    ended(study, worker, 2.5, 1000.0)
    claim = claim_trial(study.database, study, worker)
    assert claim is not None
    Attempt(study.database, study, claim).finish("failed", reason="the loss is not finite")
    complete, failed = study.optuna.get_trials()
    assert (complete.values, complete.state) == ([2.5, 1000.0], TrialState.COMPLETE)
    assert (failed.values, failed.state) == (None, TrialState.FAIL)


def test_a_duplicate_configuration_takes_all_values(study: Study, worker: WorkerInfo) -> None:
    for _ in range(2):
        ended(study, worker, 2.5, 1000.0, settings="the same")
    assert [trial.values for trial in study.optuna.get_trials()] == [[2.5, 1000.0]] * 2


def test_an_end_that_is_pending_sync_brings_all_values(study: Study, worker: WorkerInfo) -> None:
    number = ended(study, worker, 2.5, 1000.0)
    with study.database.writing() as connection:  # as after a crash between the two writes
        optuna_rows.set_state(connection, study.optuna.get_trials()[0]._trial_id, TrialState.RUNNING)
        connection.execute(update(trials).values(told=False))
    with study.database.reading() as connection:
        assert finalize.pending_sync(connection, study) == [number]
    for _ in range(2):  # each step can be repeated
        finalize.sync_to_optuna(study.database, study, number)
    with study.database.reading() as connection:
        trial = optuna_rows.all_trials(connection, study.optuna_study_id)[number]
    assert (trial.values, trial.state) == ((2.5, 1000.0), TrialState.COMPLETE)


def test_what_differs_in_optuna_is_listed_and_repaired(study: Study, worker: WorkerInfo) -> None:
    ended(study, worker, 2.5, 1000.0)
    repair(study, lambda *_: "")
    assert verify(study).differences == ()
    second = RESULTS.c.objective == 1
    for change, shown in (
        (update(RESULTS).where(second).values(value=7.0), "2.5, 7.0"),
        (delete(RESULTS).where(second), "2.5"),
        (delete(RESULTS), "None"),
    ):
        with study.database.writing() as connection:
            connection.execute(change)
        (found,) = verify(study).differences
        assert str(found) == f"trial 0: its value is {shown} in Optuna, 2.5, 1000.0 in the record"
        repair(study, lambda *_: "")
        assert verify(study).differences == ()


def test_the_front_of_a_study_and_its_knee(study: Study, worker: WorkerInfo) -> None:
    values = [(4.0, 1e3), (1.2, 1e4), (1.0, 1e6), (5.0, 1e4), (4.0, 1e3), (1.1, 2e6)]
    for error, parameters in values:
        ended(study, worker, error, parameters)
    rows = trial_rows(study.database, open_study(study.database, "two"))
    front = study_front(rows, study.objectives)
    assert [trial.number for trial in front.trials] == [0, 1, 2]
    assert front.knee is not None
    assert front.knee.number == 1
    alone = study_front(rows, ("val_mae",))
    assert [trial.number for trial in alone.trials] == [2]


def test_the_knee_is_farthest_from_the_line_between_the_ends() -> None:
    # Costs 1, 10, 100, 1000 are 0, 1/3, 2/3, 1 by ratios; distances to the line: 0, 0.27, 0.28, 0.
    front = [(10.0, 1.0), (2.8, 10.0), (0.5, 100.0), (0.0, 1000.0)]
    assert knee(front, [False, True]) == 1
    assert knee([(10.0, 1.0), (9.9, 10.0), (0.0, 1000.0)], [False, True]) == 2, "a bulge is no knee"
    assert knee([(1.0, 5.0)], [False, True]) == 0
    assert knee([], [False, True]) is None


def test_a_front_is_what_no_other_beats_in_error_and_cost() -> None:
    points = [(3.0, 1.0), (2.0, 2.0), (2.5, 3.0), (1.0, 4.0), (2.0, 2.0)]
    assert pareto_front(points, lambda point: point) == [points[0], points[1], points[3]]
    assert pareto_front([], lambda point: point) == []


def test_a_front_of_three_objectives() -> None:
    points = [(1.0, 5.0, 5.0), (2.0, 2.0, 6.0), (2.0, 6.0, 2.0), (2.0, 6.0, 6.0), (1.0, 5.0, 5.0)]
    assert pareto_front(points, lambda point: point) == [points[1], points[0], points[2]]
