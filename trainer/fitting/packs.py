"""Trainings that go through the data together."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch

from trainer.errors import TrainingFailed
from trainer.features.parts import Load
from trainer.fitting.devices import products
from trainer.fitting.gradients import Gradient
from trainer.fitting.randomness import data_order, dropout_seed
from trainer.fitting.recorded import RecordedEpochs
from trainer.fitting.training import Training

#: How long trainings that are ready for their next epoch wait for one that is busy, s: writing a checkpoint,
#: or asking whether it is pruned.
PATIENCE: Final = 0.2

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


class Companions:
    """Trainings of several threads, which go through the data together where their batches are the same.

    Every training asks for its epochs from its own thread. One that joins, or was away for an epoch, goes on
    with the others at their next epoch, in the order of the data that they have come to; the order is part
    of its record.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._joined: set[Training] = set()
        self._ready: dict[Training, float] = {}  # since when
        self._ended: dict[Training, BaseException | None] = {}
        self._packs: dict[tuple[object, ...], Pack] = {}

    @contextmanager
    def joined(self, training: Training) -> Iterator[None]:
        """Be waited for by the others."""
        with self._changed:
            self._joined.add(training)
        try:
            yield
        finally:
            with self._changed:
                self._joined.remove(training)
                # A pack holds memory, and on a GPU what was recorded.
                for shared in [key for key, pack in self._packs.items() if training in pack.trainings]:
                    del self._packs[shared]
                self._changed.notify_all()

    def train_epoch(self, training: Training, leave: Leave | None = None) -> None:
        """Train ``training``, which has joined, for an epoch, with all others that are ready.

        Parameters
        ----------
        leave : asked within an epoch that ``training`` has for itself: companions would lose theirs

        Raises
        ------
        TrainingFailed
            if a loss is not finite; companions go on.
        EpochLeft
            if it was to leave its epoch.
        """
        together: list[Training] = []
        with self._changed:
            self._ready[training] = time.monotonic()
            self._changed.notify_all()
            while training in self._ready and not together:
                together = self._complete(training)
                for one in together:
                    del self._ready[one]
                if not together:
                    self._changed.wait(PATIENCE)
        if together:
            self._train(together, leave if len(together) == 1 else None)
        with self._changed:
            self._changed.wait_for(lambda: training in self._ended)
            failure = self._ended.pop(training)
        if failure is not None:
            raise failure

    def _complete(self, training: Training) -> list[Training]:
        """Those that begin an epoch with ``training`` now; none while another is worth waiting for."""
        others = [one for one in self._joined if _shared(one) == _shared(training)]
        ready = [one for one in others if one in self._ready]
        waited = time.monotonic() - min(self._ready[one] for one in ready)
        return ready if len(ready) == len(others) or waited >= PATIENCE else []

    def _train(self, together: list[Training], leave: Leave | None) -> None:
        ends: Sequence[BaseException | None]
        try:
            pack = self._packs.get(_shared(together[0]))
            if pack is None or set(pack.trainings) != set(together):
                pack = self._packs[_shared(together[0])] = Pack(together)
            # Those that have begun know how far they have come; one that begins follows them.
            begun = [training for training in together if training.history]
            order = max(training.next_order for training in begun or together)
            ends = pack.train_epoch(order, leave)
            together = list(pack.trainings)
        except BaseException as error:
            ends = (error,) * len(together)
        with self._changed:
            self._ended.update(zip(together, ends, strict=True))
            self._changed.notify_all()


class RecordedOrders(Companions):
    """No companions: one training, which goes through the data in given orders, to repeat another.

    Parameters
    ----------
    orders : number of the order of each epoch
    """

    def __init__(self, orders: Sequence[int]) -> None:
        super().__init__()
        self._orders = orders
        self._pack: Pack | None = None

    def train_epoch(self, training: Training, leave: Leave | None = None) -> None:
        self._pack = self._pack or Pack([training])
        (failure,) = self._pack.train_epoch(self._orders[training.epoch], leave)
        if failure is not None:
            raise failure


def _shared(training: Training) -> tuple[object, ...]:
    """What trainings must have in common to go through the data together."""
    config = training.config
    return (
        id(training.task),
        training.device,
        config.batch_size,
        config.loss,
        config.precision,
        config.threads,
    )


def make_packs(trainings: Iterable[Training]) -> list[Pack]:
    """As few packs as these trainings can go through the data in."""
    groups: dict[tuple[object, ...], list[Training]] = {}
    for training in trainings:
        groups.setdefault(_shared(training), []).append(training)
    return [Pack(group) for group in groups.values()]
