from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from sqlalchemy import select, update

from search.propose.samplers import Proposal, propose, trial_limit
from search.study import Limits, PrunerConfig, StudyConfig, study_from_values
from search.work import worker as worker_module
from search.work.folders import take_folder
from search.work.stopping import StopRequest
from search.work.worker import SilentWatcher, TrialNews, Worker
from storage.blobs.place import open_blobs
from storage.database import Database, open_database
from storage.errors import BlobDamagedError, DatabaseError, FactsChangedError
from storage.garbage import find_garbage
from storage.lifecycle import change_state
from storage.records.tables import attempts
from storage.records.tables import trials as trial_table
from storage.settings import Settings
from storage.studies import Budget, Study, StudyProgress, create_study, summarize_study
from storage.trials import heartbeat
from storage.trials.attempts import Attempt
from storage.trials.queue import CRASHES_ALLOWED, WorkerInfo, claim_trial
from storage.trials.views import TrialRow, metric_history, trial_rows
from trainer.config import dump_config
from trainer.errors import OutputError, TrainingFailed
from trainer.files import MODEL
from trainer.fingerprints import digest_of
from trainer.fitting import pack
from trainer.fitting.checkpoints import CHECKPOINT, Checkpoint, _digest, save_checkpoint
from trainer.progress import no_progress
from trainer.reporting import EpochRecord
from trainer.run import TrainingResult, run_training
from trainer.task import Task, prepare_task

EPOCHS = 4


class Watching(SilentWatcher):
    """Remembers what a worker told, and may act at an epoch of a trial."""

    def __init__(self, at_epoch: Callable[[int, int], None] = lambda number, epoch: None) -> None:
        self.news: list[TrialNews] = []
        self._at_epoch = at_epoch

    def epoch(self, number: int, done: int) -> None:
        self._at_epoch(number, done)

    def ended(self, news: TrialNews, progress: StudyProgress) -> None:
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
    return prepare_task(config.task, tmp_path_factory.mktemp("features"), no_progress)


def logs_of(database: Database, trial: TrialRow) -> dict[str, str]:
    """What the attempts at a trial said, by the paths of their logs in the run."""
    blobs = open_blobs(database)
    return {
        file.path: blobs.path(file.digest).read_text()
        for file in trial.artifacts
        if file.path.startswith("logs/")
    }


def begin(database: Database, config: StudyConfig) -> Study:
    return create_study(database, config.name, dump_config(config), Budget(trials=trial_limit(config)))


def work(
    database: Database,
    config: StudyConfig,
    task: Task,
    watching: Watching | None = None,
    stop: StopRequest | None = None,
    concurrent_trials: int | None = 1,
    start_relay: Callable[[Study], object] = lambda _: None,
) -> list[TrialRow]:
    study = begin(database, config)
    Worker(
        database,
        study,
        config,
        task,
        watching or Watching(),
        stop or StopRequest(),
        start_relay=start_relay,
        concurrent_trials=concurrent_trials,
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
        log = logs_of(database, trial)["logs/attempt-1.log"]
        assert all(f"epoch {epoch}: training loss" in log for epoch in maes)
        assert f"finished after {EPOCHS} epochs" in log
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
    first, second = logs_of(database, after[1]).values()
    assert "epoch 2: training loss" in first
    assert "stopped after 2 epochs" in first
    assert "continues after epoch 2" in second
    assert "epoch 2: training loss" not in second
    assert "epoch 3: training loss" in second

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


@pytest.mark.parametrize("concurrent_trials", [1, 2])
def test_a_trial_that_fails_does_not_end_the_study(
    database: Database, config: StudyConfig, task: Task, concurrent_trials: int
) -> None:
    rows = [{"label": "a"}, {"label": "b", "training": {"device": "cuda:99"}}, {"label": "c"}]
    study = study_from_values({"name": "rows", "training": config.training, "rows": rows}, "test")
    trials = work(database, study, task, concurrent_trials=concurrent_trials)
    assert [(t.number, t.state) for t in trials] == [(0, "complete"), (1, "failed"), (2, "complete")]
    assert "cuda:99 is asked for" in str(trials[1].reason)


def test_the_log_of_a_trial_that_goes_wrong_tells_where(
    database: Database, config: StudyConfig, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: object, **__: object) -> None:
        raise TrainingFailed("the training loss is nan in epoch 1")

    monkeypatch.setattr(worker_module, "run_training", diverge)
    (trial,) = work(database, replace(config, limits=Limits(trials=1)), task)
    assert trial.state == "failed"
    (log,) = logs_of(database, trial).values()
    assert "Traceback" in log
    assert "TrainingFailed: the training loss is nan in epoch 1" in log


def test_a_trial_that_is_stopped_within_its_first_epoch_is_handed_back(
    database: Database, config: StudyConfig, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "LONG_EPOCH", 0.0)

    for attempt in range(1, CRASHES_ALLOWED + 2):  # as often as it likes: this is no crash
        stop = StopRequest()
        watching = Watching(lambda number, epoch, stop=stop: stop.ask(signal.SIGTERM))
        trials = work(database, config, task, watching, stop)
        assert [(t.state, t.attempt, t.epochs) for t in trials] == [("interrupted", attempt, 0)]
        assert [(news.state, news.epochs, news.value) for news in watching.news] == [("interrupted", 0, None)]
    monkeypatch.undo()
    assert [t.state for t in work(database, config, task)] == ["complete"] * 3


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

    watching = Watching(be_taken_over)
    (trial,) = work(database, config, task, watching, stop)
    assert (trial.state, trial.worker.name, trial.epochs) == ("running", "other", 0)
    assert [(news.number, news.state) for news in watching.news] == [(0, "lost")]


def test_a_worker_that_knows_that_it_lost_its_trial_leaves_the_files_to_the_taker(
    database: Database, config: StudyConfig, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEATS_PER_LEASE", 600)  # each 0.1 s
    config = replace(config, limits=replace(config.limits, trials=1))  # none other is claimed
    study, stop = begin(database, config), StopRequest()
    other = WorkerInfo("other", "elsewhere", 1, "cpu", {})

    def be_taken_over(number: int, epoch: int) -> None:
        if epoch == 2:
            (thread,) = (thread for thread in threading.enumerate() if thread.name == "lease")
            taken, deadline = None, time.monotonic() + 60
            while taken is None:  # a renewal may have come between
                assert time.monotonic() < deadline, "the lease is renewed each time before it is taken"
                expire_leases(database)
                taken = claim_trial(database, study, other)
            take_folder(database.settings.attempt_folder(study.name, number, taken.attempt))
            thread.join(60)
            assert not thread.is_alive(), "it does not end although it is refused"
            stop.ask(signal.SIGTERM)

    watching = Watching(be_taken_over)
    work(database, config, task, watching, stop)
    assert [(news.number, news.state) for news in watching.news] == [(0, "lost")]
    taken, lost = (database.settings.attempt_folder(study.name, 0, attempt) for attempt in (2, 1))
    assert taken.exists()
    assert not lost.exists()


@pytest.mark.parametrize("concurrent_trials", [1, 2])
def test_a_study_that_is_stopped_gets_its_trials_back_and_its_worker_leaves(
    database: Database,
    config: StudyConfig,
    task: Task,
    monkeypatch: pytest.MonkeyPatch,
    concurrent_trials: int,
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEATS_PER_LEASE", 600)  # each 0.1 s
    config = replace(config, training={**config.training, "epochs": 100_000})
    study = begin(database, config)
    meeting = Meeting(concurrent_trials)

    def stop_the_study(number: int, epoch: int) -> None:
        if epoch == 2:
            meeting.join(number)
            change_state(database, study, "stopped", of=("open", "stopped"))

    watching = Watching(stop_the_study)
    trials = work(database, config, task, watching, concurrent_trials=concurrent_trials)
    assert [t.state for t in trials] == ["interrupted"] * concurrent_trials
    assert [news.state for news in watching.news] == ["interrupted"] * concurrent_trials
    assert work(database, config, task) == trials  # begins none


def test_the_worker_of_a_paused_study_finishes_its_trial_and_waits(
    database: Database, config: StudyConfig, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "POLL_SECONDS", 0.05)
    study = begin(database, config)

    class Pausing(Watching):
        def ended(self, news: TrialNews, progress: StudyProgress) -> None:
            super().ended(news, progress)
            if news.number == 0:
                change_state(database, study, "paused", of=("open",))
                resuming.start()

    def resume() -> None:
        assert [t.state for t in trial_rows(database, study)] == ["complete"]
        change_state(database, study, "open", of=("paused",))

    resuming = threading.Timer(0.5, resume)
    trials = work(database, config, task, Pausing())
    resuming.join(60)
    assert not resuming.is_alive(), "the study is not resumed"
    assert [t.state for t in trials] == ["complete"] * 3
    assert trials[0].ended is not None
    assert trials[1].started - trials[0].ended > 0.4


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
    first = ROWS[0] | {"training": {"device": "cuda:99"}}
    rows = study_from_values({"name": "rows", "training": config.training, "rows": [first, ROWS[1]]}, "test")
    _, second = work(database, rows, task)
    assert second.state == "failed"
    assert second.reason == "row first, whose weights it starts from, has none: it failed"


REPEATED = {
    "space": {"activation": {"choices": ["silu", "celu"]}},
    "training": {"optimizer": "adam", "learning_rate": 1e-3, "dropout": 0.0, "weight_decay": 0.0},
}


def with_repeats(config: StudyConfig, trials: int, **changes: Any) -> StudyConfig:
    """A study that can propose two configurations only."""
    values = {
        "name": "twins",
        "data": dump_config(config.data),
        "training": {**config.training, "batch_size": 16, **REPEATED["training"]},
        "space": REPEATED["space"],
        "sampler": {"kind": "random"},
        "pruner": {"kind": "none"},
        "limits": {"trials": trials},
    }
    return study_from_values(values | changes, "test")


@pytest.mark.parametrize("concurrent_trials", [1, 3])
def test_equal_settings_are_trained_once_and_count(
    database: Database,
    config: StudyConfig,
    task: Task,
    monkeypatch: pytest.MonkeyPatch,
    concurrent_trials: int,
) -> None:
    monkeypatch.setattr(worker_module, "POLL_SECONDS", 0.05)
    watching = Watching()
    repeated = with_repeats(config, 6)
    study = begin(database, repeated)
    for activation in ("silu", "celu") * 3:  # somebody asks for what is known
        study.optuna.enqueue_trial({"activation": activation})
    trials = work(database, repeated, task, watching, concurrent_trials=concurrent_trials)
    assert [t.state for t in trials] == ["complete"] * 6
    by_activation: dict[str, set[Any]] = {}
    for trial in trials:
        assert trial.config is not None
        by_activation.setdefault(trial.config["activation"], set()).add(trial.value)
    assert [len(values) for values in by_activation.values()] == [1, 1]
    trained = [t for t in trials if "same_as" not in t.tags]
    assert sorted(t.trained_epochs for t in trials) == [0] * 4 + [EPOCHS] * 2
    assert [t.trained_epochs for t in trained] == [EPOCHS] * 2
    assert {t.epochs for t in trials} == {EPOCHS}
    told = {news.number: news.original for news in watching.news}
    for trial in trials:
        assert trial.tags.get("same_as") == (
            f"trial {told[trial.number]}" if told[trial.number] is not None else None
        )


def test_equal_settings_have_the_digest_of_earlier_versions(
    database: Database, config: StudyConfig, task: Task
) -> None:
    """A study that 0.1.0 began goes on: its trials and new ones with equal settings must be found equal."""
    (trial,) = work(database, with_repeats(config, 1), task)
    settings = {**(trial.config or {}), "start_from": None}
    del settings["checkpoint_seconds"], settings["seed"]
    with database.reading() as connection:
        recorded = connection.execute(select(trial_table.c.settings)).scalar_one()
    assert recorded == digest_of(settings)


def test_replicates_are_trained_with_other_seeds(database: Database, config: StudyConfig, task: Task) -> None:
    trials = work(database, with_repeats(config, 3, repeats="replicate"), task)
    assert [t.trained_epochs for t in trials] == [EPOCHS] * 3
    assert len({t.config["seed"] for t in trials if t.config is not None}) == 3


def test_a_study_whose_space_is_used_up_begins_no_more_trials(
    database: Database, config: StudyConfig, task: Task
) -> None:
    trials = work(database, with_repeats(config, 20), task)
    # The third is the one by which this was found.
    assert [t.trained_epochs for t in trials] == [EPOCHS, EPOCHS, 0]
    assert summarize_study(database, begin(database, with_repeats(config, 20))).budget.trials == 3


def test_rows_that_differ_in_their_seeds_are_all_trained(
    database: Database, config: StudyConfig, task: Task
) -> None:
    seeds = [{"label": n, "training": {"seed": n // 2}} for n in range(4)]
    rows = study_from_values({"name": "rows", "training": config.training, "rows": seeds}, "test")
    trials = work(database, rows, task)
    assert [t.tags.get("same_as") for t in trials] == [None, "trial 0", None, "trial 2"]
    assert trials[0].value != trials[2].value


def test_a_trial_whose_original_failed_is_trained_itself(
    database: Database, config: StudyConfig, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([TrainingFailed("out of memory")])

    def fail_once(*arguments: Any, **named: Any) -> TrainingResult:
        for failure in failures:
            raise failure
        return run_training(*arguments, **named)

    monkeypatch.setattr(worker_module, "run_training", fail_once)
    rows = study_from_values(
        {"name": "rows", "training": config.training, "rows": [{"label": n} for n in range(3)]}, "test"
    )
    trials = work(database, rows, task)
    assert [(t.state, t.tags.get("same_as")) for t in trials] == [
        ("failed", None),
        ("complete", None),
        ("complete", "trial 1"),
    ]


class Meeting:
    """Lets threads that come once wait until so many are there: they run at the same time."""

    def __init__(self, threads: int = 2) -> None:
        self._barrier = threading.Barrier(threads)
        self._came: set[int] = set()

    def join(self, number: int) -> None:
        if number not in self._came:
            self._came.add(number)
            self._barrier.wait(timeout=60)


class Crowd:
    """Counts how many threads are in a block at once."""

    def __init__(self) -> None:
        self.most = 0
        self._now = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        self._now += 1
        self.most = max(self.most, self._now)
        time.sleep(0.1)
        yield
        self._now -= 1


def numbers(database: Database, config: StudyConfig, trials: list[TrialRow]) -> list[Any]:
    """All that was recorded of trials but for times: configurations, weights, metrics of every epoch."""
    study = begin(database, config)
    return [
        (
            results([trial]),
            [file.digest for file in trial.artifacts if file.path == MODEL],
            {
                key: [(row.step, row.value) for row in rows]
                for key, rows in metric_history(database, study, trial.number).items()
                if key != "train/epoch_seconds"
            },
        )
        for trial in trials
    ]


SIDE_BY_SIDE = [
    {"label": "plain"},
    {"label": "dropout", "training": {"dropout": 0.2, "hidden": [16, 8], "activation": "gelu"}},
    {"label": "average", "training": {"ema_decay": 0.9, "batch_size": 8, "optimizer": "adam"}},
    {"label": "double", "training": {"precision": "float64", "schedule": "plateau"}},
]


def test_a_trial_beside_another_gives_the_numbers_that_it_gives_alone(
    database: Database, config: StudyConfig, task: Task, tmp_path: Path
) -> None:
    rows = study_from_values({"name": "rows", "training": config.training, "rows": SIDE_BY_SIDE}, "test")
    meeting = Meeting()

    def train_together(number: int, epoch: int) -> None:
        if number in (0, 1) and epoch == 1:
            meeting.join(number)

    beside = work(database, rows, task, Watching(train_together), concurrent_trials=2)
    assert [t.state for t in beside] == ["complete"] * 4
    assert {(t.worker.name, t.worker.pid, t.attempt) for t in beside} == {
        (beside[0].worker.name, os.getpid(), 1)
    }
    home = tmp_path / "alone"
    with open_database(Settings(home, f"sqlite:///{home}/a.db", f"sqlite:///{home}/m.db")) as other:
        assert numbers(database, rows, beside) == numbers(other, rows, work(other, rows, task))


def test_threads_train_no_more_than_was_asked_for_and_end_with_the_last_trial(
    database: Database, config: StudyConfig, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A slot that has nothing to do would find out after this time only.
    monkeypatch.setattr(worker_module, "POLL_SECONDS", 100.0)
    watching = Watching()
    begun = time.monotonic()
    trials = work(database, replace(config, limits=Limits(trials=5)), task, watching, concurrent_trials=4)
    assert time.monotonic() - begun < 100
    assert [(t.number, t.state, t.attempt) for t in trials] == [(n, "complete", 1) for n in range(5)]
    assert sorted(news.number for news in watching.news) == list(range(5))


def test_a_worker_without_a_number_asks_how_many_trials_suit_those_left(
    database: Database, config: StudyConfig, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def one(config: StudyConfig, task: Task, device: torch.device, most: int, memory: object) -> int:
        assert memory is None
        asked.append((str(device), most))
        return 1

    monkeypatch.setattr(worker_module, "choose_concurrent_trials", one)
    for limit, news in ((3, [("cpu", 3)]), (4, [])):  # a trial that is left alone needs no choice
        asked.clear()
        trials = work(database, replace(config, limits=Limits(trials=limit)), task, concurrent_trials=None)
        assert [trial.state for trial in trials] == ["complete"] * limit
        assert asked == news


def test_no_more_concurrent_trials_than_are_left(database: Database, config: StudyConfig, task: Task) -> None:
    threads = set()
    watching = Watching(lambda number, epoch: threads.add(threading.current_thread()))
    work(database, replace(config, limits=Limits(trials=1)), task, watching, concurrent_trials=4)
    assert threads == {threading.main_thread()}


def test_trials_that_were_stopped_side_by_side_go_on_to_the_same_numbers(
    database: Database, config: StudyConfig, task: Task, tmp_path: Path
) -> None:
    rows = study_from_values({"name": "rows", "training": config.training, "rows": SIDE_BY_SIDE[:2]}, "test")
    stop, meeting = StopRequest(), Meeting()

    def stop_in_the_middle(number: int, epoch: int) -> None:
        if epoch == 2:
            meeting.join(number)
            stop.ask(signal.SIGINT)

    watching = Watching(stop_in_the_middle)
    interrupted = work(database, rows, task, watching, stop, concurrent_trials=2)
    assert [(t.state, t.epochs) for t in interrupted] == [("interrupted", 2)] * 2
    assert [news.state for news in watching.news] == ["interrupted"] * 2
    after = work(database, rows, task, concurrent_trials=2)
    assert [(t.attempt, t.trained_epochs) for t in after] == [(2, EPOCHS)] * 2
    home = tmp_path / "other"
    with open_database(Settings(home, f"sqlite:///{home}/a.db", f"sqlite:///{home}/m.db")) as untouched:
        assert numbers(database, rows, after) == numbers(untouched, rows, work(untouched, rows, task))


def test_a_second_signal_hands_all_concurrent_trials_back_at_once(
    database: Database, config: StudyConfig, task: Task
) -> None:
    meeting = Meeting()

    def be_long(number: int, epoch: int) -> None:
        if epoch == 2:
            meeting.join(number)
            if number == 0:
                os.kill(os.getpid(), signal.SIGINT)
            for _ in range(3000):
                time.sleep(0.01)
            pytest.fail("was not interrupted")

    with pytest.raises(KeyboardInterrupt):
        work(database, config, task, Watching(be_long), concurrent_trials=2)
    trials = trial_rows(database, begin(database, config))
    assert [(t.state, t.attempt) for t in trials] == [("interrupted", 1)] * 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("slot", "lease"))]


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (OutputError("the disk is full"), "interrupted", None),
        (DatabaseError("the database is gone"), "interrupted", None),
        (ZeroDivisionError("a bug"), "failed", "ZeroDivisionError: a bug"),
    ],
)
def test_an_error_in_one_thread_ends_all_and_is_raised_once(
    database: Database, config: StudyConfig, task: Task, error: Exception, state: str, reason: str | None
) -> None:
    meeting = Meeting()
    # The other one cannot come to its end before it is asked to stop.
    config = replace(config, training={**config.training, "epochs": 100_000})

    def fail_beside_another(number: int, epoch: int) -> None:
        if epoch == 1:
            meeting.join(number)
            if number == 0:
                raise error

    watching = Watching(fail_beside_another)
    with pytest.raises(type(error)) as raised:
        work(database, config, task, watching, concurrent_trials=2)
    assert raised.value is error
    expire_leases(database)  # what cannot be written about is found by its lease
    faulty, other = trial_rows(database, begin(database, config))
    assert (faulty.state, faulty.reason) == (state, reason)
    assert other.state == "interrupted"
    assert [(news.number, news.state) for news in watching.news] == [(1, "interrupted")]


def expire_leases(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(update(attempts).where(attempts.c.ended_at.is_(None)).values(lease_until=0.0))


def test_a_row_that_waits_for_a_sibling_keeps_no_thread_from_other_rows(
    database: Database, config: StudyConfig, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "POLL_SECONDS", 0.05)
    third_has_ended = threading.Event()
    rows = study_from_values(
        {
            "name": "rows",
            "training": config.training,
            "rows": [*ROWS, {"label": "third", "training": {"dropout": 0.1}}],
        },
        "test",
    )

    class Waiting(Watching):
        def ended(self, news: TrialNews, progress: StudyProgress) -> None:
            super().ended(news, progress)
            if news.number == 2:
                third_has_ended.set()

    def outlast_the_third(number: int, epoch: int) -> None:
        if (number, epoch) == (0, 1):
            assert third_has_ended.wait(60)
            time.sleep(1)  # the other slot asks for work many times meanwhile

    watching = Waiting(outlast_the_third)
    first, second, third = work(database, rows, task, watching, concurrent_trials=2)
    assert [t.state for t in (first, second, third)] == ["complete"] * 3
    assert [news.number for news in watching.news] == [2, 0, 1]
    # It was begun once too early, to get at the third; it was not claimed again before its time.
    assert (first.attempt, second.attempt, third.attempt) == (1, 2, 1)
    assert second.value == pytest.approx(first.value, rel=0.01)


def test_trials_are_proposed_one_after_the_other(
    database: Database, config: StudyConfig, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd()

    def propose_slowly(*arguments: Any) -> Proposal:
        with crowd.counted():
            return propose(*arguments)

    monkeypatch.setattr(worker_module, "propose", propose_slowly)
    trials = work(database, config, task, concurrent_trials=3)
    assert crowd.most == 1
    assert len({t.config["learning_rate"] for t in trials if t.config is not None}) == 3


def test_concurrent_trials_start_one_relay(database: Database, config: StudyConfig, task: Task) -> None:
    crowd = Crowd()

    def start(study: Study) -> None:
        with crowd.counted():
            pass

    work(database, config, task, concurrent_trials=3, start_relay=start)
    assert crowd.most == 1


def test_a_relay_that_cannot_be_started_costs_no_trial(
    database: Database, config: StudyConfig, task: Task
) -> None:
    def fail(study: Study) -> None:
        raise PermissionError

    with pytest.raises(PermissionError):
        work(database, config, task, start_relay=fail)
    (trial,) = trial_rows(database, begin(database, config))
    assert trial.state == "interrupted"


@pytest.mark.parametrize("deadly", [0, 1])
def test_a_trial_on_its_last_chance_is_trained_alone(
    database: Database, config: StudyConfig, task: Task, monkeypatch: pytest.MonkeyPatch, deadly: int
) -> None:
    monkeypatch.setattr(worker_module, "POLL_SECONDS", 0.05)
    study, other = begin(database, config), WorkerInfo("other", "here", 1, "cpu", {})
    for _ in range(CRASHES_ALLOWED - 1):
        claims = [claim_trial(database, study, other) for _ in range(2)]
        harmless = claims[1 - deadly]
        assert harmless is not None
        Attempt(database, study, harmless).hand_back("stopped")
        expire_leases(database)
    course: list[tuple[str, int]] = []

    class Noting(Watching):
        def begun(self, news: TrialNews, progress: StudyProgress) -> None:
            course.append(("begun", news.number))

        def ended(self, news: TrialNews, progress: StudyProgress) -> None:
            course.append(("ended", news.number))

    trials = work(database, config, task, Noting(lambda number, epoch: time.sleep(0.1)), concurrent_trials=2)
    assert [t.state for t in trials] == ["complete"] * 3
    assert course.index(("ended", deadly)) == course.index(("begun", deadly)) + 1
    begun = {number: place for place, (what, number) in enumerate(course) if what == "begun"}
    assert begun[deadly] == (0 if deadly == 0 else 4)


def truncate(checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])


def flip_a_bit(checkpoint: Path) -> None:
    content = bytearray(checkpoint.read_bytes())
    content[-1] ^= 1
    checkpoint.write_bytes(content)


def bring_another_trials(checkpoint: Path) -> None:
    (other,) = checkpoint.parents[2].glob(f"00000/*/{CHECKPOINT}")
    shutil.copy(other, checkpoint)


def pickle_in_its_place(checkpoint: Path) -> None:
    checkpoint.write_bytes(pickle.dumps([1, 2, 3]))


def forge_shapes(checkpoint: Path) -> None:
    with safetensors.safe_open(checkpoint, "pt") as file:
        record = json.loads(file.metadata()["record"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    history = tuple(EpochRecord(**epoch) for epoch in record["history"])
    tensors["weights"] = tensors["weights"][:-1].clone()
    save_checkpoint(checkpoint, Checkpoint(record["identity"], history, tensors))


def rewrite_record(checkpoint: Path, change: Callable[[str], str]) -> None:
    with safetensors.safe_open(checkpoint, "pt") as file:
        record = change(file.metadata()["record"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    header = {"record": record, "digest": _digest(record, tensors)}
    checkpoint.write_bytes(safetensors.torch.save(tensors, header))


def nest_deeply(checkpoint: Path) -> None:
    rewrite_record(checkpoint, lambda _: "[" * 100_000)


def never_end(checkpoint: Path) -> None:
    rewrite_record(
        checkpoint, lambda record: re.sub(r'"finished_at": [0-9.]+', '"finished_at": Infinity', record)
    )


def end_beyond_all_dates(checkpoint: Path) -> None:
    rewrite_record(
        checkpoint, lambda record: re.sub(r'"finished_at": [0-9.]+', '"finished_at": 1e300', record)
    )


@pytest.mark.parametrize(
    ("poison", "fault"),
    [
        (nest_deeply, "its record cannot be read"),
        (never_end, "its record cannot be read"),
        (end_beyond_all_dates, "epoch 1 is not a valid record"),
        (truncate, "damaged"),
        (flip_a_bit, "its digest does not match"),
        (bring_another_trials, "belongs to another training"),
        (pickle_in_its_place, "damaged"),
        (forge_shapes, "weights is"),
    ],
)
def test_a_poisoned_checkpoint_is_refused_and_costs_no_trial(
    database: Database,
    config: StudyConfig,
    task: Task,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    poison: Callable[[Path], None],
    fault: str,
) -> None:
    config = replace(config, limits=Limits(trials=2))
    stop = StopRequest()

    def stop_in_the_middle(number: int, epoch: int) -> None:
        if (number, epoch) == (1, 2):
            stop.ask(signal.SIGINT)

    interrupted = work(database, config, task, Watching(stop_in_the_middle), stop)
    assert [t.state for t in interrupted] == ["complete", "interrupted"]
    (checkpoint,) = database.settings.trial_folder("tiny", 1).glob(f"*/{CHECKPOINT}")
    poison(checkpoint)
    with caplog.at_level(logging.WARNING, "anitune"):
        after = work(database, config, task)
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith(
        "tiny: trial 1 starts again from the beginning, because its checkpoint was rejected: "
    )
    assert fault in said
    assert "\n" not in said
    (aside,) = database.settings.trial_folder("tiny", 1).glob("*/refused-*")
    assert {each.path for each in find_garbage(database, CHECKPOINT)} >= {aside}

    home = tmp_path / "other"
    with open_database(Settings(home, f"sqlite:///{home}/a.db", f"sqlite:///{home}/m.db")) as untouched:
        assert results(work(untouched, config, task)) == results(after)


def test_a_start_whose_weights_were_changed_is_refused_and_its_row_handed_back(
    database: Database, data_file: Path, task: Task
) -> None:
    rows = [{"label": "first"}, {"label": "second", "start_from": "first"}]
    values = {
        "name": "rows",
        "data": {"files": [str(data_file)]},
        "training": {"epochs": 2, "hidden": [8], "device": "cpu"},
        "rows": rows,
    }
    config = study_from_values(values, "test")

    class Damaging(Watching):
        def ended(self, news: TrialNews, progress: StudyProgress) -> None:
            (first, *_) = trial_rows(database, begin(database, config))
            (model,) = (file for file in first.artifacts if file.path == MODEL)
            blob = open_blobs(database).path(model.digest)
            blob.chmod(0o644)
            blob.write_bytes(blob.read_bytes()[:-1] + b"?")

    with pytest.raises(BlobDamagedError, match="damaged, its content has the digest"):
        work(database, config, task, Damaging())
    trials = trial_rows(database, begin(database, config))
    assert [trial.state for trial in trials] == ["complete", "interrupted"]
