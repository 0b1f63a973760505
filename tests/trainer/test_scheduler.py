from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from trainer.config import TrainConfig
from trainer.errors import TrainingFailed
from trainer.fitting import pack as pack_module
from trainer.fitting import scheduler as scheduler_module
from trainer.fitting.loop import FitResult, fit
from trainer.fitting.pack import EpochLeft, Leave, Pack
from trainer.fitting.scheduler import PackScheduler
from trainer.fitting.training import Training
from trainer.reporting import EpochRecord, SilentReporter
from trainer.task import Task

CONFIG = TrainConfig(
    hidden=(8, 4),
    batch_size=32,
    epochs=5,
    precision="float64",
    device="cpu",
    ema_decay=0.9,
    learning_rate=3e-3,
)


def losses(history: tuple[EpochRecord, ...]) -> list[tuple[float, float, float]]:
    return [(record.train_loss, record.val_loss, record.learning_rate) for record in history]


def alone(task: Task, config: TrainConfig, permutations: list[int]) -> tuple[EpochRecord, ...]:
    """The history of a training by itself in recorded orders of the data."""
    training = Training(task, config, None)
    pack = Pack([training])
    for order in permutations:
        assert pack.train_epoch(order) == (None,)
    return training.history


def fit_together(task: Task, configs: list[TrainConfig], root: Path) -> list[FitResult]:
    scheduler = PackScheduler()
    barrier = threading.Barrier(len(configs), timeout=60)

    def run(number: int) -> FitResult:
        barrier.wait(60)
        folder = root / str(number)
        return fit(task, configs[number], folder, SilentReporter(), scheduler=scheduler)

    with ThreadPoolExecutor(len(configs)) as pool:
        return list(pool.map(run, range(len(configs))))


def test_trainings_share_epochs_and_keep_what_is_their_own(task: Task, tmp_path: Path) -> None:
    configs = [
        dataclasses.replace(CONFIG, seed=n, epochs=epochs, hidden=hidden, dropout=0.1 * (n % 2))
        for n, (epochs, hidden) in enumerate([(4, (8,)), (7, (8, 4)), (9, (5,)), (6, (8, 4))])
    ]
    results = fit_together(task, configs, tmp_path)
    together = [{record.order for record in result.history} for result in results]
    # They met: most orders were gone through by several trainings.
    assert len(set.union(*together)) < sum(map(len, together)) - 5
    for config, result in zip(configs, results, strict=True):
        assert [record.epoch for record in result.history] == list(range(1, config.epochs + 1))
        permutations = [record.order for record in result.history]
        assert losses(result.history) == losses(alone(task, config, permutations))


def test_a_training_alone_is_reproduced_without_its_permutations(task: Task, tmp_path: Path) -> None:
    result = fit(task, CONFIG, tmp_path, SilentReporter())
    permutations = [record.order for record in result.history]
    assert losses(result.history) == losses(alone(task, CONFIG, permutations))


def test_other_batches_are_not_waited_for(task: Task, tmp_path: Path) -> None:
    configs = [CONFIG, dataclasses.replace(CONFIG, batch_size=16)]
    for config, result in zip(configs, fit_together(task, configs, tmp_path), strict=True):
        assert losses(result.history) == losses(
            fit(task, config, tmp_path / "alone", SilentReporter()).history
        )
        (tmp_path / "alone" / "checkpoint.safetensors").unlink()


def test_one_that_fails_does_not_harm_the_others(task: Task, tmp_path: Path) -> None:
    scheduler = PackScheduler()
    spoilt, sound = Training(task, CONFIG, None), Training(task, CONFIG, None)
    with torch.no_grad():
        next(spoilt.model.parameters()).fill_(float("nan"))
    with scheduler.joined(spoilt), scheduler.joined(sound), ThreadPoolExecutor(2) as pool:
        one, other = (pool.submit(scheduler.train_epoch, training) for training in (spoilt, sound))
        with pytest.raises(TrainingFailed, match="the training loss is nan in epoch 1"):
            one.result(60)
        other.result(60)
    (together,) = sound.history
    assert losses(sound.history) == losses(alone(task, CONFIG, [together.order]))


def test_an_epoch_that_is_shared_is_not_left(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_module, "LONG_EPOCH", 0.0)
    monkeypatch.setattr(scheduler_module, "PATIENCE", 60.0)
    scheduler = PackScheduler()
    trainings = [Training(task, CONFIG, None) for _ in range(2)]
    with scheduler.joined(trainings[0]), scheduler.joined(trainings[1]), ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(scheduler.train_epoch, training, lambda: True) for training in trainings]:
            one.result(60)
    assert [training.epoch for training in trainings] == [1, 1]
    with scheduler.joined(trainings[0]), pytest.raises(EpochLeft):
        scheduler.train_epoch(trainings[0], lambda: True)
    assert trainings[0].epoch == 1


def test_a_training_that_has_left_is_held_by_nothing(task: Task, tmp_path: Path) -> None:
    scheduler = PackScheduler()
    training = Training(task, CONFIG, None)
    with scheduler.joined(training):
        scheduler.train_epoch(training)
    left = weakref.ref(training)
    del training
    gc.collect()
    assert left() is None


def test_a_long_epoch_is_waited_for(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "PATIENCE", 0.05)
    scheduler, begun, end = PackScheduler(), threading.Event(), threading.Event()
    sizes: list[int] = []
    train_epoch = Pack.train_epoch

    def watched(pack: Pack, order: int, leave: Leave | None = None) -> object:
        sizes.append(len(pack.trainings))
        if len(sizes) == 1:
            begun.set()
            assert end.wait(60)
        return train_epoch(pack, order, leave)

    monkeypatch.setattr(Pack, "train_epoch", watched)
    one, other = Training(task, CONFIG, None), Training(task, CONFIG, None)
    with scheduler.joined(one), ThreadPoolExecutor(2) as pool:

        def twice() -> None:
            scheduler.train_epoch(one)
            scheduler.train_epoch(one)

        long = pool.submit(twice)
        assert begun.wait(60)
        with scheduler.joined(other):
            joins = pool.submit(scheduler.train_epoch, other)
            # Much longer than its patience: it is not to train beside the others.
            with pytest.raises(TimeoutError):
                joins.result(timeout=0.5)
            end.set()
            joins.result(timeout=60)
            long.result(timeout=60)
    assert sizes == [1, 2]
