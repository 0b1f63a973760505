"""Further seeds of the best configurations, on a real database and with real trainings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search.cli.create import create_studies
from search.cli.output import leaderboard as printed_leaderboard
from search.propose.finalists import missing_replicates
from search.study import StudyConfig, study_from_values
from search.work.reproduce import recorded_trial, reproduce_trial
from search.work.stopping import StopRequest
from search.work.worker import SilentWatcher, Worker
from storage.database import Database
from storage.lifecycle import extend_budget
from storage.studies import Budget, Study, open_study, summarize_study
from storage.trials.attempts import Attempt
from storage.trials.queue import WorkerInfo, add_replicates, claim_trial
from storage.trials.views import TrialRow, complete_trials, leaderboard_order, trial_rows
from tests.search.stopped_work import StopAt
from trainer.task import Task

WORKER = WorkerInfo("w", "host", 1, "cpu", {})
STRUCTURES = 12


def study(data_file: Path | str = "x.h5", **values: Any) -> StudyConfig:
    given = {
        "name": "water",
        "data": {"files": [str(data_file)]},
        "training": {"epochs": 4, "device": "cpu", "checkpoint_seconds": 0},
        "space": {
            "hidden": {"choices": [[4], [8], [8, 4]]},
            "activation": {"choices": ["celu", "silu"]},
            "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
            "batch_size": 16,
            "dropout": 0.0,
            "weight_decay": 0.0,
        },
        "pruner": {"kind": "none"},
        "limits": {"trials": 3},
        "finalists": {"seeds": 3, "most": 2},
    }
    return study_from_values(given | values, "test")


def row(number: int, value: float | None, of: int | None = None, state: Any = "complete") -> TrialRow:
    return TrialRow(
        number=number,
        optuna_trial_id=number,
        state=state,
        value=value,
        config={},
        params={},
        tags={},
        summary={"val/mae_kcalmol": 0.5, "val/rmse_kcalmol": 0.6},
        reason=None,
        attempt=1,
        worker=WORKER,
        started=0.0,
        ended=1.0,
        seconds=1.0,
        epochs=4,
        trained_epochs=4,
        planned_epochs=4,
        mlflow_run_id=None,
        artifacts=(),
        replicate_of=of,
    )


def missing(*rows: TrialRow, **finalists: int) -> list[int]:
    # sqrt(0.36 - 0.25) / sqrt(12) is 0.096, so errors less than 0.27 apart cannot be told apart.
    config = study(finalists={"seeds": 3, "most": 2, **finalists})
    return missing_replicates(config, rows, STRUCTURES)


def test_the_best_within_the_noise_get_further_seeds() -> None:
    assert missing(row(0, 0.6), row(1, 0.5), row(2, 0.9)) == [1, 1, 0, 0]
    assert missing(row(0, 0.6), row(1, 0.5), row(2, 0.55), most=3) == [1, 1, 2, 2, 0, 0]
    assert missing(row(0, 0.6), row(1, 0.5), row(2, 0.55), seeds=2) == [1, 2]


def test_the_best_two_are_finalists_because_the_spread_over_seeds_is_not_known() -> None:
    assert missing(row(0, 0.9), row(1, 0.5), row(2, 2.0), most=3) == [1, 1, 0, 0]
    spread = [row(3, 1.3, of=1), row(4, 1.5, of=1), row(5, 0.95, of=0), row(6, 0.85, of=0)]
    assert missing(row(0, 0.9), row(1, 0.5), row(2, 1.9), *spread, most=3) == [2, 2]


def test_a_best_one_without_rivals_gets_none() -> None:
    assert missing(row(1, 0.5), row(2, 0.3, state="pruned")) == []
    assert missing(row(0, None, state="failed")) == []


def test_who_was_only_lucky_makes_room_but_not_for_ever() -> None:
    lucky = [row(0, 0.5), row(1, 0.58), row(2, 0.6)]
    seeds = [row(3, 0.7, of=0), row(4, 0.72, of=0), row(5, 0.6, of=1), row(6, None, of=1, state="failed")]
    assert missing(*lucky, *seeds) == [], "two finalists are the most, and a failed one is not repeated"
    assert missing(*lucky, *seeds, most=3) == [2, 2]


def test_the_order_is_by_the_mean_over_seeds() -> None:
    trials = [row(0, 0.5), row(1, 0.58), row(2, 0.7, of=0), row(3, 0.6, of=1), row(4, 0.595)]
    assert [trial.number for trial in leaderboard_order(trials)] == [1, 3, 4, 0, 2]
    assert [trial.number for trial in complete_trials(trials)] == [1, 4, 0]


def work(
    database: Database, config: StudyConfig, task: Task, watcher: StopAt | None = None
) -> list[TrialRow]:
    ((made, _),), _ = create_studies(database, config)
    stop = watcher.stop if watcher is not None else StopRequest()
    Worker(
        database, made, config, task, watcher or SilentWatcher(), stop, start_relay=lambda study: None
    ).work()
    return trial_rows(database, made)


def test_finalists_are_trained_with_further_seeds_also_after_an_interruption(
    database: Database, data_file: Path, task: Task
) -> None:
    config = study(data_file)
    without = [t.value for t in work(database, replace(config, name="plain", finalists=None), task)]
    trials = work(database, config, task, StopAt(4))
    assert trials[4].state == "interrupted"
    trials = work(database, config, task)
    made = open_study(database, "water")
    assert [trial.value for trial in trials[:3]] == without, "the search itself is the same"
    replicates = trials[3:]
    assert 2 <= len(replicates) <= 4
    for trial in replicates:
        assert trial.replicate_of is not None
        original = trials[trial.replicate_of]
        assert (trial.state, trial.epochs) == ("complete", 4)
        assert trial.tags["replicate_of"] == f"trial {original.number}"
        assert trial.config is not None
        assert original.config is not None
        assert {**trial.config, "seed": 0} == {**original.config, "seed": 0}
        assert trial.value != original.value
    assert len({trial.config["seed"] for trial in trials if trial.config}) == len(trials)
    summary = summarize_study(database, made)
    best = complete_trials(trials)[0]
    of_best = [t.value or 0 for t in trials if best.number in (t.number, t.replicate_of)]
    assert (summary.best_number, summary.best_value) == (best.number, pytest.approx(sum(of_best) / 3))
    assert summary.best_seeds == 3
    assert summary.budget.trials == len(trials) == summary.ended
    in_optuna = made.optuna.get_trials()
    assert in_optuna[3].params == in_optuna[trials[3].replicate_of or 0].params
    assert in_optuna[3].value == trials[3].value
    reproduction = reproduce_trial(task, recorded_trial(database, made, trials, 3))
    assert reproduction.alike(0)


def test_paused_trials_come_first_and_replicates_are_not_compared_at_rungs(
    database: Database, data_file: Path, task: Task
) -> None:
    pruner = {"kind": "asha", "min_epochs": 1, "reduction_factor": 2, "finish": 2}
    trials = work(database, study(data_file, pruner=pruner, limits={"trials": 5}), task)
    replicates = [trial for trial in trials if trial.replicate_of is not None]
    assert replicates
    assert {trial.number for trial in replicates} == {*range(5, len(trials))}
    assert all((trial.state, trial.epochs) == ("complete", 4) for trial in replicates)
    assert {trial.state for trial in trials[:5]} == {"complete", "pruned"}


def begin(database: Database, data_file: Path) -> Study:
    ((made, _),), _ = create_studies(database, study(data_file, limits={"trials": 1}))
    return made


def test_replicates_are_added_once_and_only_when_nothing_else_is_left(
    database: Database, data_file: Path
) -> None:
    made = begin(database, data_file)
    assert not add_replicates(database, made, WORKER, [0], among=0), "a trial may begin"
    claim = claim_trial(database, made, WORKER)
    assert claim is not None
    assert not add_replicates(database, made, WORKER, [0], among=1), "a trial runs"
    Attempt(database, made, claim).finish("failed", reason="for a test")
    assert not add_replicates(database, made, WORKER, [0], among=2), "a trial was added meanwhile"
    assert add_replicates(database, made, WORKER, [0, 0], among=1)
    assert not add_replicates(database, made, WORKER, [0, 0], among=1), "another worker was faster"
    claims = [claim_trial(database, made, WORKER) for _ in range(3)]
    assert [each and (each.number, each.replicate_of) for each in claims] == [(1, 0), (2, 0), None]


def test_an_extended_study_searches_on(database: Database, data_file: Path, task: Task) -> None:
    config = study(data_file)
    before = len(work(database, config, task))
    made = open_study(database, "water")
    extend_budget(database, made, Budget(trials=1))
    trials = work(database, config, task)
    assert trials[before].replicate_of is None
    assert all(trial.replicate_of is not None for trial in trials[before + 1 :])


def test_the_table_shows_the_spread(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    console = Console(width=200)
    console.print(printed_leaderboard([row(0, 0.5), row(1, 0.58), row(2, 0.7, of=0)]))
    printed = capsys.readouterr().out
    assert "0.600 ± 0.141 (2)" in printed
    assert "complete, seed of 0" in printed
