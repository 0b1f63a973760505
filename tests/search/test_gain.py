"""Studies that end when nothing is left to gain, on real databases and with real trainings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from dashboards.formatting import format_gain
from search.cli.create import create_studies
from search.propose import gain as gain_module
from search.propose.gain import FEWEST, expected_gain
from search.propose.space import distributions
from search.study import Limits, StudyConfig, StudyFile, study_from_values
from search.work import worker as worker_module
from search.work.stopping import StopRequest
from search.work.worker import SilentWatcher, Worker
from storage.database import Database, open_database
from storage.lifecycle import extend_budget, record_gain, results_without_gain
from storage.settings import Settings
from storage.studies import Budget, ExpectedGain, Study, create_study, open_study, summarize_study
from storage.trials.queue import WorkerInfo, claim_trial
from storage.trials.views import TrialRow, trial_rows
from trainer.config import dump_config
from trainer.errors import ConfigError
from trainer.task import Task

STRUCTURES = 400
SPACE = {
    "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
    "batch_size": 16,
    "dropout": 0.0,
    "weight_decay": 0.0,
}
TRAINING = {"epochs": 1, "hidden": [4], "device": "cpu", "activation": "celu"}
WORKER = WorkerInfo("w", "host", 1, "cpu", {})


def study(data_file: Path | str = "x.h5", **values: Any) -> StudyConfig:
    given = {
        "name": "water",
        "data": {"files": [str(data_file)]},
        "training": TRAINING,
        "space": SPACE,
        "pruner": {"kind": "none"},
        "limits": {"trials": 100, "until_no_gain": True},
    }
    return study_from_values(given | values, "test")


def trained(
    config: StudyConfig,
    errors: Callable[[float], float],
    count: int,
    rmse: float = 1.0,
    state: TrialState = TrialState.COMPLETE,
) -> list[FrozenTrial]:
    """Trials with evenly spaced learning rates."""
    space = distributions(config)
    found = []
    for n in range(count):
        share = n / max(1, count - 1)
        trial = create_trial(
            state=state,
            value=errors(share) if state == TrialState.COMPLETE else None,
            params={"learning_rate": 10 ** (-3 + share)},
            distributions=dict(space),
            user_attrs={"val/mae_kcalmol": 0.5, "val/rmse_kcalmol": rmse},
        )
        trial.number = n
        found.append(trial)
    return found


def valley(share: float) -> float:
    """Error with its least value of 0.5 in the middle of the space."""
    return 0.5 + (share - 0.5) ** 2


def test_a_well_known_valley_leaves_nothing_to_gain() -> None:
    config = study()
    gain = expected_gain(config, trained(config, valley, 30), STRUCTURES)
    assert gain is not None
    assert gain.is_noise
    assert gain.gain < 0.05
    # sqrt(1 - 0.25) / 20 is the standard error of the mean over 400 structures.
    assert gain.margin == pytest.approx(1.96 * 2**0.5 * 0.75**0.5 / 20, rel=1e-3)


def test_errors_that_follow_no_rule_leave_much_to_gain() -> None:
    config = study()
    random = [0.5 + ((7919 * n) % 31) / 31 for n in range(30)]
    gain = expected_gain(config, trained(config, lambda share: random[round(29 * share)], 30), STRUCTURES)
    assert gain is not None
    assert not gain.is_noise


def test_no_more_can_be_gained_than_the_best_error() -> None:
    config = study()
    found = trained(config, lambda share: 0.5 + 100 * ((7919 * round(29 * share)) % 31) / 31, 30)
    gain = expected_gain(config, found, STRUCTURES)
    assert gain is not None
    assert gain.gain == min(trial.value for trial in found if trial.value is not None) == 0.5


def test_the_same_results_give_the_same_estimate() -> None:
    config = study()
    one, other = (expected_gain(config, trained(config, valley, 25), STRUCTURES) for _ in range(2))
    assert one == other


def test_only_full_trainings_count_and_a_few_are_too_few() -> None:
    config = study()
    pruned = trained(config, valley, 100, state=TrialState.PRUNED)
    assert expected_gain(config, [*trained(config, valley, FEWEST - 1), *pruned], STRUCTURES) is None
    same = trained(config, valley, FEWEST)
    same[-1].user_attrs["same_as"] = "trial 0"
    assert expected_gain(config, same, STRUCTURES) is None
    results = trained(config, valley, FEWEST)
    found = expected_gain(config, [*results, *pruned], STRUCTURES)
    assert found == expected_gain(config, results, STRUCTURES)
    assert found is not None
    assert found.results == FEWEST


def test_paused_trials_count_with_the_error_that_they_are_predicted_to_have() -> None:
    config = study(pruner={"kind": "asha"}, training=TRAINING | {"epochs": 27})
    full = trained(config, valley, 3)
    paused = trained(config, valley, 25, state=TrialState.RUNNING)
    for number, trial in enumerate([*full, *paused]):
        trial.number = number
        # An error at epoch 9 is twice as large as the one at the end.
        trial.intermediate_values = {9: 2 * valley(share_of(trial))}
    assert expected_gain(config, [*full, *paused], STRUCTURES) is None, "they still run"
    for trial in paused:
        trial.user_attrs["paused"] = "not among the best of its rung"
    gain = expected_gain(config, [*full, *paused], STRUCTURES)
    assert gain is not None
    assert gain.results == 28
    as_full = expected_gain(config, [*full, *trained(config, valley, 25)], STRUCTURES)
    assert as_full is not None
    assert gain.gain == pytest.approx(as_full.gain, rel=1e-6)
    stops = study(pruner={"kind": "asha", "stop": True}, training=TRAINING | {"epochs": 27})
    assert expected_gain(stops, [*full, *paused], STRUCTURES) is None


def share_of(trial: FrozenTrial) -> float:
    return math.log10(trial.params["learning_rate"]) + 3


def test_the_spread_over_seeds_counts_for_the_noise() -> None:
    config = study()
    trials = trained(config, valley, 25)
    alone = expected_gain(config, trials, STRUCTURES)
    again = trained(config, lambda share: valley(share) + 0.1, 25)
    replicated = expected_gain(config, [*trials, *again], STRUCTURES)
    assert alone is not None
    assert replicated is not None
    # Each pair of values 0.1 apart has the standard deviation 0.1 / sqrt(2).
    seeds, structures = 0.1 / 2**0.5, alone.margin / (1.96 * 2**0.5)
    assert replicated.margin == pytest.approx(1.96 * 2**0.5 * (seeds**2 + structures**2) ** 0.5, rel=1e-3)


def test_without_another_limit_a_study_might_not_end() -> None:
    file = StudyFile({"name": "water", "limits": {"until_no_gain": True}}, "water.yaml", Path.cwd())
    with pytest.raises(ConfigError, match="set trials, hours or epochs, so that the study ends"):
        file.config()


def begin(database: Database, config: StudyConfig, until_no_gain: bool = True) -> Study:
    budget = Budget(trials=config.limits.trials, until_no_gain=until_no_gain)
    return create_study(database, config.name, dump_config(config), budget)


def test_no_trial_begins_after_the_end_and_running_ones_go_on(database: Database) -> None:
    made = begin(database, study())
    running = claim_trial(database, made, WORKER)
    assert running is not None
    assert not record_gain(database, made, ExpectedGain(20, 0.2, 0.1))
    assert claim_trial(database, made, WORKER) is not None
    assert record_gain(database, made, ExpectedGain(21, 0.05, 0.1))
    assert claim_trial(database, made, WORKER) is None
    summary = summarize_study(database, made)
    assert (summary.trials["running"], summary.budget.trials) == (2, 2)
    said = format_gain(summary)
    assert said is not None
    assert "at most 0.050 kcal/mol" in said
    assert said.endswith("so the study ends)")
    # A worker that knew fewer results changes nothing.
    assert not record_gain(database, made, ExpectedGain(20, 0.2, 0.1))
    assert summarize_study(database, made).gain == ExpectedGain(21, 0.05, 0.1)
    # What the last trials show is not the reason of the end.
    assert not record_gain(database, made, ExpectedGain(22, 0.2, 0.1))
    assert summarize_study(database, made).gain == ExpectedGain(21, 0.05, 0.1)
    # A person may go on.
    assert extend_budget(database, made, Budget(trials=1)).until_no_gain
    assert not record_gain(database, made, ExpectedGain(22, 0.2, 0.1))
    assert summarize_study(database, made).gain == ExpectedGain(22, 0.2, 0.1)
    assert claim_trial(database, made, WORKER) is not None


def test_a_study_without_this_limit_is_never_ended_by_it(database: Database) -> None:
    made = begin(database, study(), until_no_gain=False)
    assert results_without_gain(database, made, ["complete"]) is None
    assert not record_gain(database, made, ExpectedGain(20, 0.0, 0.1))
    assert claim_trial(database, made, WORKER) is not None


def work(
    database: Database,
    config: StudyConfig,
    task: Task,
    leave_after: int | None = None,
    before: Callable[[int], object] = lambda begun: None,
) -> list[TrialRow]:
    ((made, _),), _ = create_studies(database, config)
    begun = itertools.count()

    def leave() -> bool:
        before(number := next(begun))
        return number == leave_after

    Worker(
        database,
        open_study(database, made.name),
        config,
        task,
        SilentWatcher(),
        StopRequest(),
        start_relay=lambda study: None,
        leave=leave,
    ).work()
    return trial_rows(database, made)


def soon_known(data_file: Path, monkeypatch: pytest.MonkeyPatch) -> StudyConfig:
    """Return a study that ends after a few of its thirty trials."""
    monkeypatch.setattr(gain_module, "FEWEST", 5)
    monkeypatch.setattr(worker_module, "FEWEST", 5)
    # With one seed for all trials the error is a smooth function of the learning rate.
    training = {"epochs": 1, "hidden": [4], "device": "cpu", "activation": "celu", "seed": 1}
    space = SPACE | {"learning_rate": {"low": 1e-3, "high": 2e-3}}
    return study(data_file, training=training, space=space, limits={"trials": 30, "until_no_gain": True})


def test_a_study_ends_at_the_same_trial_also_if_its_worker_was_replaced(
    tmp_path: Path, data_file: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that leaves right after the decisive result leaves the decision to the next one."""
    config = soon_known(data_file, monkeypatch)
    found = []
    for shifts in ((None,), (6, 1, None)):
        home = tmp_path / f"home-{len(shifts)}"
        with open_database(Settings(home, f"sqlite:///{home}/a.db", f"sqlite:///{home}/m.db")) as database:
            for leave_after in shifts:
                trials = work(database, config, task, leave_after)
            summary = summarize_study(database, open_study(database, config.name))
            assert summary.gain is not None
            assert summary.gain.is_noise
            assert summary.gain.results == len(trials) == summary.budget.trials < 30
            found.append((summary.gain, [(trial.config, trial.value) for trial in trials]))
    assert found[0] == found[1]


def test_a_running_worker_ends_a_study_whose_file_has_just_got_this_limit(
    database: Database, data_file: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = soon_known(data_file, monkeypatch)

    def edit(begun: int) -> None:
        if begun == 20:
            create_studies(database, config)

    trials = work(
        database, replace(config, limits=replace(config.limits, until_no_gain=False)), task, before=edit
    )
    assert len(trials) == 20


def test_the_limit_may_change_later(database: Database, data_file: Path) -> None:
    config = study(data_file, limits={"trials": 3})
    for until_no_gain in (False, True, False):
        limits = Limits(trials=3, until_no_gain=until_no_gain)
        ((made, _),), _ = create_studies(database, replace(config, limits=limits))
        assert made.budget.until_no_gain == until_no_gain
