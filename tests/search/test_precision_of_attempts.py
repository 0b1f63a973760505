"""One study on CPUs and GPUs: what ``precision: auto`` becomes is a fact of each attempt."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sqlalchemy import select, update
from typer.testing import CliRunner

from dashboards.formatting import trained_on
from search.cli import main
from search.propose.samplers import trial_limit
from search.study import StudyConfig, study_from_values
from search.work.reproduce import (
    GPU_TOLERANCE,
    MIXED_TOLERANCE,
    default_tolerance,
    recorded_trial,
    reproduce_trial,
)
from search.work.stopping import StopRequest
from search.work.worker import SilentWatcher, TrialNews, Worker
from storage.blobs.place import open_blobs
from storage.database import Database
from storage.records.tables import attempts, outbox, trials
from storage.studies import Budget, Study, StudyProgress, create_study
from storage.trials.queue import WorkerInfo, claim_trial
from storage.trials.views import TrialRow, trial_rows
from trainer.config import dump_config
from trainer.task import Task

EPOCHS = 4
GPU = ("cuda:0 NVIDIA H200", "tf32")


class StoppingAt(SilentWatcher):
    """Asks the worker to stop after an epoch of its first trial."""

    def __init__(self, stop: StopRequest, epoch: int | None) -> None:
        self._stop = stop
        self._epoch = epoch
        self.ended_news: list[TrialNews] = []

    def epoch(self, number: int, done: int) -> None:
        if done == self._epoch:
            self._stop.ask(signal.SIGTERM)

    def ended(self, news: TrialNews, progress: StudyProgress) -> None:
        self.ended_news.append(news)


@pytest.fixture
def config(data_file: Path) -> StudyConfig:
    values = {
        "name": "tiny",
        "data": {"files": [str(data_file)]},
        "training": {"epochs": EPOCHS, "checkpoint_seconds": 0, "hidden": [8], "device": "cpu"},
        "space": {"batch_size": {"choices": [1024]}},
        "pruner": {"kind": "none"},
        "limits": {"trials": 1},
    }
    return study_from_values(values, "test")


@pytest.fixture(autouse=True)
def fast_bfloat16(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Makes this a CPU that has fast products in bfloat16, or has none, as at first."""

    def make(fast: bool) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)

    make(False)
    return make


def begin(database: Database, config: StudyConfig) -> Study:
    return create_study(database, config.name, dump_config(config), Budget(trials=trial_limit(config)))


def work(
    database: Database, config: StudyConfig, task: Task, stop_at: int | None = None
) -> tuple[Study, TrialRow]:
    study, stop = begin(database, config), StopRequest()
    Worker(database, study, config, task, StoppingAt(stop, stop_at), stop, start_relay=lambda _: None).work()
    return study, trial_rows(database, study)[0]


def be_of_a_gpu(database: Database) -> None:
    """Let all attempts so far have been on a GPU, as its workers record them."""
    with database.writing() as connection:
        for row in connection.execute(select(attempts)).all():
            worker = {**row.worker, "device": GPU[0], "precision": GPU[1]}
            connection.execute(update(attempts).where(attempts.c.token == row.token).values(worker=worker))


def test_a_trial_keeps_what_was_asked_for_and_its_attempt_what_became_of_it(
    database: Database, config: StudyConfig, task: Task, fast_bfloat16: Callable[[bool], None]
) -> None:
    fast_bfloat16(True)
    study, trial = work(database, config, task)
    assert trial.config is not None
    assert trial.config["precision"] == "auto"
    assert trial.worker.precision == "bfloat16"
    assert [(each.attempt, each.device, each.precision) for each in trial.attempts] == [
        (1, "cpu", "bfloat16")
    ]
    assert trained_on(trial) == "cpu in bfloat16"
    with database.reading() as connection:
        payloads = connection.execute(select(outbox.c.payload).order_by(outbox.c.id)).scalars().all()
    tags = [payload["tags"] for payload in payloads if "tags" in payload and "attempt" in payload["tags"]]
    assert tags[0]["precision"] == "bfloat16"
    recorded = recorded_trial(database, study, [trial], 0)
    assert recorded.places == (("cpu", "bfloat16"),)
    # Also where another precision would be chosen now, the repetition has that of the record.
    fast_bfloat16(False)
    repeated = reproduce_trial(task, recorded)
    assert repeated.place == ("cpu", "bfloat16")
    assert default_tolerance(recorded, repeated) == 0
    assert repeated.differences == ()
    assert repeated.same_model is True


def test_on_one_kind_of_device_a_trial_keeps_its_precision(
    database: Database, config: StudyConfig, task: Task, fast_bfloat16: Callable[[bool], None]
) -> None:
    fast_bfloat16(True)
    _, trial = work(database, config, task, stop_at=2)
    assert trial.state == "interrupted"
    fast_bfloat16(False)  # the taker is another machine
    study, trial = work(database, config, task)
    assert (trial.state, trial.attempt) == ("complete", 2)
    assert [each.precision for each in trial.attempts] == ["bfloat16", "bfloat16"]
    recorded = recorded_trial(database, study, [trial], 0)
    assert reproduce_trial(task, recorded).alike(0)


def test_a_trial_that_began_on_a_gpu_goes_on_on_a_cpu(
    database: Database, config: StudyConfig, task: Task
) -> None:
    _, trial = work(database, config, task, stop_at=2)
    be_of_a_gpu(database)
    study, trial = work(database, config, task)
    assert (trial.state, trial.attempt, trial.epochs, trial.trained_epochs) == ("complete", 2, 4, 4)
    assert [(each.device, each.precision) for each in trial.attempts] == [GPU, ("cpu", "float32")]
    assert trained_on(trial) == "cuda:0 NVIDIA H200 in tf32, then cpu in float32"
    assert trial.config is not None
    assert trial.config["precision"] == "auto"
    blobs = open_blobs(database)
    logs = {file.path: blobs.path(file.digest).read_text() for file in trial.artifacts if "log" in file.path}
    assert "continues in float32 on cpu, after tf32 on cuda:0 NVIDIA H200" in logs["logs/attempt-2.log"]

    recorded = recorded_trial(database, study, [trial], 0)
    assert recorded.places == (("cuda", "tf32"), ("cpu", "float32"))
    repeated = reproduce_trial(task, recorded)
    assert default_tolerance(recorded, repeated) == MIXED_TOLERANCE
    assert repeated.same_model is None
    assert repeated.alike(MIXED_TOLERANCE)


def test_a_record_of_an_older_version_goes_on_where_its_precision_is_not(
    database: Database, config: StudyConfig, task: Task
) -> None:
    """It has the resolved precision in the configuration of the trial, and none in its attempts."""
    work(database, config, task, stop_at=2)
    with database.writing() as connection:
        old = connection.execute(select(trials.c.config)).scalar_one()
        connection.execute(update(trials).values(config={**old, "precision": "tf32"}))
        for row in connection.execute(select(attempts)).all():
            worker = {name: value for name, value in row.worker.items() if name != "precision"}
            connection.execute(update(attempts).values(worker={**worker, "device": GPU[0]}))
    study, trial = work(database, config, task)
    assert (trial.state, trial.epochs) == ("complete", 4)
    assert [each.precision for each in trial.attempts] == [None, "float32"]
    assert recorded_trial(database, study, [trial], 0).places == (("cuda", "tf32"), ("cpu", "float32"))


def test_a_precision_that_was_asked_for_and_is_not_here_is_reported(
    database: Database, config: StudyConfig, task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    asked = replace(config, training={**config.training, "precision": "tf32"})
    _, trial = work(database, asked, task)
    assert trial.state == "complete"
    assert trial.config is not None
    assert (trial.config["precision"], trial.worker.precision) == ("tf32", "float32")
    assert caplog.messages.count("tiny: trial 0 trains in float32, because there is no tf32 on cpu") == 1


def test_trials_are_duplicates_by_what_they_were_asked_for(
    database: Database, config: StudyConfig, task: Task, fast_bfloat16: Callable[[bool], None]
) -> None:
    rows = [{"label": "a"}, {"label": "b"}, {"label": "c", "training": {"precision": "float32"}}]
    training = {**config.training, "batch_size": 1024, "learning_rate": 1e-3}
    values = {"name": "rows", "training": training, "rows": rows, "repeats": "take"}
    study_config = study_from_values({**values, "data": {"files": list(config.data.files)}}, "test")
    fast_bfloat16(True)
    study, _ = work(database, study_config, task)
    first, second, third = trial_rows(database, study)
    assert second.tags.get("same_as") == "trial 0"
    assert "same_as" not in third.tags
    assert (first.worker.precision, third.worker.precision) == ("bfloat16", "float32")


def test_on_a_gpu_alone_numbers_are_compared_to_its_tolerance(
    database: Database, config: StudyConfig, task: Task
) -> None:
    study, trial = work(database, config, task)
    recorded = recorded_trial(database, study, [trial], 0)
    repeated = reproduce_trial(task, recorded)
    on_gpu = replace(recorded, places=(("cuda", "tf32"),)), replace(repeated, place=("cuda", "tf32"))
    assert default_tolerance(*on_gpu) == GPU_TOLERANCE


def test_the_taker_of_a_trial_learns_where_it_ran(
    database: Database, config: StudyConfig, task: Task
) -> None:
    study, _ = work(database, config, task, stop_at=1)
    claim = claim_trial(database, study, WorkerInfo("w2", "h", 1, "cpu", {}))
    assert claim is not None
    assert [kind for kind, _ in claim.ran_on] == ["cpu"]


def test_reproduce_tells_of_each_attempt(database: Database, config: StudyConfig, task: Task) -> None:
    work(database, config, task, stop_at=2)
    be_of_a_gpu(database)
    work(database, config, task)
    home = database.settings.home
    environment = {"ANITUNE_HOME": str(home), "ANITUNE_STORAGE_URL": f"sqlite:///{home}/anitune.db"}
    said = CliRunner().invoke(main.app, ["reproduce", "tiny", "0"], env=environment)
    assert said.exit_code == 0, said.output
    assert "trained again on cpu (float32), recorded on cuda (tf32), then cpu (float32)" in said.output
    assert "on another kind of device, or in another precision" in said.output
    assert "reproduced, within a relative 0.1" in said.output
