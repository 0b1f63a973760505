"""Which trainings of several threads go through the data together, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from trainer.fitting.pack import Leave, Pack
from trainer.fitting.training import Training

#: How long trainings that are ready for their next epoch wait for one that is busy, s: writing a checkpoint,
#: or asking whether it is pruned.
PATIENCE: Final = 0.2


class PackScheduler:
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
        leave : asked within an epoch that ``training`` has for itself: other trainings would lose theirs

        Raises
        ------
        TrainingFailed
            if a loss is not finite; other trainings go on.
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


class RecordedOrders(PackScheduler):
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
