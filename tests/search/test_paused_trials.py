"""Trials that are paused at a rung: resumed by later results, by other workers, with the same numbers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from search.propose.samplers import propose, trial_limit
from search.study import SamplerConfig, StudyConfig, study_from_values
from search.work.stopping import StopRequest
from search.work.worker import SilentWatcher, TrialNews, Worker
from storage.database import Database, open_database
from storage.settings import Settings
from storage.studies import Budget, Study, StudyProgress, create_study, summarize_study
from storage.trials.paused import rung_results
from storage.trials.views import TrialRow, metric_history, trial_rows
from trainer.config import TrainConfig, dump_config, load_config
from trainer.progress import no_progress
from trainer.reporting import SilentReporter
from trainer.run import run_training
from trainer.task import Task, prepare_task

EPOCHS = 9
TRIALS = 9


class Watching(SilentWatcher):
    """Remembers what a worker told, and asks it to stop after so many trials."""

    def __init__(self, stop: StopRequest | None = None, after: int = 0) -> None:
        self.news: list[TrialNews] = []
        self.last: StudyProgress | None = None
        self._stop = stop
        self._after = after

    def ended(self, news: TrialNews, progress: StudyProgress) -> None:
        self.news.append(news)
        self.last = progress
        if self._stop is not None and len(self.news) == self._after:
            self._stop.ask(signal.SIGINT)

    def left(self, progress: StudyProgress) -> None:
        self.last = progress


@pytest.fixture(scope="module")
def task(data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Task:
    config = study_from_values({"name": "x", "data": {"files": [str(data_file)]}}, "test")
    return prepare_task(config.task, tmp_path_factory.mktemp("features"), no_progress)


@pytest.fixture
def config(data_file: Path) -> StudyConfig:
    return study_from_values(
        {
            "name": "pausing",
            "data": {"files": [str(data_file)]},
            "training": {"epochs": EPOCHS, "hidden": [8], "batch_size": 32, "device": "cpu"},
            "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
            "sampler": {"kind": "random"},
            "pruner": {"kind": "asha", "min_epochs": 1, "reduction_factor": 3},
            "limits": {"trials": TRIALS},
            "seed": 1,
        },
        "test",
    )


@contextmanager
def home(folder: Path, artifacts: Path | None = None, database: Path | None = None) -> Iterator[Database]:
    database = database or folder / "a.db"
    settings = Settings(folder, f"sqlite:///{database}", f"sqlite:///{folder}/m.db", artifacts)
    with open_database(settings) as opened:
        yield opened


def begin(database: Database, config: StudyConfig) -> Study:
    limits = config.limits
    return create_study(
        database, config.name, dump_config(config), Budget(trial_limit(config), None, limits.epochs)
    )


def work(
    database: Database,
    config: StudyConfig,
    task: Task,
    watching: Watching | None = None,
    stop: StopRequest | None = None,
    concurrent_trials: int = 1,
) -> list[TrialRow]:
    study = begin(database, config)
    Worker(
        database,
        study,
        config,
        task,
        watching or Watching(),
        stop or StopRequest(),
        start_relay=lambda _: None,
        concurrent_trials=concurrent_trials,
    ).work()
    return trial_rows(database, study)


def curves(database: Database, config: StudyConfig) -> dict[int, list[float]]:
    study = begin(database, config)
    return {
        trial.number: [row.value for row in metric_history(database, study, trial.number)["val/mae_kcalmol"]]
        for trial in trial_rows(database, study)
    }


@pytest.mark.parametrize("concurrent_trials", [1, 2])
def test_a_study_ends_with_its_best_trained_in_full_and_the_others_pruned(
    config: StudyConfig, task: Task, tmp_path: Path, concurrent_trials: int
) -> None:
    watching = Watching()
    with home(tmp_path) as database:
        trials = work(database, config, task, watching, concurrent_trials=concurrent_trials)
        study = begin(database, config)
        assert {t.state for t in trials} == {"complete", "pruned"}
        assert all(t.epochs == EPOCHS for t in trials if t.state == "complete")
        assert [t.state for t in trials].count("complete") >= 3, "the best three are finished"
        assert all(t.epochs in (1, 3) for t in trials if t.state == "pruned")
        results = rung_results(database, study)
        assert not any(result.paused for result in results)
        for step in (1, 3):  # the best third of a rung went on
            at_rung = sorted((r for r in results if r.step == step), key=lambda r: r.value)
            for result in at_rung[: len(at_rung) // 3]:
                assert trials[result.number].epochs > step
        resumed = [t for t in trials if t.attempt > 1]
        assert resumed, "a trial was promoted after it had been paused"
        assert all(t.trained_epochs == t.epochs for t in trials), "no epoch was trained twice"
        assert {news.state for news in watching.news} == {"paused", "complete"}
        assert watching.last is not None
        assert watching.last.ended == TRIALS, "the last line counts the trials that ended with the study"
        told = study.optuna.get_trials()
        assert [t.state.name.lower() for t in told] == [t.state for t in trials]
        assert not any("paused" in t.user_attrs for t in told)
        assert summarize_study(database, study).trials["paused"] == 0


def test_a_resumed_trial_has_the_numbers_of_one_that_was_never_paused(
    config: StudyConfig, task: Task, tmp_path: Path
) -> None:
    with home(tmp_path / "home") as database:
        trials = work(database, config, task)
        measured = curves(database, config)
    resumed = max((t for t in trials if t.attempt > 1), key=lambda t: t.epochs)
    assert resumed.epochs > 1
    undisturbed = run_training(
        task, load_config(TrainConfig, resumed.config or {}, "test"), tmp_path / "alone", SilentReporter()
    )
    alone = [record.val_mae for record in undisturbed.history]
    assert measured[resumed.number] == alone[: resumed.epochs]


def test_a_stopped_study_keeps_its_paused_trials_and_comes_to_the_same_end(
    config: StudyConfig, task: Task, tmp_path: Path
) -> None:
    with home(tmp_path / "whole") as database:
        whole = work(database, config, task)
        curves_of_whole = curves(database, config)
    with home(tmp_path / "stopped") as database:
        stop = StopRequest()
        trials = work(database, config, task, Watching(stop, after=3), stop)
        study = begin(database, config)
        paused = [t for t in trials if t.state == "paused"]
        assert paused
        assert all(t.ended is None and t.value is not None for t in paused)
        assert all("others were better" in str(t.reason) for t in paused)
        assert summarize_study(database, study).trials["paused"] == len(paused)
        for trial in paused:  # as people see it in Optuna, which has no such state
            told = study.optuna.get_trials()[trial.number]
            assert told.state == TrialState.RUNNING
            assert told.user_attrs["paused"] == trial.reason
        after = work(database, config, task)
        assert [(t.number, t.state, t.value, t.epochs) for t in after] == [
            (t.number, t.state, t.value, t.epochs) for t in whole
        ]
        assert curves(database, config) == curves_of_whole


@pytest.mark.parametrize("kind", ["tpe", "gp"])
def test_samplers_learn_from_paused_trials(
    kind: str, config: StudyConfig, task: Task, tmp_path: Path
) -> None:
    def proposed(startup_trials: int) -> float:
        sampler = SamplerConfig(kind=kind, startup_trials=startup_trials)
        learning_rate = propose(database.optuna, replace(config, sampler=sampler), 4).params["learning_rate"]
        assert isinstance(learning_rate, float)
        return learning_rate

    config = replace(config, pruner=replace(config.pruner, reduction_factor=8))  # type: ignore[type-var]
    with home(tmp_path) as database:
        stop = StopRequest()
        trials = work(database, config, task, Watching(stop, after=4), stop)
        assert [trial.state for trial in trials] == ["paused"] * 4
        assert proposed(startup_trials=4) != proposed(startup_trials=5), "the latter is at random"


def test_of_many_paused_trials_the_least_promising_end_as_pruned(
    config: StudyConfig, task: Task, tmp_path: Path
) -> None:
    pruner = replace(config.pruner, reduction_factor=8, max_paused=3)  # type: ignore[type-var]
    config = replace(config, pruner=pruner)
    with home(tmp_path) as database:
        stop = StopRequest()
        trials = work(database, config, task, Watching(stop, after=7), stop)
        by_value = sorted(trials, key=lambda t: t.value or 0)
        assert [t.state for t in by_value] == ["paused"] * 3 + ["pruned"] * 4


def test_a_spent_budget_of_epochs_leaves_one_trial_to_be_finished(
    config: StudyConfig, task: Task, tmp_path: Path
) -> None:
    config = replace(config, limits=replace(config.limits, trials=None, epochs=4))
    with home(tmp_path) as database:
        trials = work(database, config, task)
    assert [t.state for t in trials].count("complete") == 1
    assert {t.state for t in trials} == {"complete", "pruned"}
    best = min(trials, key=lambda t: t.value or 0)
    assert best.state == "complete"


def test_another_machine_without_the_folder_resumes_a_paused_trial(
    config: StudyConfig, task: Task, tmp_path: Path
) -> None:
    shared = tmp_path / "shared.db"
    with home(tmp_path / "one", tmp_path / "blobs", shared) as database:
        stop = StopRequest()
        work(database, config, task, Watching(stop, after=3), stop)
    with home(tmp_path / "two", tmp_path / "blobs", shared) as database:
        trials = work(database, config, task)
    resumed = [t for t in trials if t.number < 3 and t.attempt > 1]
    assert resumed
    assert all(t.trained_epochs == t.epochs for t in trials), "no epoch was trained twice"
