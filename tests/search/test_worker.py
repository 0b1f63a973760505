from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from search.propose.samplers import trial_limit
from search.study import Limits, PrunerConfig, StudyConfig, study_from_values
from search.work.stopping import StopRequest
from search.work.worker import MODEL, TrialNews, Worker
from storage.database import Database, open_database
from storage.errors import FactsChangedError
from storage.records.tables import attempts
from storage.settings import Settings
from storage.studies import Budget, Study, StudySummary, create_study, summarize_study
from storage.trials.queue import WorkerInfo, claim_trial
from storage.trials.views import TrialRow, metric_history, trial_rows
from trainer.config import FeatureConfig, dump_config
from trainer.progress import no_progress
from trainer.task import Task, prepare_task

EPOCHS = 4


class Watching:
    """Remembers what a worker told, and may act at an epoch of a trial."""

    def __init__(self, at_epoch: Callable[[int, int], None] = lambda number, epoch: None) -> None:
        self.news: list[TrialNews] = []
        self._at_epoch = at_epoch
        self._number = -1

    def begun(self, news: TrialNews, summary: StudySummary) -> None:
        self._number = news.number

    def epoch(self, done: int) -> None:
        self._at_epoch(self._number, done)

    def ended(self, news: TrialNews, summary: StudySummary) -> None:
        self.news.append(news)


@pytest.fixture
def config(data_file: Path) -> StudyConfig:
    values = {
        "name": "tiny",
        "data": {"files": [str(data_file)]},
        "training": {"epochs": EPOCHS, "checkpoint_seconds": 0, "hidden": [8], "device": "cpu"},
        "space": {"batch_size": {"choices": [16, 32]}, "learning_rate": {"low": 1e-3, "high": 1e-2}},
        "sampler": {"startup_trials": 2},
        "pruner": {"kind": "none"},
        "limits": {"trials": 3},
    }
    return study_from_values(values, "test")


@pytest.fixture(scope="session")
def task(data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Task:
    config = study_from_values({"name": "x", "data": {"files": [str(data_file)]}}, "test")
    return prepare_task(
        config.data, config.split, FeatureConfig(), tmp_path_factory.mktemp("features"), no_progress
    )


@pytest.fixture
def database(tmp_path: Path) -> Any:
    home = tmp_path / "home"
    with open_database(Settings(home, f"sqlite:///{home}/a.db", f"sqlite:///{home}/m.db")) as database:
        yield database


def begin(database: Database, config: StudyConfig) -> Study:
    return create_study(database, config.name, dump_config(config), Budget(trials=trial_limit(config)))


def work(
    database: Database,
    config: StudyConfig,
    task: Task,
    watching: Watching | None = None,
    stop: StopRequest | None = None,
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
    ).work()
    return trial_rows(database, study)


def results(trials: list[TrialRow]) -> list[Any]:
    return [(t.number, t.state, t.config, t.value, t.epochs) for t in trials]


def test_a_study_is_trained_and_recorded(database: Database, config: StudyConfig, task: Task) -> None:
    watching = Watching()
    trials = work(database, config, task, watching)
    assert [(t.number, t.state, t.epochs) for t in trials] == [(n, "complete", EPOCHS) for n in range(3)]
    assert [(news.number, news.state, news.value) for news in watching.news] == [
        (t.number, t.state, t.value) for t in trials
    ]
    for trial in trials:
        history = metric_history(database, begin(database, config), trial.number)
        maes = {row.step: row.value for row in history["val/mae_kcalmol"]}
        assert trial.value == min(maes.values())
        assert sorted(maes) == list(range(1, EPOCHS + 1))
        assert trial.params is not None
        assert trial.tags["arch"] == f"384-8-1 {trial.params['activation']}"
        assert (trial.params["layers"], trial.params["width_1"]) == (1, 8)
        files = {file.path for file in trial.artifacts}
        assert {
            MODEL,
            "config.json",
            "metrics.json",
            "history.csv",
            "plots/parity.png",
            "plots/loss.png",
        } <= files
    # Optuna has the same numbers.
    optuna_trials = database.optuna.get_all_trials(database.optuna.get_study_id_from_name("tiny"))
    assert [t.value for t in optuna_trials] == [t.value for t in trials]


def test_trials_are_pruned_at_rungs(database: Database, config: StudyConfig, task: Task) -> None:
    pruner = PrunerConfig("asha", min_epochs=1, reduction_factor=2)
    config = replace(config, pruner=pruner, limits=Limits(trials=5))
    trials = work(database, config, task)
    pruned = [t for t in trials if t.state == "pruned"]
    assert pruned
    assert all(t.epochs in (1, 2) for t in pruned)
    assert all(t.epochs == EPOCHS for t in trials if t.state == "complete")
    study = begin(database, config)
    assert summarize_study(database, study).epochs_saved == sum(EPOCHS - t.epochs for t in pruned)
    # Optuna was told of the rungs, not of every epoch.
    optuna_trials = study.optuna.get_trials()
    assert [list(optuna_trials[t.number].intermediate_values) for t in pruned] == [
        [1, 2][: t.epochs] for t in pruned
    ]


def test_a_study_that_was_stopped_goes_on_to_the_same_numbers(
    database: Database, config: StudyConfig, task: Task, tmp_path: Path
) -> None:
    stop = StopRequest()

    def stop_in_the_middle(number: int, epoch: int) -> None:
        if (number, epoch) == (1, 2):
            stop.ask(signal.SIGINT)

    watching = Watching(stop_in_the_middle)
    interrupted = work(database, config, task, watching, stop)
    assert [t.state for t in interrupted] == ["complete", "interrupted"]
    assert watching.news[-1].state == "interrupted"
    after = work(database, config, task)
    assert after[1].attempt == 2
    assert after[1].trained_epochs == after[1].epochs  # no epoch was trained twice

    home = tmp_path / "other"
    with open_database(Settings(home, f"sqlite:///{home}/a.db", f"sqlite:///{home}/m.db")) as untouched:
        assert results(work(untouched, config, task)) == results(after)


def test_a_second_signal_hands_the_trial_back_at_once(
    database: Database, config: StudyConfig, task: Task
) -> None:
    def interrupt(number: int, epoch: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(database, config, task, Watching(interrupt))
    (trial,) = trial_rows(database, begin(database, config))
    assert trial.state == "interrupted"
    assert (
        claim_trial(database, begin(database, config), WorkerInfo("other", "here", 1, "cpu", {})) is not None
    )


def test_a_trial_that_fails_does_not_end_the_study(
    database: Database, config: StudyConfig, task: Task
) -> None:
    folder = database.settings.trial_folder("tiny", 1)
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_bytes(b"rubbish")
    trials = work(database, config, task)
    assert [t.number for t in trials if t.state == "failed"] == [1]
    assert "checkpoint.safetensors" in str(trials[1].reason)
    assert len(trials) == 3


def test_a_worker_that_lost_its_trial_writes_no_more(
    database: Database, config: StudyConfig, task: Task
) -> None:
    study, stop = begin(database, config), StopRequest()
    other = WorkerInfo("other", "elsewhere", 1, "cpu", {})

    def be_taken_over(number: int, epoch: int) -> None:
        if epoch == 1 and number == 0:
            with database.writing() as connection:
                connection.execute(update(attempts).values(lease_until=0.0))
            taken = claim_trial(database, study, other)
            assert taken is not None
            assert taken.number == 0
            stop.ask(signal.SIGTERM)

    (trial,) = work(database, config, task, Watching(be_taken_over), stop)
    assert (trial.state, trial.worker.name, trial.epochs) == ("running", "other", 0)


def test_other_data_under_the_same_name_is_refused(
    database: Database, config: StudyConfig, task: Task
) -> None:
    study = begin(database, config)
    study.set_facts(task.fingerprints)
    with pytest.raises(FactsChangedError, match="data was"):
        study.set_facts(task.fingerprints | {"data": "another"})


ROWS = [
    {"label": "first", "reported_mae": 1.0},
    {"label": "second", "training": {"learning_rate": 1e-6, "epochs": 1}, "start_from": "first"},
]


def test_a_row_starts_from_the_weights_of_another(
    database: Database, config: StudyConfig, task: Task
) -> None:
    rows = study_from_values(
        {"name": "rows", "data": dump_config(config.data), "training": config.training, "rows": ROWS}, "test"
    )
    first, second = work(database, rows, task)
    assert first.value is not None
    assert second.value is not None
    assert second.epochs == 1
    # One epoch at so small a rate changes nothing; a fresh network would be far off.
    assert second.value == pytest.approx(first.value, rel=0.01)
    assert second.tags["start_from"] == "first"


def test_a_row_waits_for_the_one_that_it_starts_from(
    database: Database, config: StudyConfig, task: Task
) -> None:
    rows = study_from_values({"name": "rows", "training": config.training, "rows": ROWS}, "test")
    other = WorkerInfo("other", "elsewhere", 1, "cpu", {})
    # Another worker has the first row, and dies.
    claimed = claim_trial(database, begin(database, rows), other, lease_seconds=1.0)
    assert claimed is not None
    first, second = work(database, rows, task)
    assert (first.state, second.state) == ("complete", "complete")
    assert first.attempt == 2
    assert first.ended is not None
    assert second.ended is not None
    assert first.ended < second.ended


def test_a_row_whose_start_failed_fails_too(database: Database, config: StudyConfig, task: Task) -> None:
    folder = database.settings.trial_folder("rows", 0)
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_bytes(b"rubbish")
    rows = study_from_values({"name": "rows", "training": config.training, "rows": ROWS}, "test")
    _, second = work(database, rows, task)
    assert second.state == "failed"
    assert second.reason == "row first, whose weights it starts from, has none: it failed"
