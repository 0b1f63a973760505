"""A card that fails is no fault of a trial: its worker hands all of them back, names the card, and ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sqlalchemy import select
from typer.testing import CliRunner

from search.cli import main
from search.errors import LaunchError
from search.launch import launcher
from search.launch.config import LaunchConfig
from search.launch.plan import LaunchPlan
from search.propose.samplers import trial_limit
from search.study import StudyConfig, study_from_values
from search.work.card_faults import (
    FAULTS_ALLOWED,
    FAULTS_VARIABLE,
    card_faults,
    card_faults_recorded,
    cards_left_out,
)
from search.work.service import Service
from search.work.stopping import StopRequest
from search.work.worker import SilentWatcher, TrialNews, Worker
from storage.database import Database
from storage.records.tables import attempts
from storage.studies import Budget, Study, StudyProgress, create_study
from storage.tracking.outbox import MetricRow
from storage.trials.attempts import Attempt
from storage.trials.queue import CRASHES_ALLOWED, WorkerInfo, claim_trial
from storage.trials.views import trial_rows
from trainer.config import TrainConfig, dump_config
from trainer.errors import DeviceError
from trainer.fitting.gradients import Gradient
from trainer.fitting.scheduler import PackScheduler
from trainer.run import TrainingResult
from trainer.task import Task

FAULT = "CUDA error: uncorrectable ECC error encountered"
CPU = torch.device("cpu")


class Silent(SilentWatcher):
    """Remembers what became of trials."""

    def __init__(self) -> None:
        self.news: list[TrialNews] = []

    def ended(self, news: TrialNews, progress: StudyProgress) -> None:
        self.news.append(news)


@pytest.fixture
def values(data_file: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "data": {"files": [str(data_file)]},
        "training": {"epochs": 3, "checkpoint_seconds": 0, "hidden": [8], "device": "cpu"},
        "space": {"batch_size": {"choices": [32]}},
        "pruner": {"kind": "none"},
        "limits": {"trials": 3},
    }


@pytest.fixture
def config(values: dict[str, Any]) -> StudyConfig:
    return study_from_values(values, "test")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets the device fail for good after so many steps, as a card with an ECC error does."""
    step = Gradient.start

    def fail_after(steps: int) -> None:
        done = [0]

        def started(gradient: Gradient) -> None:
            done[0] += 1
            if done[0] > steps:
                raise torch.AcceleratorError(f"{FAULT}\nCUDA kernel errors might be reported later")
            step(gradient)

        monkeypatch.setattr(Gradient, "start", started)

    return fail_after


def begin(database: Database, config: StudyConfig) -> Study:
    return create_study(database, config.name, dump_config(config), Budget(trials=trial_limit(config)))


def worker(database: Database, config: StudyConfig, task: Task, concurrent_trials: int) -> Worker:
    study = begin(database, config)
    made = Worker(
        database,
        study,
        config,
        task,
        Silent(),
        StopRequest(),
        start_relay=lambda _: None,
        concurrent_trials=concurrent_trials,
    )
    made._scheduler = PackScheduler()  # as on a GPU: the trials of a worker share its process
    return made


@pytest.mark.parametrize("concurrent_trials", [1, 2])
def test_all_trials_in_hand_are_handed_back(
    database: Database,
    config: StudyConfig,
    task: Task,
    failing: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    concurrent_trials: int,
) -> None:
    failing(6)
    with pytest.raises(DeviceError, match=f"^cpu has failed: {FAULT}$"):
        worker(database, config, task, concurrent_trials).work()
    study = begin(database, config)
    assert {trial.state for trial in trial_rows(database, study)} == {"interrupted"}
    with database.reading() as connection:
        ended = connection.execute(select(attempts.c.outcome, attempts.c.reason)).all()
    assert len(ended) == concurrent_trials
    assert {row.outcome for row in ended} == {"crashed"}
    assert any(FAULT in row.reason for row in ended)
    monkeypatch.undo()
    worker(database, config, task, 1).work()
    assert [trial.state for trial in trial_rows(database, study)] == ["complete"] * 3


@pytest.mark.parametrize("concurrent_trials", [1, 2])
def test_a_trial_that_fails_the_device_each_time_is_given_up_and_no_other(
    database: Database,
    config: StudyConfig,
    task: Task,
    monkeypatch: pytest.MonkeyPatch,
    concurrent_trials: int,
) -> None:
    import search.work.worker as module

    train = module.run_training

    def crash(task: Task, config: TrainConfig, folder: Path, *args: Any, **options: Any) -> TrainingResult:
        if "/00000/" in str(folder):  # of trial 0
            raise DeviceError(f"cpu has failed: {FAULT}", CPU)
        return train(task, config, folder, *args, **options)

    monkeypatch.setattr(module, "run_training", crash)
    for _ in range(CRASHES_ALLOWED):
        with pytest.raises(DeviceError):
            worker(database, config, task, concurrent_trials).work()
    worker(database, config, task, concurrent_trials).work()
    first, *others = trial_rows(database, begin(database, config))
    assert first.state == "failed"
    assert str(first.reason).startswith(f"cpu has failed: {FAULT} (3 workers in a row died")
    assert [trial.state for trial in others] == ["complete"] * 2


def test_those_beside_it_are_trained_alone_before_they_are_given_up(
    database: Database, config: StudyConfig
) -> None:
    study = begin(database, config)
    info = WorkerInfo("w1", "here", 1, "cuda:0 NVIDIA H200", {})

    def take(**in_hand: Any) -> Attempt:
        claim = claim_trial(database, study, info, **in_hand)
        assert claim is not None
        return Attempt(database, study, claim)

    for _ in range(CRASHES_ALLOWED - 1):
        one, other = take(), take(in_hand=[0])
        for each in (one, other):
            each.hand_back("cuda:0 has failed", crashed=True)
    alone = take()
    assert alone.claim.last_chance
    assert take(in_hand=[0]).claim.number == 2  # the other one waits for its own
    alone.record_config({}, {}, planned_epochs=3)
    alone.record_metrics([MetricRow("val/loss", 1, 0.5, 1_000)])
    alone.hand_back("cuda:0 has failed", crashed=True)
    assert not take().claim.last_chance  # it has come further


def test_a_card_that_fails_two_workers_at_once_says_nothing_of_their_trials(
    database: Database, config: StudyConfig
) -> None:
    study = begin(database, config)
    for _ in range(CRASHES_ALLOWED):
        taken = []
        for pid in (1, 2):
            claim = claim_trial(database, study, WorkerInfo(f"w{pid}", "here", pid, "cuda:0", {}))
            assert claim is not None
            assert not claim.last_chance
            taken.append(Attempt(database, study, claim))
        for attempt in taken:
            attempt.hand_back("cuda:0 has failed", crashed=True)
    assert {trial.state for trial in trial_rows(database, study)} == {"interrupted"}


def test_a_worker_of_all_studies_takes_no_other_one(
    database: Database, config: StudyConfig, failing: Callable[[int], None]
) -> None:
    failing(0)
    begin(database, config)
    service = Service(database, Silent(), StopRequest(), start_relay=lambda _: None, idle_timeout=0.0)
    with pytest.raises(DeviceError):
        service.serve()


@pytest.fixture
def command(tmp_path: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a command on a study of this name in a home of its own."""
    monkeypatch.setattr("search.cli.work.start_relay", lambda study: None)
    home = tmp_path / "cli"
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(values))

    def run(*arguments: str, **variables: str) -> Any:
        environment = {
            "ANITUNE_HOME": str(home),
            "ANITUNE_STORAGE_URL": f"sqlite:///{home}/anitune.db",
            "ANITUNE_TRACKING_URI": f"sqlite:///{home}/m.db",
            **variables,
        }
        return CliRunner().invoke(main.app, list(arguments), env=environment)

    assert run("study", "create", str(file)).exit_code == 0
    return run


def test_the_worker_ends_with_1_and_one_line(
    command: Callable[..., Any], failing: Callable[[int], None], tmp_path: Path
) -> None:
    failing(0)
    faults = tmp_path / "faults"
    for number in range(1, FAULTS_ALLOWED + 1):
        ended = command("worker", "tiny", "--pack", "1", ANITUNE_CARD_FAULTS=str(faults))
        assert ended.exit_code == 1
        assert f"anitune: cpu has failed: {FAULT}\n" in ended.output
        assert "Traceback" not in ended.output
        # Each worker is a process of its own; these here are one.
        (file,) = (path for path in faults.iterdir() if not path.name.startswith("earlier"))
        file.rename(faults / f"earlier-{number}")
    assert len(card_faults(faults)) == FAULTS_ALLOWED
    left_out = command("worker", "tiny", "--pack", "1", ANITUNE_CARD_FAULTS=str(faults))
    assert left_out.exit_code == 1
    assert f"has failed {FAULTS_ALLOWED} times and is left out of this launch" in left_out.output
    assert len(list(faults.iterdir())) == FAULTS_ALLOWED


def test_a_training_without_a_study_ends_with_one_line(
    failing: Callable[[int], None], data_file: Path, tmp_path: Path
) -> None:
    failing(0)
    file = tmp_path / "run.yaml"
    values = {"data": {"files": [str(data_file)]}, "training": {"epochs": 1, "hidden": [8], "device": "cpu"}}
    file.write_text(yaml.safe_dump(values))
    ended = CliRunner().invoke(main.app, ["train", str(file)], env={"ANITUNE_HOME": str(tmp_path / "home")})
    assert ended.exit_code == 1
    assert ended.output.strip().splitlines()[-1] == f"anitune: cpu has failed: {FAULT}"


def fail(folder: Path, monkeypatch: pytest.MonkeyPatch, card: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", card)
    monkeypatch.setattr("trainer.fitting.devices.card_id", lambda device: f"GPU-{card}")
    monkeypatch.setattr("os.getpid", lambda: len(list(folder.glob("*"))))
    with pytest.raises(DeviceError), card_faults_recorded(CPU):
        raise DeviceError("broken", CPU)


def test_a_launch_leaves_out_the_card_that_has_failed_too_often_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "faults"
    monkeypatch.setenv(FAULTS_VARIABLE, str(folder))
    for card in ("4", "4", "7", "4"):
        assert cards_left_out(folder) == []
        fail(folder, monkeypatch, card)
    (left_out,) = cards_left_out(folder)
    assert left_out.card.endswith("GPU-4")
    assert left_out.reason == "broken"
    fail(folder, monkeypatch, "7")
    monkeypatch.setattr("trainer.fitting.devices.card_id", lambda device: "GPU-4")
    with pytest.raises(DeviceError, match="left out of this launch"), card_faults_recorded(CPU):
        pytest.fail("it trains on it")


def test_outside_of_a_launch_nothing_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FAULTS_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeviceError), card_faults_recorded(CPU):
        raise DeviceError
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_no_faults_of_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAULTS_VARIABLE, str(tmp_path))
    with pytest.raises(OSError, match="full"), card_faults_recorded(CPU):
        raise OSError("full")
    (tmp_path / "strange").write_text("{")
    (tmp_path / "stranger").write_text(json.dumps({"card": "GPU-4"}))
    assert card_faults(tmp_path) == []


def test_the_launcher_says_which_card_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan = LaunchPlan("tiny-1", 2, 1, tmp_path, LaunchConfig(), ("tiny",))
    monkeypatch.setenv(FAULTS_VARIABLE, str(plan.card_faults))
    for _ in range(FAULTS_ALLOWED):
        fail(plan.card_faults, monkeypatch, "4")
    failed, other = Future[int](), Future[int]()
    failed.set_exception(RuntimeError("exit code 1"))
    other.set_exception(RuntimeError("exit code 1"))
    names = {failed: "tiny-1.0", other: "tiny-1.1"}
    with pytest.raises(LaunchError, match="no worker is left"):
        launcher._wait_for_workers(names, plan, StopRequest())
    (line,) = [message for message in caplog.messages if "left out" in message]
    assert line.startswith("cpu")
    assert line.endswith(f"is left out, it has failed {FAULTS_ALLOWED} times")
