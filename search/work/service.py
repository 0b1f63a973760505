"""A worker that serves all open studies, by priority and age."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from search.recorded import recorded_config
from search.study import StudyConfig
from search.work.stopping import StopRequest
from search.work.worker import Watcher, Worker, patiently
from storage.database import Database
from storage.errors import FactsChangedError, FolderTakenError, StudyNotFoundError
from storage.studies import Study, open_study
from storage.trials.queue import next_study
from trainer.errors import DeviceError, TrainerError
from trainer.fitting.devices import find_device, release_memory
from trainer.progress import no_progress
from trainer.task import Task, prepare_task

logger = logging.getLogger("anitune")

POLL_SECONDS = 2.0
"""Interval at which the worker looks for a study, and pause for a study that had no trial, s."""

REFUSED_SECONDS = 600.0
"""Pause for a study that cannot be trained here, for example because its data is missing, s."""


class Service:
    """Trains the trials of all open studies in this process, one study at a time.

    Between two trials it switches to a study with a higher priority, or with the same priority and older. It
    holds the data of only one study at a time.

    Parameters
    ----------
    start_relay, name, concurrent_trials : as in :class:`search.work.worker.Worker`
    idle_timeout : time without a trial after which to end, s; None: never
    """

    def __init__(
        self,
        database: Database,
        watcher: Watcher,
        stop: StopRequest,
        start_relay: Callable[[Study], object],
        name: str | None = None,
        concurrent_trials: int | None = 1,
        idle_timeout: float | None = None,
    ) -> None:
        self._database = database
        self._watcher = watcher
        self._stop = stop
        self._start_relay = start_relay
        self._name = name
        self._concurrent_trials = concurrent_trials
        self._idle_timeout = idle_timeout
        self._task: Task | None = None
        self._resting: dict[str, float] = {}  # name of a study: time until which it is skipped

    def serve(self) -> None:
        """Train until asked to stop, or until the idle timeout."""
        idle_since = time.monotonic()
        while not self._stop.asked:
            name = self._next()
            if name is not None:
                if self._serve_study(name):
                    idle_since = time.monotonic()
                continue
            self._forget_task()  # so that a finished study holds no memory
            idle = time.monotonic() - idle_since
            if self._idle_timeout is not None and idle >= self._idle_timeout:
                logger.info("no study has had a trial for %.0f s", idle)
                return
            self._stop.wait(POLL_SECONDS)

    def _next(self) -> str | None:
        now = time.monotonic()
        self._resting = {name: until for name, until in self._resting.items() if until > now}
        return patiently(lambda: next_study(self._database, leave=self._resting))

    def _serve_study(self, name: str) -> bool:
        """Train trials of a study until it has none or another study is next; return whether it had any."""
        rest = POLL_SECONDS
        try:
            study = patiently(lambda: open_study(self._database, name))
            config = recorded_config(study)
            task = self._prepare(config)
            patiently(lambda: study.set_facts(task.fingerprints))
            worker = Worker(
                self._database,
                study,
                config,
                task,
                self._watcher,
                self._stop,
                self._start_relay,
                self._name,
                self._concurrent_trials,
                leave=lambda: self._next() != name,
            )
            return worker.work() > 0
        except DeviceError:
            raise  # no study can be trained here any more
        except (TrainerError, FactsChangedError, FolderTakenError) as error:
            logger.warning("%s: cannot be trained here: %s", name, error)
            rest = REFUSED_SECONDS
        except StudyNotFoundError:
            pass  # it has just been deleted
        finally:
            self._resting[name] = time.monotonic() + rest
        return False

    def _forget_task(self) -> None:
        if self._task is not None:
            self._task = None
            release_memory(find_device("auto"))

    def _prepare(self, config: StudyConfig) -> Task:
        if self._task is None or self._task.config != config.task:
            self._forget_task()  # before the next one is loaded
            logger.info("%s: reading its data and features", config.name)
            self._task = prepare_task(config.task, self._database.settings.features, no_progress)
        return self._task
