"""Trainings on an NVIDIA GPU, beside the same on the CPU and beside each other."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.config import FeatureConfig, Precision, TrainConfig
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.metrics import mean_absolute_error
from trainer.features import source
from trainer.features.resident import Resident
from trainer.features.source import ComputedFeatures, StoredFeatures, open_features
from trainer.features.streaming import Streamed
from trainer.fitting.devices import products
from trainer.fitting.loop import FitResult, fit
from trainer.fitting.pack import Pack
from trainer.fitting.recorded import Recorded, Step
from trainer.fitting.scheduler import PackScheduler
from trainer.fitting.training import Training
from trainer.progress import no_progress
from trainer.reporting import EpochRecord, SilentReporter
from trainer.task import Task

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]

#: Six steps an epoch; the last batch is smaller.
CONFIG = TrainConfig(
    hidden=(32, 16),
    activation="gelu",
    batch_size=17,
    learning_rate=1e-3,
    epochs=4,
    ema_decay=0.9,
    schedule="plateau",
    precision="float64",
    device="cuda",
    seed=3,
)
PRECISIONS: tuple[Precision, ...] = ("float64", "float32", "tf32", "bfloat16")

#: Largest relative difference of a loss in the first epoch from that of the CPU, in float64 for float64 and
#: in float32 for all others.
TO_CPU = {"float64": 1e-6, "float32": 1e-4, "tf32": 1e-2, "bfloat16": 5e-2}

#: Of a training on the same GPU that is repeated in another way.
REPEATED = 1e-6


def train(task: Task, configs: list[TrainConfig], epochs: int = 3) -> list[tuple[EpochRecord, ...]]:
    """The histories of trainings side by side."""
    trainings = [Training(task, config, None) for config in configs]
    pack = Pack(trainings)
    for order in range(epochs):
        assert not any(pack.train_epoch(order))
    return [training.history for training in trainings]


def losses(history: tuple[EpochRecord, ...]) -> list[tuple[float, float, float]]:
    return [(record.train_loss, record.val_loss, record.val_max_error) for record in history]


def with_features_of_its_own(task: Task) -> Task:
    """Nothing of it is on the device yet."""
    features = task.features
    assert isinstance(features, StoredFeatures)
    return dataclasses.replace(task, features=StoredFeatures(task.dataset, task.aev, features._tables))


@pytest.fixture
def streamed_task(task: Task, monkeypatch: pytest.MonkeyPatch) -> Task:
    """No part of it fits into the share of the device's memory."""
    monkeypatch.setattr(source, "GPU_SHARE", 0.0)
    return with_features_of_its_own(task)


def test_parts_are_on_the_device(task: Task) -> None:
    training = Training(task, CONFIG, None)
    assert isinstance(training.train.features, Resident)
    assert training.train.features.table.is_cuda
    rounded = Training(task, dataclasses.replace(CONFIG, precision="bfloat16"), None).train.features
    assert isinstance(rounded, Resident)
    assert rounded.table.dtype == torch.bfloat16


def test_a_second_training_finds_its_part_where_there_is_no_place_for_another(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Training(task, CONFIG, None)
    monkeypatch.setattr(source, "GPU_SHARE", 0.0)
    assert Training(task, CONFIG, None).train.features is first.train.features


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch_size", [17, 8192])
def test_recorded_steps_do_what_they_do_unrecorded(
    task: Task, precision: Precision, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, precision=precision, batch_size=batch_size, dropout=0.2)
    graphs: list[object] = []
    record = Recorded._record

    def recording(self: Recorded) -> torch.cuda.CUDAGraph:
        graphs.append(self)
        return record(self)

    monkeypatch.setattr(Recorded, "_record", recording)
    (recorded,) = train(task, [config])
    assert len(graphs) == 1

    def unrecorded(self: Recorded) -> None:
        with products(self._precision, self._device):
            self._run()

    monkeypatch.setattr(Recorded, "__call__", unrecorded)
    (plain,) = train(task, [config])
    assert len(graphs) == 1
    np.testing.assert_allclose(losses(recorded), losses(plain), rtol=REPEATED)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gpu_computes_what_the_cpu_does(task: Task, precision: Precision) -> None:
    config = dataclasses.replace(CONFIG, precision=precision)
    (found,) = train(task, [config], 1)
    on_cpu: Precision = "float64" if precision == "float64" else "float32"
    (wanted,) = train(task, [dataclasses.replace(config, device="cpu", precision=on_cpu)], 1)
    np.testing.assert_allclose(losses(found), losses(wanted), rtol=TO_CPU[precision])


def test_low_precision_takes_effect_and_only_in_steps(task: Task) -> None:
    histories = {
        precision: losses(train(task, [dataclasses.replace(CONFIG, precision=precision)], 1)[0])
        for precision in PRECISIONS
    }
    assert histories["bfloat16"][0][0] != histories["float32"][0][0]
    if torch.cuda.get_device_capability() >= (8, 0):
        assert histories["tf32"][0][0] != histories["float32"][0][0]
    # What is evaluated is evaluated alike, whatever the process was set to before and after.
    training = Training(task, dataclasses.replace(CONFIG, precision="tf32"), None)
    assert not any(Pack([training]).train_epoch(0))
    errors = evaluate(training.best_model(), task, task.split.validation).errors
    assert mean_absolute_error(errors) == pytest.approx(training.best.val_mae, rel=1e-5)
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_two_runs_have_the_same_numbers(task: Task, precision: Precision) -> None:
    config = dataclasses.replace(CONFIG, precision=precision, dropout=0.2)
    assert train(task, [config])[0] != ()
    one, other = (losses(train(task, [config])[0]) for _ in range(2))
    assert one == other


def test_a_resumed_training_is_one_that_was_not_interrupted(task: Task, tmp_path: Path) -> None:
    class StopsAfter(SilentReporter):
        epochs = 0

        def should_stop(self) -> bool:
            self.epochs += 1
            return self.epochs == 2

    config = dataclasses.replace(CONFIG, dropout=0.2, precision="float32")
    whole = fit(task, config, tmp_path / "whole", SilentReporter())
    assert fit(task, config, tmp_path / "parts", StopsAfter()).outcome == "stopped"
    resumed = fit(task, config, tmp_path / "parts", SilentReporter())
    assert len(resumed.history) == config.epochs
    np.testing.assert_allclose(losses(resumed.history), losses(whole.history), rtol=REPEATED)


def test_in_a_pack_each_training_is_what_it_is_alone(task: Task) -> None:
    configs = [
        dataclasses.replace(
            CONFIG,
            seed=n,
            hidden=((8,), (16, 8), (16, 8), (5, 4, 3))[n],
            activation=("celu", "gelu", "relu", "silu")[n],
            dropout=0.2 * (n % 2),
            optimizer=("adam", "adamw")[n % 2],
            learning_rate=1e-3 * (1 + n),
            weight_decay=1e-4 * n,
            ema_decay=(None, 0.9)[n % 2],
        )
        for n in range(4)
    ]
    for config, together in zip(configs, train(task, configs), strict=True):
        (alone,) = train(task, [config])
        np.testing.assert_allclose(losses(together), losses(alone), rtol=REPEATED)


def test_trainings_join_and_leave(task: Task, tmp_path: Path) -> None:
    configs = [
        dataclasses.replace(CONFIG, seed=n, epochs=epochs, hidden=(8 + n,))
        for n, epochs in enumerate([3, 7, 5, 9])
    ]
    scheduler, barrier = PackScheduler(), threading.Barrier(len(configs))

    def run(number: int) -> FitResult:
        barrier.wait()
        return fit(task, configs[number], tmp_path / str(number), SilentReporter(), scheduler=scheduler)

    with ThreadPoolExecutor(len(configs)) as pool:
        results = list(pool.map(run, range(len(configs))))
    for config, result in zip(configs, results, strict=True):
        training = Training(task, config, None)
        pack = Pack([training])
        for record in result.history:
            assert not any(pack.train_epoch(record.order))
        np.testing.assert_allclose(losses(result.history), losses(training.history), rtol=REPEATED)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_streamed_training_is_that_on_resident_data(
    task: Task, streamed_task: Task, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, precision=precision)
    (streamed,) = train(streamed_task, [config])
    assert isinstance(Training(streamed_task, config, None).train.features, Streamed)
    monkeypatch.undo()
    resident_task = with_features_of_its_own(task)
    (resident,) = train(resident_task, [config])
    assert isinstance(Training(resident_task, config, None).train.features, Resident)
    np.testing.assert_allclose(losses(streamed), losses(resident), rtol=REPEATED)


def reading_threads() -> int:
    return sum(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())


def test_a_streamed_epoch_can_end_in_its_middle(streamed_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    call, calls, before = Recorded.__call__, 0, reading_threads()

    def failing(self: Recorded) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        call(self)

    monkeypatch.setattr(Recorded, "__call__", failing)
    with pytest.raises(KeyboardInterrupt):
        train(streamed_task, [CONFIG], 1)
    assert reading_threads() == before
    (history,) = train(streamed_task, [CONFIG], 1)
    assert np.isfinite(losses(history)).all()


@pytest.fixture
def refusing_to_wait(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """From the begin of an epoch until its losses are read the host may not wait for the device."""
    begun: list[str] = []
    begin, validate = Step.begin, Training._validate

    def begin_and_refuse(self: Step, orders: torch.Tensor) -> None:
        begin(self, orders)
        begun.append("epoch")
        # The first epoch sets up what steps need, and records.
        if len(begun) > 1:
            torch.cuda.set_sync_debug_mode("error")

    def validate_and_allow(self: Training) -> Any:
        measured = validate(self)
        torch.cuda.set_sync_debug_mode("default")
        return measured

    monkeypatch.setattr(Step, "begin", begin_and_refuse)
    monkeypatch.setattr(Training, "_validate", validate_and_allow)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode")
        yield begun
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_host_does_not_wait_within_an_epoch(
    task: Task, refusing_to_wait: list[str], precision: Precision
) -> None:
    train(task, [dataclasses.replace(CONFIG, precision=precision, dropout=0.2)])
    assert len(refusing_to_wait) == 3


def test_features_that_are_computed_for_each_batch(task: Task, tmp_path: Path) -> None:
    features = open_features(task.dataset, FeatureConfig(store_limit_gib=0.0), tmp_path, no_progress)
    assert isinstance(features, ComputedFeatures)
    (computed,) = train(dataclasses.replace(task, features=features), [CONFIG], 1)
    (stored,) = train(task, [CONFIG], 1)
    np.testing.assert_allclose(losses(computed), losses(stored), rtol=1e-3)
