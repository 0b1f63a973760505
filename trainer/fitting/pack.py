"""Trainings that go through the data together, an epoch at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Final

import torch

from trainer.errors import TrainingFailed
from trainer.features.parts import Load
from trainer.fitting.devices import products
from trainer.fitting.gradients import Gradient
from trainer.fitting.randomness import data_order, dropout_seed
from trainer.fitting.recorded import RecordedEpochs
from trainer.fitting.training import Training

#: An epoch that takes no longer, s, is never left: its end is near.
LONG_EPOCH: Final = 2.0

#: How often a training in a long epoch is asked whether to leave it, s.
ASKED_EVERY: Final = 0.2

Leave = Callable[[], bool]
"""Whether to leave the epoch. What it raises ends the epoch too."""


class EpochLeft(Exception):  # noqa: N818  (nothing went wrong)
    """The training was to leave its epoch, and did: its weights are those of no whole number of epochs."""


class Pack:
    """Trainings whose batches are the same: each is loaded once, and goes through all networks at once.

    Each training keeps what is its own: weights, rates, schedule, random numbers, history, checkpoint. It
    does not depend on its companions beyond the rounding of sums.

    Parameters
    ----------
    trainings : on the same task and device, with the same batch size, loss, precision and threads
    """

    def __init__(self, trainings: Sequence[Training]) -> None:
        self.trainings = trainings
        # What is common to all is asked of any of them.
        self._any = trainings[0]
        self._recorded = RecordedEpochs(trainings) if RecordedEpochs.possible(self._any) else None
        self._gradients = [
            Gradient([training.model for training in trainings])
            for _ in range(0 if self._recorded else self._any.threads.count)
        ]

    def train_epoch(self, order: int, leave: Leave | None = None) -> tuple[TrainingFailed | None, ...]:
        """Go through the training part once, in the order of this number, and evaluate.

        Parameters
        ----------
        leave : asked between the batches of a long epoch that is not recorded; None: it is never left

        Returns
        -------
        For each training, what ended it, if anything did.

        Raises
        ------
        EpochLeft
            if it was to be left.
        """
        started = time.perf_counter()
        for training in self.trainings:
            training.start_epoch()
        if self._recorded is not None:
            losses = self._recorded.run(order)
        else:
            with products(self._any.config.precision, self._any.device):
                losses = self._pass_over_training_part(order, leave)
        failures: list[TrainingFailed | None] = []
        for training, loss in zip(self.trainings, losses.unbind(), strict=True):
            try:
                training.end_epoch(loss, order, started)
                failures.append(None)
            except TrainingFailed as failure:
                failures.append(failure)
        return tuple(failures)

    def _pass_over_training_part(self, order: int, leave: Leave | None) -> torch.Tensor:
        """Mean loss of each training over the epoch, (K,) float64 on the device."""
        part, batch_size = self._any.train, self._any.config.batch_size
        positions = torch.from_numpy(data_order(len(part), self._any.split_seed, order))
        steps = math.ceil(len(part) / batch_size)
        done = [training.epoch * steps for training in self.trainings]
        seeds = [dropout_seed(training.config.seed, training.epoch + 1) for training in self.trainings]
        totals = torch.zeros(len(self.trainings), dtype=torch.float64, device=self._any.device)
        pieces_done = 0
        asks_at = time.monotonic() + LONG_EPOCH if leave is not None else math.inf
        for step, (batch, pieces) in enumerate(
            zip(torch.split(positions, batch_size), part.features.steps(positions, batch_size), strict=True),
            start=1,
        ):
            if time.monotonic() >= asks_at:
                assert leave is not None
                if leave():
                    raise EpochLeft
                asks_at = time.monotonic() + ASKED_EVERY
            losses = self._set_gradients(pieces, len(batch), [seed + pieces_done for seed in seeds])
            pieces_done += len(pieces)
            for training, gradient, before in zip(
                self.trainings, self._gradients[0].vectors, done, strict=True
            ):
                training.step(gradient, before + step)
            totals.add_(losses, alpha=len(batch))
        return totals / len(part)

    def _set_gradients(self, pieces: Sequence[Load], structures: int, seeds: Sequence[int]) -> torch.Tensor:
        """Compute the gradients of the mean losses over the structures of a batch, and those losses, (K,).

        Parameters
        ----------
        seeds : decide, for each training, what the first of the pieces drops; each further piece adds one
        """

        def work(thread: int, share: Sequence[tuple[int, Load]]) -> torch.Tensor:
            gradient = self._gradients[thread]
            gradient.start()
            losses = []
            for number, load in share:
                batch = load()
                target = self._any.train.targets.index_select(0, batch.positions)
                weight = self._any.train.weights.index_select(0, batch.positions).div_(structures)
                losses.append(gradient.add(batch, target, weight, [seed + number for seed in seeds]))
            gradient.finish()
            return torch.stack(losses).sum(0)

        losses = self._any.threads.map(work, list(enumerate(pieces)))
        for gradient in self._gradients[1 : len(losses)]:
            for vector, addend in zip(self._gradients[0].vectors, gradient.vectors, strict=True):
                vector.add_(addend)
        return torch.stack(losses).sum(0)
