"""Trainings that do not fit into the memory of their device together, or not even alone."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import run as run_module
from trainer.config import TrainConfig
from trainer.errors import DeviceError, TrainingCutOff
from trainer.fitting.gradients import Gradient
from trainer.fitting.loop import FitResult, fit
from trainer.fitting.pack import Pack
from trainer.fitting.scheduler import PackScheduler
from trainer.fitting.training import Training
from trainer.reporting import SilentReporter
from trainer.run import run_training
from trainer.task import Task

CONFIG = TrainConfig(
    hidden=(8, 4), batch_size=32, epochs=4, precision="float64", device="cpu", checkpoint_seconds=0
)


class SmallDevice:
    """Lets a step raise what a GPU does where all trainings that are on it take more than it has.

    Attributes
    ----------
    room : hidden neurons of all trainings that exist
    begun : trainings that were put on the device, from the start or a checkpoint
    most : hidden neurons that were there in a step that fitted
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self.begun = 0
        self.most = 0
        self._there: weakref.WeakSet[Training] = weakref.WeakSet()
        begin, step = Training.__init__, Gradient.start

        def begun(training: Training, *arguments: Any) -> None:
            begin(training, *arguments)
            self.begun += 1
            self._there.add(training)

        def started(gradient: Gradient) -> None:
            self.take()
            step(gradient)

        monkeypatch.setattr(Training, "__init__", begun)
        monkeypatch.setattr(Gradient, "start", started)

    def take(self) -> None:
        """Raise what a GPU does if there is not enough memory."""
        taken = sum(sum(training.config.hidden) for training in list(self._there))
        if taken > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.most = max(self.most, taken)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], SmallDevice]:
    return lambda room: SmallDevice(monkeypatch, room)


def fit_at_once(
    task: Task,
    configs: list[TrainConfig],
    folder: Path,
    reporter: Callable[[int], SilentReporter] = lambda number: SilentReporter(),
) -> list[FitResult | BaseException]:
    """Train all in threads of their own, which begin together; what each comes to."""
    scheduler, barrier = PackScheduler(), threading.Barrier(len(configs), timeout=60)

    def run(number: int) -> FitResult | BaseException:
        barrier.wait(60)
        try:
            return fit(task, configs[number], folder / str(number), reporter(number), scheduler=scheduler)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(configs)) as pool:
        return list(pool.map(run, range(len(configs))))


def alone(task: Task, config: TrainConfig, history: Any) -> list[float]:
    """The validation errors of a training by itself in the same orders of the data."""
    training = Training(task, config, None)
    pack = Pack([training])
    for record in history:
        assert pack.train_epoch(record.order) == (None,)
    return [record.val_mae for record in training.history]


@pytest.mark.parametrize("room", [1, 2, 3])
def test_trainings_that_do_not_fit_together_are_trained_fewer_at_once(
    task: Task,
    tmp_path: Path,
    device: Callable[[int], SmallDevice],
    caplog: pytest.LogCaptureFixture,
    room: int,
) -> None:
    small = device(room * sum(CONFIG.hidden))
    configs = [dataclasses.replace(CONFIG, seed=seed) for seed in range(4)]
    results = fit_at_once(task, configs, tmp_path)
    assert small.most <= small.room
    small.room = 10**9
    for config, result in zip(configs, results, strict=True):
        assert isinstance(result, FitResult), result
        assert result.outcome == "finished"
        assert [record.epoch for record in result.history] == [1, 2, 3, 4]
        together = [record.val_mae for record in result.history]
        assert together == pytest.approx(alone(task, config, result.history), rel=1e-9)
    assert any(
        "out of memory on cpu with 4 trainings at once: " in message and "at once from now on" in message
        for message in caplog.messages
    )


def test_those_that_go_on_do_so_from_their_checkpoints(
    task: Task, tmp_path: Path, device: Callable[[int], SmallDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, epochs = device(10**9), []
    end_epoch = Training.end_epoch

    def ended(training: Training, *arguments: Any) -> None:
        end_epoch(training, *arguments)
        epochs.append((training.config.seed, training.epoch))
        if training.epoch == 2:  # others come to the device, and stay
            small.room = sum(CONFIG.hidden)

    monkeypatch.setattr(Training, "end_epoch", ended)
    configs = [dataclasses.replace(CONFIG, seed=seed) for seed in range(2)]
    for result in fit_at_once(task, configs, tmp_path):
        assert isinstance(result, FitResult)
        assert [record.epoch for record in result.history] == [1, 2, 3, 4]
    assert sorted(epochs) == [(seed, epoch) for seed in (0, 1) for epoch in (1, 2, 3, 4)]


@pytest.mark.parametrize("batch_size", [32, 16], ids=["in the same pack", "in another pack"])
def test_only_the_one_that_does_not_fit_alone_fails(
    task: Task, tmp_path: Path, device: Callable[[int], SmallDevice], batch_size: int
) -> None:
    small = device(3 * sum(CONFIG.hidden))
    large = dataclasses.replace(CONFIG, hidden=(40, 4), batch_size=batch_size)
    configs = [dataclasses.replace(CONFIG, seed=1), large, dataclasses.replace(CONFIG, seed=2)]
    one, failed, other = fit_at_once(task, configs, tmp_path)
    assert isinstance(one, FitResult)
    assert isinstance(other, FitResult)
    assert one.outcome == other.outcome == "finished"
    assert isinstance(failed, TrainingCutOff)
    assert f"out of memory on cpu with batch size {batch_size} and widths 40-4" in str(failed)
    assert small.most <= small.room


def test_a_training_for_which_there_is_no_room_to_begin_with_waits(
    task: Task, tmp_path: Path, device: Callable[[int], SmallDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = device(2 * sum(CONFIG.hidden))
    begin = Training.__init__

    def begun(training: Training, *arguments: Any) -> None:
        begin(training, *arguments)
        small.take()

    monkeypatch.setattr(Training, "__init__", begun)
    configs = [dataclasses.replace(CONFIG, seed=seed, batch_size=2 ** (3 + seed)) for seed in range(4)]
    results = fit_at_once(task, configs, tmp_path)
    assert [isinstance(result, FitResult) for result in results] == [True] * 4


class Stopping(SilentReporter):
    """Wants its training to stop once it was asked a few times."""

    def __init__(self) -> None:
        self.asked = 0

    def should_stop(self) -> bool:
        self.asked += 1
        return self.asked > 3


def test_one_that_waits_is_stopped_at_once(
    task: Task, tmp_path: Path, device: Callable[[int], SmallDevice]
) -> None:
    small = device(sum(CONFIG.hidden))
    small.begun = 0
    scheduler, entered, leave = PackScheduler(), threading.Event(), threading.Event()

    class Busy(SilentReporter):
        def records(self, records: Any) -> None:
            entered.set()
            leave.wait(60)

    longer = dataclasses.replace(CONFIG, epochs=2)
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(fit, task, longer, tmp_path / "busy", Busy(), scheduler=scheduler)
        assert entered.wait(60)
        started = time.monotonic()
        # It meets the other one's memory in its first step, waits from then on, and is asked meanwhile.
        waited = fit(task, CONFIG, tmp_path / "waits", Stopping(), scheduler=scheduler)
        assert (waited.outcome, waited.history, waited.model) == ("stopped", (), None)
        assert time.monotonic() - started < 20
        leave.set()
        assert busy.result(60).outcome == "finished"
    assert small.begun == 2


def test_its_evaluation_too_is_tried_again(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, calls = run_module.evaluate, []
    scheduler = PackScheduler()

    def once_too_little(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise torch.AcceleratorError("CUDA error: out of memory")
        return evaluate(*arguments)

    monkeypatch.setattr(run_module, "evaluate", once_too_little)
    entered, leave = threading.Event(), threading.Event()

    def stay() -> bool:
        entered.set()
        return leave.wait(60)

    class Asked(SilentReporter):
        def should_stop(self) -> bool:
            if calls:  # it waits for the other one to leave
                leave.set()
            return False

    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(scheduler.with_room, torch.device("cpu"), stay, lambda: False)
        assert entered.wait(60)
        result = run_training(task, CONFIG, tmp_path, Asked(), scheduler=scheduler)
        assert beside.result(60) is True
    assert (result.outcome, len(calls)) == ("finished", 2)

    calls.clear()
    with pytest.raises(TrainingCutOff, match="out of memory on cpu"):
        run_training(task, CONFIG, tmp_path, SilentReporter())


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(gradient: Gradient) -> None:
        raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nmore")

    monkeypatch.setattr(Gradient, "start", fail)


@pytest.mark.usefixtures("failing")
def test_a_device_that_fails_is_not_tried_again(task: Task, tmp_path: Path) -> None:
    results = fit_at_once(task, [CONFIG, dataclasses.replace(CONFIG, seed=1)], tmp_path)
    assert [str(result) for result in results] == [
        "cpu has failed: CUDA error: uncorrectable ECC error encountered"
    ] * 2
    assert all(isinstance(result, DeviceError) for result in results)


def test_a_training_alone_is_not_tried_again(
    task: Task, tmp_path: Path, device: Callable[[int], SmallDevice], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "anitune")
    small = device(1)
    with pytest.raises(TrainingCutOff):
        fit(task, CONFIG, tmp_path, SilentReporter())
    assert small.begun == 1
    assert caplog.messages == []
