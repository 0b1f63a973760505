"""Trainings on an NVIDIA GPU, compared with the CPU and with each other."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.config import FeatureConfig, Precision, TrainConfig
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.metrics import mean_absolute_error
from trainer.features import source
from trainer.features.device_table import DeviceTable
from trainer.features.source import ComputedFeatures, StoredFeatures, open_features
from trainer.features.static_batches import DeviceLayouts
from trainer.features.streaming import Streamed
from trainer.fitting import device_epochs
from trainer.fitting.cuda_graph import GraphedCall
from trainer.fitting.device_epochs import DeviceEpochs
from trainer.fitting.loop import FitResult, fit
from trainer.fitting.pack import Pack
from trainer.fitting.scheduler import PackScheduler
from trainer.fitting.training import Training
from trainer.networks.widths import Hidden
from trainer.progress import no_progress
from trainer.reporting import EpochRecord, SilentReporter
from trainer.task import Task

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
BY_ELEMENT: Hidden = {"H": (24, 12), "C": (8, 20), "N": (5, 5), "O": (17, 16)}
PRECISIONS: tuple[Precision, ...] = ("float64", "float32", "tf32", "bfloat16")

#: Largest relative difference of a loss in the first epoch from that of the CPU, in float64 for float64 and
#: in float32 for all others.
TO_CPU = {"float64": 1e-6, "float32": 1e-4, "tf32": 1e-2, "bfloat16": 5e-2}

#: Largest relative difference between two trainings on the same GPU that are run in different ways.
REPEATED = 1e-6


def train(task: Task, configs: list[TrainConfig], epochs: int = 3) -> list[tuple[EpochRecord, ...]]:
    """Histories of trainings that run side by side."""
    trainings = [Training(task, config, None) for config in configs]
    pack = Pack(trainings)
    for order in range(epochs):
        assert not any(pack.train_epoch(order))
    return [training.history for training in trainings]


def losses(history: tuple[EpochRecord, ...]) -> list[tuple[float, float, float]]:
    return [
        (record.train_loss, record.val_loss, record.val_errors["max_error_kcalmol"]) for record in history
    ]


def with_features_of_its_own(task: Task) -> Task:
    """The same task with new features, of which nothing is on the device yet."""
    features = task.features
    assert isinstance(features, StoredFeatures)
    return dataclasses.replace(task, features=StoredFeatures(task.dataset, task.aev, features._tables))


@pytest.fixture
def streamed_task(task: Task, monkeypatch: pytest.MonkeyPatch) -> Task:
    """A task of which no subset fits into the share of the device's memory."""
    monkeypatch.setattr(source, "GPU_SHARE", 0.0)
    return with_features_of_its_own(task)


def test_subsets_are_on_the_device(task: Task) -> None:
    features = Training(task, CONFIG, None).train.device_features
    assert isinstance(features, DeviceTable)
    assert features.table.is_cuda
    rounded = Training(task, dataclasses.replace(CONFIG, precision="bfloat16"), None).train.device_features
    assert isinstance(rounded, DeviceTable)
    assert rounded.table.dtype == torch.bfloat16


def test_a_second_training_finds_its_subset_where_there_is_no_place_for_another(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Training(task, CONFIG, None).train.device_features
    monkeypatch.setattr(source, "GPU_SHARE", 0.0)
    assert Training(task, CONFIG, None).train.device_features is first


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch_size", [17, 8192])
def test_a_cuda_graph_does_what_its_operations_do_one_by_one(
    task: Task, precision: Precision, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, precision=precision, batch_size=batch_size, dropout=0.2)
    graphs: list[object] = []
    record = GraphedCall._record

    def recording(self: GraphedCall) -> torch.cuda.CUDAGraph:
        graphs.append(self)
        return record(self)

    monkeypatch.setattr(GraphedCall, "_record", recording)
    (recorded,) = train(task, [config])
    assert len(graphs) == 2  # a step, and the prediction of a batch of the validation subset
    monkeypatch.setattr(GraphedCall, "__call__", lambda self: self._run())
    (plain,) = train(task, [config])
    assert len(graphs) == 2
    np.testing.assert_allclose(losses(recorded), losses(plain), rtol=REPEATED)


def test_a_batch_beyond_the_usual_capacities(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    (usual,) = train(task, [CONFIG])
    capacities = DeviceLayouts.capacities

    def tight(self: DeviceLayouts, batch_size: int, *, sure: bool) -> tuple[int, ...]:
        found = capacities(self, batch_size, sure=sure)
        return found if sure else (64,) * len(found)

    monkeypatch.setattr(DeviceLayouts, "capacities", tight)
    (sure,) = train(task, [CONFIG])
    np.testing.assert_allclose(losses(sure), losses(usual), rtol=REPEATED)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("hidden", [CONFIG.hidden, BY_ELEMENT], ids=["shared", "by element"])
def test_a_gpu_computes_what_the_cpu_does(task: Task, hidden: Hidden, precision: Precision) -> None:
    config = dataclasses.replace(CONFIG, hidden=hidden, precision=precision)
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
    assert histories["tf32"][0][0] != histories["float32"][0][0]
    # Evaluation runs in float32.
    training = Training(task, dataclasses.replace(CONFIG, precision="tf32"), None)
    assert not any(Pack([training]).train_epoch(0))
    errors = evaluate(training.best_model(), task, task.split.validation).errors
    assert mean_absolute_error(errors) == pytest.approx(training.best.val_mae, rel=1e-5)


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
            hidden=((8,), (16, 8), (16, 8), (5, 4, 3), BY_ELEMENT)[n],
            activation=("celu", "gelu", "relu", "silu", "celu")[n],
            dropout=0.2 * (n % 2),
            optimizer=("adam", "adamw")[n % 2],
            learning_rate=1e-3 * (1 + n),
            weight_decay=1e-4 * n,
            ema_decay=(None, 0.9)[n % 2],
        )
        for n in range(5)
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
        barrier.wait(60)
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
def test_a_streamed_training_is_that_on_a_table(
    task: Task, streamed_task: Task, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, precision=precision)
    (streamed,) = train(streamed_task, [config])
    assert isinstance(Training(streamed_task, config, None).train.device_features, Streamed)
    monkeypatch.undo()
    table_task = with_features_of_its_own(task)
    (in_table,) = train(table_task, [config])
    assert isinstance(Training(table_task, config, None).train.device_features, DeviceTable)
    np.testing.assert_allclose(losses(streamed), losses(in_table), rtol=REPEATED)


def reading_threads() -> int:
    return sum(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())


def test_a_streamed_epoch_can_end_in_its_middle(streamed_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    call, calls, before = GraphedCall.__call__, 0, reading_threads()

    def failing(self: GraphedCall) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        call(self)

    monkeypatch.setattr(GraphedCall, "__call__", failing)
    with pytest.raises(KeyboardInterrupt):
        train(streamed_task, [CONFIG], 1)
    assert reading_threads() == before
    (history,) = train(streamed_task, [CONFIG], 1)
    assert np.isfinite(losses(history)).all()


@pytest.fixture
def refusing_to_wait(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Forbid the host to wait for the device from the start of an epoch until its losses are read."""
    begun: list[str] = []
    begin, prepare = device_epochs._Step._begin, DeviceEpochs._prepare

    def begin_and_refuse(self: device_epochs._Step, epoch: device_epochs._Epoch) -> None:
        begun.append("epoch")
        # The first epoch sets up what steps need, and captures.
        if len(begun) > 1:
            torch.cuda.set_sync_debug_mode("error")
        begin(self, epoch)

    def prepare_and_allow(self: DeviceEpochs, order: int) -> device_epochs._Epoch:
        prepared = prepare(self, order)
        torch.cuda.set_sync_debug_mode("default")
        return prepared

    monkeypatch.setattr(device_epochs._Step, "_begin", begin_and_refuse)
    monkeypatch.setattr(DeviceEpochs, "_prepare", prepare_and_allow)
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
