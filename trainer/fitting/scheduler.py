"""Scheduling of trainings in several threads: which are on a device, and which share batches."""

from __future__ import annotations

import logging
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

import torch

from trainer.fitting.devices import exhausted_memory, release_memory
from trainer.fitting.grouped_jobs import KERNEL_ACTIVATIONS
from trainer.fitting.pack import Leave, Pack
from trainer.fitting.training import Training

logger = logging.getLogger("anitune")

#: Seconds that trainings which are ready for their next epoch wait for a busy one, which writes a checkpoint
#: or asks whether it is pruned.
PATIENCE: Final = 0.2

R = TypeVar("R")


class NoRoomError(Exception):
    """The device does not have the memory for so many trainings: try again, with fewer of them."""


class PackScheduler:
    """Schedules trainings of several threads, which share batches where these are the same.

    Every training asks for its epochs from its own thread. A training that joins, or missed an epoch,
    continues with the others at their next epoch, in their next permutation of the data; the permutation is
    part of its record.

    A training on the device has a place there. After an out-of-memory error there are fewer places, and
    trainings without a place wait. They keep nothing on the device except, at the end, the network to
    evaluate.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._joined: set[Training] = set()
        self._ready: dict[Training, float] = {}  # the time since when
        self._in_epoch: set[Training] = set()
        self._epoch_ended: dict[tuple[object, ...], float] = {}  # end time of the last epoch of each group
        self._ended: dict[Training, BaseException | None] = {}
        self._packs: dict[tuple[object, ...], Pack] = {}
        self._places: float = math.inf
        self._placed = 0
        self._too_large = False  # whether the only training on the device does not fit
        self._waiting: deque[object] = deque()  # for a place, first in, first out

    def with_room(self, device: torch.device, work: Callable[[], R], leave: Leave) -> R | None:
        """Run ``work``, which takes memory of the device; repeat it with fewer trainings if memory runs out.

        Parameters
        ----------
        work : must keep nothing on the device except what it returns
        leave : asked now and then while the call waits for others to end

        Returns
        -------
        The result of ``work``; None: ``leave`` said to leave before it could run.

        Raises
        ------
        RuntimeError
            if ``work`` raises it, also for lack of memory if it was alone on the device.
        """
        while True:
            with self._place(leave) as placed:
                if not placed:
                    return None
                try:
                    return work()
                except BaseException as error:
                    # The code that handles the error may run long, and must not hold memory by its traceback.
                    _drop_frames(error)
                    if not isinstance(error, NoRoomError) and not (
                        exhausted_memory(error) == "device" and self._make_room(1, device)
                    ):
                        raise
                finally:
                    if device.type != "cpu" or self._places < math.inf:
                        release_memory(device)

    @contextmanager
    def _place(self, leave: Leave) -> Iterator[bool]:
        """Hold a place during the block. Yield False if ``leave`` said to leave before there was one."""
        me = object()
        with self._changed:
            self._waiting.append(me)
        placed = False
        try:
            while not (placed := self._take_place(me)) and not leave():
                pass
            yield placed
        finally:
            with self._changed:
                if placed:
                    self._placed -= 1
                    if self._too_large:
                        self._places, self._too_large = math.inf, False
                else:
                    self._waiting.remove(me)
                self._changed.notify_all()

    def _take_place(self, me: object) -> bool:
        """Take a place for ``me`` if it is first in the queue and there is a place within ``PATIENCE``."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._waiting[0] is me and self._placed < self._places, PATIENCE
            ):
                return False
            self._waiting.popleft()
            self._placed += 1
            self._changed.notify_all()  # there may be a place for the next in the queue, too
            return True

    def _make_room(self, together: int, device: torch.device) -> bool:
        """Reduce the places, as ``together`` trainings did not fit; return False if only one was there."""
        with self._changed:
            before = self._placed
            if before == 1:
                # This training left no room beside it; there is room again once it has gone.
                self._too_large = True
                return False
            self._places = max(1, min(self._places, before - math.ceil(together / 2)))
            logger.warning(
                "out of memory on %s with %d trainings at once: %d at once from now on",
                device,
                before,
                self._places,
            )
            return True

    @contextmanager
    def joined(self, training: Training) -> Iterator[None]:
        """Register a training during the block, so that the others wait for it."""
        with self._changed:
            self._joined.add(training)
        try:
            yield
        finally:
            with self._changed:
                self._joined.remove(training)
                # A pack holds memory, and on a GPU its CUDA graphs.
                for shared in [key for key, pack in self._packs.items() if training in pack.trainings]:
                    del self._packs[shared]
                self._changed.notify_all()

    def train_epoch(self, training: Training, leave: Leave | None = None) -> None:
        """Train ``training``, which has joined, for an epoch, with all others that are ready.

        Parameters
        ----------
        leave : asked only if ``training`` is alone in its epoch, as other trainings would lose theirs

        Raises
        ------
        TrainingFailed
            if a loss is not finite; other trainings continue.
        EpochLeft
            if ``leave`` said to leave the epoch.
        NoRoomError
            if the device does not have the memory for all trainings on it.
        """
        together: list[Training] = []
        with self._changed:
            self._ready[training] = time.monotonic()
            self._changed.notify_all()
            while training in self._ready and not together:
                together = self._complete(training)
                for one in together:
                    del self._ready[one]
                self._in_epoch.update(together)
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
        """Return the trainings that begin an epoch with ``training`` now; empty to wait for another one."""
        others = [one for one in self._joined if _shared(one) == _shared(training)]
        if any(one in self._in_epoch for one in others):
            return []  # however long that takes: otherwise each would go through the data alone
        ready = [one for one in others if one in self._ready]
        since = max(
            min(self._ready[one] for one in ready), self._epoch_ended.get(_shared(training), -math.inf)
        )
        return ready if len(ready) == len(others) or time.monotonic() - since >= PATIENCE else []

    def _train(self, together: list[Training], leave: Leave | None) -> None:
        ends: Sequence[BaseException | None]
        try:
            with self._changed:
                pack = self._packs.pop(_shared(together[0]), None)
            if pack is None or set(pack.trainings) != set(together):
                pack = None  # its memory is free for the next one
                pack = Pack(together)
            with self._changed:
                self._packs[_shared(together[0])] = pack
            # It is the highest number that a training which has begun would choose; new ones follow.
            begun = [training for training in together if training.history]
            permutation = max(training.next_permutation for training in begun or together)
            ends = pack.train_epoch(permutation, leave)
            together = list(pack.trainings)
        except BaseException as error:
            ends = (error,) * len(together)
            if exhausted_memory(error) == "device" and self._make_room(len(together), together[0].device):
                # New errors, because the traceback of this one holds the memory.
                ends = [NoRoomError() for _ in together]
        with self._changed:
            self._ended.update(zip(together, ends, strict=True))
            self._in_epoch.difference_update(together)
            # Those that have just ended an epoch are busy for a moment, and worth waiting for.
            self._epoch_ended[_shared(together[0])] = time.monotonic()
            self._changed.notify_all()


class GivenPermutations(PackScheduler):
    """Trains one training alone, in given permutations of the data, to reproduce an earlier training.

    Parameters
    ----------
    permutations : number of the permutation of each epoch
    """

    def __init__(self, permutations: Sequence[int]) -> None:
        super().__init__()
        self._permutations = permutations
        self._pack: Pack | None = None

    def train_epoch(self, training: Training, leave: Leave | None = None) -> None:
        self._pack = self._pack or Pack([training])
        (failure,) = self._pack.train_epoch(self._permutations[training.epoch], leave)
        if failure is not None:
            raise failure


def _shared(training: Training) -> tuple[object, ...]:
    """Return what trainings must have in common to share batches."""
    config = training.config
    return (
        id(training.task.split),
        id(training.task.features),
        training.device,
        config.batch_size,
        config.loss,
        config.precision,
        config.threads,
        config.activation in KERNEL_ACTIVATIONS,  # one without a kernel slows down the others of its pack
    )


def _drop_frames(error: BaseException | None) -> None:
    """Convert the tracebacks of an error and its causes to text.

    Their frames would keep tensors on the device. Clearing the frames is not enough: a frame keeps its
    function, and with it all that the function encloses.
    """
    while error is not None:
        if error.__traceback__ is not None:
            error.add_note("".join(["It was raised here:\n", *traceback.format_tb(error.__traceback__)]))
            error.__traceback__ = None
        error = error.__cause__ or error.__context__


def make_packs(trainings: Iterable[Training]) -> list[Pack]:
    """Group these trainings into as few packs as possible."""
    groups: dict[tuple[object, ...], list[Training]] = {}
    for training in trainings:
        groups.setdefault(_shared(training), []).append(training)
    return [Pack(group) for group in groups.values()]
