"""Trainings that go through the data together, an epoch at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Final

import torch

from trainer.errors import TrainingFailed
from trainer.features.micro_batches import Load
from trainer.fitting.device_epochs import DeviceEpochs
from trainer.fitting.gradients import Gradient
from trainer.fitting.randomness import data_permutation, dropout_seed
from trainer.fitting.training import Training

#: Seconds after which an epoch may be left; a shorter one ends soon anyway.
LONG_EPOCH: Final = 2.0

#: Seconds between the checks whether to leave a long epoch.
ASKED_EVERY: Final = 0.2

Leave = Callable[[], bool]
"""Returns whether to leave the epoch. An exception raised here ends the epoch too."""


class EpochLeft(Exception):  # noqa: N818  (nothing went wrong)
    """A training left its epoch as asked: its weights do not belong to a whole number of epochs."""


class Pack:
    """Trainings with the same batches: on a GPU each batch goes through all networks at once.

    On the CPU, where that gains nothing, they take turns. Each training has its own weights, rates, schedule,
    random numbers, history and checkpoint. It depends on the others only through the rounding of sums.

    Parameters
    ----------
    trainings : on the same task and device, with the same batch size, loss, precision and threads
    """

    def __init__(self, trainings: Sequence[Training]) -> None:
        self.trainings = trainings
        on_gpu = trainings[0].device.type == "cuda"
        self._on_device = DeviceEpochs(trainings) if on_gpu else None
        self._on_cpu = [] if on_gpu else [_CpuEpochs(training) for training in trainings]

    def train_epoch(self, permutation: int, leave: Leave | None = None) -> tuple[TrainingFailed | None, ...]:
        """Go through the training set once, in the permutation of this number, and evaluate.

        Parameters
        ----------
        leave : asked between the batches of a long epoch on the CPU; None: it is never left

        Returns
        -------
        For each training, the error that ended it, or None.

        Raises
        ------
        EpochLeft
            if ``leave`` said so.
        """
        started = time.perf_counter()
        for training in self.trainings:
            training.start_epoch()
        if self._on_device is not None:
            losses = self._on_device.run(permutation)
        else:
            losses = [epochs.run(permutation, leave) for epochs in self._on_cpu]
        failures: list[TrainingFailed | None] = []
        for training, of_training in zip(self.trainings, losses, strict=True):
            try:
                training.end_epoch(of_training, permutation, started)
                failures.append(None)
            except TrainingFailed as failure:
                failures.append(failure)
        return tuple(failures)


class _CpuEpochs:
    """Runs epochs of a training on the CPU."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._gradients = [Gradient(training.model) for _ in range(training.threads.count)]

    def run(self, permutation: int, leave: Leave | None) -> list[float]:
        """Run an epoch in the permutation of this number; return its mean loss and the validation errors."""
        training, subset = self._training, self._training.train
        batch_size = training.config.batch_size
        positions = torch.from_numpy(data_permutation(len(subset), training.split_seed, permutation))
        done = training.epoch * math.ceil(len(subset) / batch_size)
        seed = dropout_seed(training.config.seed, training.epoch + 1)
        total = torch.zeros(1, dtype=torch.float64)
        asks_at = time.monotonic() + LONG_EPOCH if leave is not None else math.inf
        for step, (batch, pieces) in enumerate(
            zip(
                torch.split(positions, batch_size), subset.features.steps(positions, batch_size), strict=True
            ),
            start=1,
        ):
            if time.monotonic() >= asks_at:
                assert leave is not None
                if leave():
                    raise EpochLeft
                asks_at = time.monotonic() + ASKED_EVERY
            loss = self._set_gradient(pieces, len(batch), seed)
            seed += len(pieces)
            training.step(self._gradients[0].vector, done + step)
            total.add_(loss, alpha=len(batch))
        return [float(total / len(subset)), *training.validate()]

    def _set_gradient(self, pieces: Sequence[Load], structures: int, seed: int) -> torch.Tensor:
        """Compute the gradient of the mean loss over the structures of a batch, and that loss, (1,).

        Parameters
        ----------
        seed : dropout seed of the first micro-batch; each further micro-batch adds one
        """
        subset = self._training.train

        def work(thread: int, share: Sequence[tuple[int, Load]]) -> torch.Tensor:
            gradient = self._gradients[thread]
            gradient.start()
            losses = []
            for number, load in share:
                batch = load()
                target = subset.targets.index_select(0, batch.positions)
                weight = subset.weights.index_select(0, batch.positions).div_(structures)
                losses.append(gradient.add(batch, target, weight, seed + number))
            gradient.finish()
            return torch.stack(losses).sum(0)

        losses = self._training.threads.map(work, list(enumerate(pieces)))
        for gradient in self._gradients[1 : len(losses)]:
            self._gradients[0].vector.add_(gradient.vector)
        return torch.stack(losses).sum(0)
