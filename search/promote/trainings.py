"""Trains what promotions and learning curves plan: on the CPU in a process per core, on a GPU in packs."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock

from search.promote.plan import PlannedTraining
from search.work.card_memory import shared_memory_of
from search.work.concurrent import run_concurrently
from search.work.processes import TrainingProcess
from search.work.sizing import concurrent_trials_by_memory
from search.work.stopping import StopRequest
from trainer.config import TaskConfig
from trainer.errors import TrainingCutOff, TrainingFailed
from trainer.fitting.devices import find_device
from trainer.fitting.scheduler import PackScheduler
from trainer.progress import Progress, no_progress
from trainer.reporting import SilentReporter
from trainer.run import TrainingResult, run_training
from trainer.task import Task, prepare_task

Outcome = TrainingResult | TrainingFailed

Ended = Callable[[PlannedTraining, Outcome], None]
"""Callback for each training that has ended; called for one at a time, in the order in which they end."""


def training_folder(folder: Path, planned: PlannedTraining) -> Path:
    """Return the folder of a training, which holds its checkpoint and, at its end, its network."""
    return folder / planned.key[:32]


def train_all(
    planned: Sequence[PlannedTraining],
    task: Task,
    cache: Path,
    folder: Path,
    stop: StopRequest,
    ended: Ended,
    progress: Progress,
    cards: Path,
) -> None:
    """Train all, several at once. If asked to stop, return early with a checkpoint of each running training.

    Parameters
    ----------
    planned : trainings, grouped by what they train on
    task : task of the study
    cache : folder of the stored features
    folder : folder of the trainings, in which interrupted ones continue
    progress : called with the number of epochs done, of those of all trainings
    cards : folder in which workers announce how much memory of a GPU they will take

    Raises
    ------
    TrainerError, OSError
        if there is an error that does not concern a single training only.
    """
    if not planned:
        return
    course = _Course(planned, folder, stop, ended, progress)
    device = find_device(planned[0].config.device)
    configs = [each.config for each in planned]
    if device.type == "cpu":
        work = partial(_work_in_processes, course, deque(planned), task, cache)
        run_concurrently(concurrent_trials_by_memory(task, configs), work, stop)
        return
    with shared_memory_of(device, cards) as memory:
        concurrent_trials = concurrent_trials_by_memory(task, configs, memory)
        for _, group in itertools.groupby(planned, key=lambda each: (each.fold, each.share)):
            together = list(group)
            # Each group opens its own features, so that their memory on a GPU is freed after it.
            train = partial(run_training, _own_task(task, together[0], cache), scheduler=PackScheduler())
            run_concurrently(
                min(concurrent_trials, len(together)), partial(course.train, deque(together), train), stop
            )


class _Course(SilentReporter):
    """The trainings of a plan and their progress."""

    def __init__(
        self,
        planned: Sequence[PlannedTraining],
        folder: Path,
        stop: StopRequest,
        ended: Ended,
        progress: Progress,
    ) -> None:
        self._folder = folder
        self._stop = stop
        self._ended = ended
        self._progress = progress
        self._total = sum(each.config.epochs for each in planned)
        self._epochs = dict.fromkeys((each.key for each in planned), 0)
        self._lock = Lock()

    def should_stop(self) -> bool:
        return self._stop.asked

    def next(self, waiting: deque[PlannedTraining]) -> PlannedTraining | None:
        """Take the next training to begin; None if there is none or if asked to stop."""
        with self._lock:
            return waiting.popleft() if waiting and not self._stop.asked else None

    def train(self, waiting: deque[PlannedTraining], train: Callable[..., TrainingResult]) -> None:
        """Train all waiting ones, one after the other."""
        while (planned := self.next(waiting)) is not None:
            self.train_one(planned, train)

    def train_one(self, planned: PlannedTraining, train: Callable[..., TrainingResult]) -> None:
        """Run one training with a function that has the parameters of :func:`trainer.run.run_training`."""
        outcome: Outcome
        try:
            outcome = train(
                planned.config,
                training_folder(self._folder, planned),
                self,
                rungs=(),
                warm_start=None,
                progress=lambda stage, done, total: self._report_progress(planned, done),
            )
        except TrainingCutOff:
            raise  # this is no failure of the candidate
        except TrainingFailed as failure:
            outcome = failure
        if isinstance(outcome, TrainingResult) and outcome.outcome == "stopped":
            return
        with self._lock:
            self._ended(planned, outcome)
        self._report_progress(planned, planned.config.epochs)

    def _report_progress(self, planned: PlannedTraining, done: int) -> None:
        with self._lock:
            self._epochs[planned.key] = done
            self._progress("training", sum(self._epochs.values()), self._total)


def _work_in_processes(course: _Course, waiting: deque[PlannedTraining], task: Task, cache: Path) -> None:
    while (planned := course.next(waiting)) is not None:
        with TrainingProcess(_own_config(task, planned), cache) as process:
            course.train_one(planned, process.train)


def _own_config(task: Task, planned: PlannedTraining) -> TaskConfig:
    """Return the settings of the task of a training, given the task of the study."""
    return replace(task.config, fold=planned.fold, train_share=planned.share)


def _own_task(task: Task, planned: PlannedTraining, cache: Path) -> Task:
    if planned.fold is None and planned.share == 1:
        return task
    return prepare_task(_own_config(task, planned), cache, no_progress)
