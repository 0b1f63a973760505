"""Metrics of a worker for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge

from search.work.monitor import Health, serve
from storage.trials.queue import LEASE_SECONDS

if TYPE_CHECKING:
    from search.work.worker import TrialNews, Watcher
    from storage.studies import StudyProgress
    from storage.workers import WorkerHeartbeat

ENDS = ("complete", "paused", "pruned", "failed", "interrupted", "lost")


class Counting:
    """A watcher that counts events and passes them on to another watcher."""

    def __init__(self, watcher: Watcher, sign: WorkerHeartbeat) -> None:
        self.registry = CollectorRegistry()
        self._watcher = watcher
        self._reached: dict[int, int | None] = {}
        self._in_hand = Gauge("anitune_trials_in_hand", "Trials in training.", registry=self.registry)
        self._epochs = Counter("anitune_epochs", "Epochs trained.", registry=self.registry)
        self._trials = Counter(
            "anitune_trials", "Trials that left this worker, by state.", ["state"], registry=self.registry
        )
        for state in ENDS:
            self._trials.labels(state)  # so that it is exported as zero
        silent = Gauge(
            "anitune_silent_seconds", "Time since the last heartbeat in SQL.", registry=self.registry
        )
        silent.set_function(lambda: sign.silent)
        self._in_hand.set_function(lambda: len(self._reached))

    def begun(self, news: TrialNews, progress: StudyProgress) -> None:
        """See :class:`search.work.worker.Watcher`."""
        self._reached[news.number] = None
        self._watcher.begun(news, progress)

    def epoch(self, number: int, done: int) -> None:
        """See :class:`search.work.worker.Watcher`."""
        # A resumed trial has epochs of earlier attempts; the first call says how many.
        before = self._reached[number]
        self._epochs.inc(0 if before is None else done - before)
        self._reached[number] = done
        self._watcher.epoch(number, done)

    def ended(self, news: TrialNews, progress: StudyProgress) -> None:
        """See :class:`search.work.worker.Watcher`."""
        self._reached.pop(news.number, None)
        self._trials.labels(news.state).inc()
        self._watcher.ended(news, progress)

    def left(self, progress: StudyProgress) -> None:
        """See :class:`search.work.worker.Watcher`."""
        self._watcher.left(progress)


@contextmanager
def serve_metrics(host: str, port: int, watcher: Watcher, sign: WorkerHeartbeat) -> Iterator[Counting]:
    """Serve metrics of the worker in the block, and yield the watcher that it must use.

    ``/health`` answers 503 if the worker's last heartbeat is older than a lease, as other workers may have
    taken over its trials by then.

    Raises
    ------
    SearchError
        if the port is taken.
    """
    counting = Counting(watcher, sign)

    def health() -> Health:
        return Health(sign.silent < LEASE_SECONDS, {"silent_seconds": sign.silent})

    with serve(host, port, counting.registry, health):
        yield counting
