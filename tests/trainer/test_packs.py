from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from trainer.config import Activation, TrainConfig
from trainer.errors import TrainingFailed
from trainer.fitting import pack as pack_module
from trainer.fitting import scheduler as scheduler_module
from trainer.fitting.loop import FitResult, fit
from trainer.fitting.pack import EpochLeft, Pack
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

CONFIGS = st.builds(
    dataclasses.replace,
    st.just(CONFIG),
    hidden=st.lists(st.sampled_from([3, 5, 8]), min_size=1, max_size=3).map(tuple),
    activation=st.sampled_from(get_args(Activation)),
    dropout=st.sampled_from([0.0, 0.2]),
    learning_rate=st.sampled_from([1e-3, 1e-2]),
    weight_decay=st.sampled_from([0.0, 1e-2]),
    optimizer=st.sampled_from(["adam", "adamw"]),
    schedule=st.sampled_from(["constant", "cosine", "plateau"]),
    ema_decay=st.sampled_from([None, 0.9]),
    epochs=st.integers(1, 5),
    seed=st.integers(0, 5),
)


ROUNDING = 1e-6
"""Relative, of the loss of an epoch whose steps are done in float32."""

NUDGES = 20
"""Trainings from changed weights at most. A pack that differs as much as they do is further away than all of
them by chance once in 21 times, and most differ less than ``ROUNDING``."""


def losses(history: tuple[EpochRecord, ...]) -> list[tuple[float, float, float]]:
    return [(record.train_loss, record.val_loss, record.learning_rate) for record in history]


def distances(history: tuple[EpochRecord, ...], reference: tuple[EpochRecord, ...]) -> np.ndarray:
    """Relative differences of the training and the validation losses, (epochs, 2)."""
    mine, others = (np.array(losses(h))[:, :2] for h in (history, reference))
    return np.abs(mine / others - 1)


def alone(
    task: Task, config: TrainConfig, orders: list[int], nudge: int | None = None
) -> tuple[EpochRecord, ...]:
    """The history of a training by itself in recorded orders of the data.

    Parameters
    ----------
    nudge : seed of the directions in which each initial weight is moved by one ulp; None: none is moved
    """
    training = Training(task, config, None)
    if nudge is not None:
        generator = torch.Generator().manual_seed(nudge)
        with torch.no_grad():
            for weight in training.model.parameters():
                sign = torch.randint(2, weight.shape, generator=generator) * 2 - 1
                weight.copy_(weight.nextafter(sign * torch.inf))
    pack = Pack([training])
    for order in orders:
        assert pack.train_epoch(order) == (None,)
    return training.history


def train_together(
    task: Task, configs: list[TrainConfig], begins: list[int]
) -> Iterator[tuple[TrainConfig, tuple[EpochRecord, ...]]]:
    """Each configuration and its history; each joins at an epoch of its own, and leaves when it is done."""
    trainings = [Training(task, config, None) for config in configs]
    clock = 0
    while unfinished := [training for training in trainings if not training.finished]:
        joined = [
            t for t, begin in zip(trainings, begins, strict=False) if t in unfinished and begin <= clock
        ]
        if joined:
            assert not any(Pack(joined).train_epoch(clock))
        clock += 1
    for training, config, begin in zip(trainings, configs, begins, strict=False):
        orders = [record.order for record in training.history]
        assert orders == list(range(begin, begin + config.epochs))
        yield config, training.history


in_random_packs = hypothesis.given(
    configs=st.lists(CONFIGS, min_size=2, max_size=5),
    begins=st.lists(st.integers(0, 4), min_size=5, max_size=5),
    batch_size=st.sampled_from([40, 8192]),
)


@in_random_packs
@hypothesis.settings(max_examples=25, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_in_a_pack_each_training_is_what_it_is_alone(
    task: Task, configs: list[TrainConfig], begins: list[int], batch_size: int
) -> None:
    configs = [dataclasses.replace(config, batch_size=batch_size) for config in configs]
    for config, history in train_together(task, configs, begins):
        orders = [record.order for record in history]
        np.testing.assert_allclose(losses(history), losses(alone(task, config, orders)), rtol=1e-6, atol=0)


@in_random_packs
@hypothesis.settings(max_examples=25, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_in_float32_a_pack_is_no_further_from_a_training_alone_than_an_ulp_takes_it(
    task: Task, configs: list[TrainConfig], begins: list[int], batch_size: int
) -> None:
    """A pack sums in another order than a training alone, and a training enlarges what rounding begins.

    The training loss of the first epoch is equal to ``ROUNDING``. The losses that follow are where they lie
    no further away than the furthest of several trainings alone has been up to then, each from weights that
    are all moved by one ulp. One such training can stay close by chance, hence several, as many as it takes
    up to ``NUDGES``, and the furthest so far. Below ``ROUNDING`` distances say nothing: they are those of
    single roundings.

    The validation loss of the first epoch is one that follows: it comes after the epoch's steps. It too is
    equal to ``ROUNDING`` in all but some two of a thousand trainings, of which it can be 4e-6 in one whose
    error has become small beside the energies, and which an ulp changes by 5e-5.
    """
    configs = [dataclasses.replace(config, batch_size=batch_size, precision="float32") for config in configs]
    for config, history in train_together(task, configs, begins):
        orders = [record.order for record in history]
        reference = alone(task, config, orders)
        distance = distances(history, reference)
        assert distance[0, 0] <= ROUNDING
        allowed = np.full(config.epochs, ROUNDING)
        for nudge in range(NUDGES):
            if (distance.max(1) <= allowed).all():
                break
            nudged = distances(alone(task, config, orders, nudge), reference)
            allowed = np.maximum(allowed, np.maximum.accumulate(nudged.max(1)))
        assert (distance.max(1) <= allowed).all(), (distance, allowed)


def fit_together(task: Task, configs: list[TrainConfig], root: Path) -> list[FitResult]:
    scheduler = PackScheduler()
    barrier = threading.Barrier(len(configs))

    def run(number: int) -> FitResult:
        barrier.wait()
        folder = root / str(number)
        return fit(task, configs[number], folder, SilentReporter(), scheduler=scheduler)

    with ThreadPoolExecutor(len(configs)) as pool:
        return list(pool.map(run, range(len(configs))))


def test_companions_share_epochs_and_keep_what_is_their_own(task: Task, tmp_path: Path) -> None:
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
        orders = [record.order for record in result.history]
        np.testing.assert_allclose(losses(result.history), losses(alone(task, config, orders)), rtol=1e-6)


def test_a_training_alone_repeats_without_its_orders(task: Task, tmp_path: Path) -> None:
    result = fit(task, CONFIG, tmp_path, SilentReporter())
    orders = [record.order for record in result.history]
    assert losses(result.history) == losses(alone(task, CONFIG, orders))


def test_other_batches_are_not_waited_for(task: Task, tmp_path: Path) -> None:
    configs = [CONFIG, dataclasses.replace(CONFIG, batch_size=16)]
    for config, result in zip(configs, fit_together(task, configs, tmp_path), strict=True):
        assert losses(result.history) == losses(
            fit(task, config, tmp_path / "alone", SilentReporter()).history
        )
        (tmp_path / "alone" / "checkpoint.safetensors").unlink()


def test_one_that_fails_does_not_harm_its_companions(task: Task, tmp_path: Path) -> None:
    scheduler = PackScheduler()
    spoilt, sound = Training(task, CONFIG, None), Training(task, CONFIG, None)
    with torch.no_grad():
        next(spoilt.model.parameters()).fill_(float("nan"))
    with scheduler.joined(spoilt), scheduler.joined(sound), ThreadPoolExecutor(2) as pool:
        one, other = (pool.submit(scheduler.train_epoch, training) for training in (spoilt, sound))
        with pytest.raises(TrainingFailed, match="the training loss is nan in epoch 1"):
            one.result()
        other.result()
    (together,) = sound.history
    np.testing.assert_allclose(
        losses(sound.history), losses(alone(task, CONFIG, [together.order])), rtol=1e-6
    )


def test_an_epoch_that_is_shared_is_not_left(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_module, "LONG_EPOCH", 0.0)
    monkeypatch.setattr(scheduler_module, "PATIENCE", 60.0)
    scheduler = PackScheduler()
    trainings = [Training(task, CONFIG, None) for _ in range(2)]
    with scheduler.joined(trainings[0]), scheduler.joined(trainings[1]), ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(scheduler.train_epoch, training, lambda: True) for training in trainings]:
            one.result()
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
