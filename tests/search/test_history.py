"""What a sampler is shown of a long study."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.propose import history
from search.propose.history import ShownStudy, shown


def trials(count: int, running: int = 0) -> list[FrozenTrial]:
    """Complete ones, every third pruned; then some that run. The later the better."""
    made = []
    for number in range(count + running):
        state = TrialState.PRUNED if number % 3 == 1 else TrialState.COMPLETE
        if number >= count:
            state = TrialState.RUNNING
        value = float(count - number)
        made.append(
            create_trial(
                state=state,
                value=value if state == TrialState.COMPLETE else None,
                params={"x": value / (count + 1)},
                distributions={"x": FloatDistribution(-1, 1)},
                intermediate_values={number % 2: value} if state == TrialState.PRUNED else {},
            )
        )
        made[-1].number = number
    return made


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "SHOWN", 100)
    monkeypatch.setattr(history, "BEST", 30)


def test_a_short_study_is_shown_whole() -> None:
    all_of_them = trials(100, running=4)
    assert shown(all_of_them, 7) == all_of_them


def test_of_a_long_study_the_best_those_that_run_and_a_choice_are_shown() -> None:
    all_of_them = trials(600, running=4)
    found = shown(all_of_them, 7)
    numbers = [trial.number for trial in found]
    assert len(found) == 104
    assert numbers == sorted(numbers)
    assert set(numbers) >= {600, 601, 602, 603}
    complete = [trial.number for trial in all_of_them if trial.state == TrialState.COMPLETE]
    assert set(numbers) >= set(complete[-30:])
    assert 150 < sorted(set(numbers) - set(complete[-30:]))[35] < 450  # drawn from all of its course
    assert shown(all_of_them, 7) == found
    assert shown(all_of_them, 8) != found


def test_tpe_has_the_same_good_trials_and_no_more_than_are_shown() -> None:
    study = optuna.create_study()
    study.add_trials(trials(600))
    sampler = optuna.samplers.TPESampler(seed=0)
    space = {"x": FloatDistribution(-1, 1)}
    seen = ShownStudy(study.study_name, study._storage, sampler, 600, space, study.get_trials)
    known = seen.get_trials()
    assert len(known) == 100
    n_below = optuna.samplers._tpe.sampler.default_gamma(600)
    assert n_below == optuna.samplers._tpe.sampler.default_gamma(1_000) == 25
    split = optuna.samplers._tpe.sampler._split_trials
    below, _ = split(study, study.get_trials(), n_below)
    shown_below, above = split(seen, known, n_below)
    assert [t.number for t in shown_below] == [t.number for t in below]
    assert len(above) == 75
