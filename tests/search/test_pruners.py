"""What every pruner must hold."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from search.methods import PRUNERS
from search.propose.pruners import rungs, stops
from search.study import StudyConfig, study_from_values
from storage.trials.paused import RungResult

EPOCHS = 27


def make(kind: str, storage: BaseStorage, **pruner: Any) -> StudyConfig:
    values = {"name": kind, "training": {"epochs": EPOCHS}, "limits": {"trials": 99}}
    config = study_from_values(values | {"pruner": {"kind": kind} | pruner}, "test")
    optuna.create_study(study_name=kind, storage=storage)
    return config


def train(storage: BaseStorage, config: StudyConfig, final: float) -> int:
    """A trial whose error falls to ``final``; the epochs that it was trained."""
    study = optuna.load_study(study_name=config.name, storage=storage)
    trial = study.ask()
    for step in rungs(config):
        trial.report(final * EPOCHS / step, step)
        if stops(config, storage, storage.get_trial(trial._trial_id), lambda: results(storage, config)):
            study.tell(trial, state=TrialState.PRUNED)
            return step
    study.tell(trial, final)
    return EPOCHS


def results(storage: BaseStorage, config: StudyConfig) -> list[RungResult]:
    """What the records would have of the rungs."""
    trials = optuna.load_study(study_name=config.name, storage=storage).get_trials()
    return [
        RungResult(trial.number, step, value, paused=False)
        for trial in trials
        for step, value in trial.intermediate_values.items()
    ]


@pytest.fixture
def storage() -> BaseStorage:
    return InMemoryStorage()


@pytest.mark.parametrize("kind", PRUNERS)
def test_pruners_spare_the_good_and_save_epochs(kind: str, storage: BaseStorage) -> None:
    config = make(kind, storage, **({"stop": True} if kind == "asha" else {}))
    # Good ones first, then ever worse ones.
    epochs = [train(storage, config, final=1 + n) for n in range(24)]
    assert epochs[0] == EPOCHS
    if kind == "none":
        assert set(epochs) == {EPOCHS}
    else:
        assert sum(epochs[12:]) < 0.8 * 12 * EPOCHS
        assert set(epochs) <= {*rungs(config), EPOCHS}
    assert train(storage, config, final=0.1) == EPOCHS  # the best so far is never stopped


def test_rungs_lie_between_the_first_and_the_end(storage: BaseStorage) -> None:
    assert rungs(make("asha", storage, min_epochs=2, reduction_factor=3)) == (2, 6, 18)
    assert rungs(make("hyperband", storage, reduction_factor=3)) == (3, 9)
    # Rungs also tell Optuna's dashboard how a trial went.
    assert rungs(make("none", storage, min_epochs=5, reduction_factor=2)) == (5, 10, 20)


def test_default_rungs_suit_any_length() -> None:
    for epochs in (1, 2, 5, 10, 30, 100, 1000):
        values: dict[str, Any] = {"name": "x", "training": {"epochs": epochs}}
        of_default = rungs(study_from_values(values, "test"))
        assert of_default == {1: (), 2: (1,), 5: (1, 4), 10: (1, 4), 30: (2, 8), 100: (4, 16, 64)}.get(
            epochs, (38, 152, 608)
        )
        of_hyperband = rungs(study_from_values(values | {"pruner": {"kind": "hyperband"}}, "test"))
        assert all(0 < step < epochs for step in of_hyperband)
        assert len(of_hyperband) <= 2


def test_rows_have_no_rungs() -> None:
    assert rungs(study_from_values({"name": "rows", "rows": [{"label": "a"}]}, "test")) == ()
