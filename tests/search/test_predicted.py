"""Predicted errors of trials that have not been trained in full."""

from __future__ import annotations

import math

from optuna.trial import FrozenTrial, TrialState, create_trial

from search.propose.predicted import with_predicted_errors


def trial(state: TrialState, rungs: dict[int, float], value: float | None = None) -> FrozenTrial:
    return create_trial(state=state, value=value, intermediate_values=rungs)


def predicted(*trials: FrozenTrial) -> list[tuple[TrialState, float | None]]:
    return [(each.state, each.value) for each in with_predicted_errors(trials, epochs=27)]


def test_an_error_is_predicted_by_the_median_ratio_of_the_trials_that_went_on() -> None:
    found = predicted(
        trial(TrialState.COMPLETE, {1: 8.0, 3: 4.0, 9: 2.0}, 1.0),
        trial(TrialState.COMPLETE, {1: 8.0, 3: 4.0, 9: 3.0}, 0.6),
        trial(TrialState.RUNNING, {1: 10.0, 3: 1.0}),  # paused ones are running for Optuna
        trial(TrialState.RUNNING, {1: 10.0}),
        trial(TrialState.PRUNED, {1: 20.0}),
    )
    after_9, after_3, after_1 = (0.5 + 0.2) / 2, (0.5 + 0.75) / 2, 0.5
    assert found == [
        (TrialState.COMPLETE, 1.0),
        (TrialState.COMPLETE, 0.6),
        (TrialState.COMPLETE, 1.0 * after_3 * after_9),
        (TrialState.COMPLETE, 10.0 * after_1 * after_3 * after_9),
        (TrialState.COMPLETE, 20.0 * after_1 * after_3 * after_9),
    ]


def test_a_good_trial_at_an_early_rung_counts_as_better_than_a_poor_one_at_a_late_rung() -> None:
    (_, late), (_, early) = predicted(
        trial(TrialState.RUNNING, {1: 20.0, 3: 18.0}), trial(TrialState.RUNNING, {1: 2.0})
    )
    assert late is not None
    assert early is not None
    assert early < late


def test_trials_without_a_rung_stay_as_they_are() -> None:
    assert predicted(
        trial(TrialState.RUNNING, {}),
        trial(TrialState.WAITING, {}),
        trial(TrialState.FAIL, {1: 3.0}),
        trial(TrialState.PRUNED, {1: math.nan}),
    ) == [
        (TrialState.RUNNING, None),
        (TrialState.WAITING, None),
        (TrialState.FAIL, None),
        (TrialState.PRUNED, None),
    ]


def test_an_error_of_zero_gives_no_ratio() -> None:
    assert predicted(trial(TrialState.RUNNING, {1: 0.0, 3: 0.0}), trial(TrialState.RUNNING, {1: 5.0})) == [
        (TrialState.COMPLETE, 0.0),
        (TrialState.COMPLETE, 5.0),
    ]
