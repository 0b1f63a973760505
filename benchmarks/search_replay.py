"""Replay searches on the table of real trainings: no training, a virtual clock, any number of workers.

Our searches run the product's own worker, storage, sampler and pruner; only the training is replaced, by a
row of the table and a sleep on the virtual clock. Plain Optuna does what its tutorials do, on the same clock.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final, Literal

import optuna
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState

from benchmarks.search_table import EPOCHS, SEARCHED, STUDY, Cell, Training, full_grid, settings_of
from benchmarks.tracker_time import home_settings
from search.propose.earlier import copy_of
from search.propose.samplers import trial_limit
from search.study import StudyConfig, study_from_values
from search.work.stopping import StopRequest
from search.work.worker import SilentWatcher, Worker
from storage.database import Database, open_database
from storage.studies import Budget, create_study, open_study
from trainer.config import TrainConfig, dump_config
from trainer.errors import TrainingFailed
from trainer.evaluation.metrics import MAE, RMSE
from trainer.fitting.loop import Outcome
from trainer.reporting import EpochRecord, Reporter
from trainer.run import TrainingResult
from trainer.task import Task

EARLIER_SEED: Final = 1_000
"""The seed of an earlier study is that of the study that learns from it plus this."""


RMSE_OF_MAE: Final = 1.8
"""Root mean square error of a full training over its MAE, which the table lacks: it was 1.73 to 1.81 in those
of the quickstart."""


class VirtualClock:
    """Time that passes only while all threads sleep; one runs at a time, the one that is due first."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._due: list[tuple[float, int, Event]] = []
        self._errors: list[BaseException] = []

    def run(self, actions: Sequence[Callable[[], object]]) -> None:
        """Run each action in a thread of its own, and wait until all have ended.

        Raises
        ------
        BaseException
            the first that an action raised, after the other actions have ended.
        """
        threads = []
        for action in actions:
            woken = self._enter(0.0)
            threads.append(Thread(target=self._run, args=(action, woken)))
            threads[-1].start()
        self._wake_next()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def sleep(self, seconds: float) -> None:
        """Let the other threads run until this much virtual time has passed."""
        woken = self._enter(seconds)
        self._wake_next()
        woken.wait()

    def _enter(self, seconds: float) -> Event:
        woken = Event()
        heapq.heappush(self._due, (self.now + seconds, next(self._order), woken))
        return woken

    def _wake_next(self) -> None:
        if self._due:
            self.now, _, woken = heapq.heappop(self._due)
            woken.set()

    def _run(self, action: Callable[[], object], woken: Event) -> None:
        woken.wait()
        try:
            action()
        except BaseException as error:
            self._errors.append(error)
        finally:
            self._wake_next()


class Trainings:
    """The largest full grid of the table, by configuration and seed.

    A training's seed chooses among the rows of its configuration, because the noise between seeds is part of
    a search.
    """

    def __init__(self, rows: Sequence[Training]) -> None:
        self._rows: dict[tuple[Any, ...], list[Training]] = {}
        for row in sorted(full_grid(rows), key=lambda row: row.cell.seed):
            self._rows.setdefault(settings_of(row.cell), []).append(row)

    def find(self, settings: Any, seed: int) -> Training:
        """The training of a configuration, which is any object with the attributes of a cell."""
        rows = self._rows[settings_of(settings)]
        return rows[seed % len(rows)]

    def error(self, settings: Any) -> float:
        """Least validation MAE of full trainings, kcal/mol: mean over the seeds; infinite if one failed."""
        rows = self._rows[settings_of(settings)]
        return sum(row.error for row in rows) / len(rows)

    def parameters(self, settings: Any) -> float:
        """Number of weights and biases of a configuration."""
        return float(self._rows[settings_of(settings)][0].parameters or 0)

    @property
    def choices(self) -> dict[str, list[Any]]:
        """The values of each setting, by its name."""
        return {name: sorted({values[i] for values in self._rows}) for i, name in enumerate(SEARCHED)}

    def ranked(self) -> list[tuple[float, tuple[Any, ...]]]:
        """Error and settings of each configuration, the best first."""
        return sorted((self.error(Cell(*settings)), settings) for settings in self._rows)

    @property
    def shortest_epoch(self) -> float:
        """Duration of the shortest epoch of all trainings, s."""
        return min(row.seconds or 1.0 for rows in self._rows.values() for row in rows)

    @property
    def digest(self) -> str:
        """SHA-256 of all that a replay can read, in hexadecimal digits."""
        read = [
            (row.cell, row.val_mae, row.parameters, row.seconds, row.failure)
            for rows in self._rows.values()
            for row in rows
        ]
        return hashlib.sha256(repr(sorted(read, key=repr)).encode()).hexdigest()

    @property
    def count(self) -> int:
        """Number of configurations."""
        return len(self._rows)

    @property
    def epochs(self) -> int:
        """Epochs needed to train every configuration once."""
        return EPOCHS * self.count


Point = tuple[int, float, float]
"""Epochs of all trials together, virtual time (s), and the error after a full training (kcal/mol) of the
configuration that a person would choose at that time."""


@dataclass
class SearchHistory:
    """History of a search: its best choice as a function of the training spent.

    Attributes
    ----------
    points
        One for each epoch of a trial.
    """

    trainings: Trainings
    points: list[Point] = field(default_factory=list)
    epochs: int = 0
    trained: dict[int, int] = field(default_factory=dict)
    """Epochs trained by each trial."""
    _best: dict[Any, tuple[int, float]] = field(default_factory=dict)

    def report(self, settings: Any, trial: int, epochs: int, best: float, now: float) -> None:
        """Add an epoch of a trial that has trained ``epochs`` in all, with its best validation MAE so far."""
        self.epochs += 1
        self.trained[trial] = epochs
        self._best[trial, settings_of(settings)] = (-epochs, best)
        # Choose the best of the trials trained longest, since shorter ones cannot be compared with them.
        (_, taken), _ = min(self._best.items(), key=lambda item: item[1])
        self.points.append((self.epochs, now, self.trainings.error(Cell(*taken))))

    def failed(self, settings: Any, trial: int) -> None:
        """Mark the training of a trial as failed, so that it is not chosen."""
        self._best[trial, settings_of(settings)] = (0, math.inf)

    @property
    def changes(self) -> list[Point]:
        """The points at which the chosen configuration, by its error, changed."""
        return [
            point
            for before, point in itertools.pairwise([(0, 0.0, math.nan), *self.points])
            if point[2] != before[2]
        ]


def taken_after(history: Sequence[Point], epochs: float) -> float:
    """Error of the configuration chosen after this many epochs; infinite if there is none."""
    return next((error for spent, _, error in reversed(history) if spent <= epochs), math.inf)


def replay_ours(
    trainings: Trainings,
    task: Task,
    changes: Mapping[str, Any],
    seed: int,
    epochs: int,
    workers: int,
    history: SearchHistory | None = None,
) -> SearchHistory:
    """Run one of our studies until it has spent its epochs.

    Parameters
    ----------
    changes
        Sections of the study file that replace those of the table.
    epochs
        Limit of the study; trials that have begun are finished.
    history
        The history to which the search is added; None: a new one.
    """
    config = _study(trainings, changes, seed, epochs)
    with _new_database() as database:
        return _replay_study(database, trainings, task, config, workers, history)


def replay_learning(
    trainings: Trainings, task: Task, space: Mapping[str, Any], seed: int, epochs: int, workers: int
) -> SearchHistory:
    """Run an earlier study, and then one that learns from it; return the history of the second.

    Parameters
    ----------
    space
        Choices of the earlier study that replace those of the table.
    epochs
        Limit of each of the two studies.
    """
    choices = {name: {"choices": values} for name, values in trainings.choices.items()}
    searched = {**choices, "dropout": 0.0, **space}
    first = _study(trainings, {"name": "earlier", "space": searched}, seed + EARLIER_SEED, epochs)
    second = _study(trainings, {"learn_from": [first.name]}, seed, epochs)
    with _new_database() as database:
        _replay_study(database, trainings, task, first, workers)
        return _replay_study(database, trainings, task, second, workers)


@contextmanager
def _new_database() -> Iterator[Database]:
    with (
        tempfile.TemporaryDirectory(dir=_memory()) as home,
        open_database(home_settings(Path(home))) as database,
    ):
        yield database


def _replay_study(
    database: Database,
    trainings: Trainings,
    task: Task,
    config: StudyConfig,
    workers: int,
    history: SearchHistory | None = None,
) -> SearchHistory:
    clock, history = VirtualClock(), history or SearchHistory(trainings)
    budget = Budget(
        trials=trial_limit(config),
        epochs=config.limits.epochs,
        until_no_gain=config.limits.until_no_gain,
    )
    earlier = [copy_of(config, open_study(database, name)) for name in config.learn_from or ()]
    study = create_study(database, config.name, dump_config(config), budget, earlier=earlier)
    clock.run(
        [
            _Replaying(
                database,
                study,
                config,
                task,
                SilentWatcher(),
                _VirtualStop(clock),
                start_relay=lambda study: None,
                name=f"virtual-{n}",
            ).replaying(clock, history)
            for n in range(workers)
        ]
    )
    return history


def _memory() -> str | None:
    """A file system in memory, if there is one, because disk access would dominate the time of a replay."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def replay_optuna(
    trainings: Trainings,
    sampler: BaseSampler,
    pruner: BasePruner | None,
    epochs: int,
    workers: int,
    history: SearchHistory | None = None,
    objectives: Literal[1, 2] = 1,
) -> SearchHistory:
    """Run plain Optuna, as its tutorials use it, until it has spent its epochs.

    Parameters
    ----------
    pruner
        Receives the validation MAE of every epoch; None: Optuna receives only the result.
    history
        The history to which the search is added; None: a new one.
    objectives
        1: the validation MAE; 2: the number of parameters too.
    """
    clock, found = VirtualClock(), history or SearchHistory(trainings)
    directions = [StudyDirection.MINIMIZE] * objectives
    study = optuna.create_study(sampler=sampler, pruner=pruner or NopPruner(), directions=directions)

    def work() -> None:
        while found.epochs < epochs:
            trial = study.ask()
            chosen = {
                name: values[trial.suggest_categorical(name, list(range(len(values))))]
                for name, values in trainings.choices.items()
            }
            row = trainings.find(cell := Cell(**chosen), trial.number)
            for epoch, mae in enumerate(row.val_mae, start=1):
                clock.sleep(row.seconds or 1.0)
                best = min(row.val_mae[:epoch])
                found.report(cell, trial.number, epoch, best, clock.now)
                if pruner is not None:
                    trial.report(mae, epoch)
                    if trial.should_prune():
                        study.tell(trial, state=TrialState.PRUNED)
                        break
            else:
                if row.failure is None:
                    study.tell(trial, [row.error, trainings.parameters(cell)][:objectives])
                else:
                    found.failed(cell, trial.number)
                    study.tell(trial, state=TrialState.FAIL)

    clock.run([work] * workers)
    return found


def _study(trainings: Trainings, changes: Mapping[str, Any], seed: int, epochs: int) -> StudyConfig:
    space = {name: {"choices": values} for name, values in trainings.choices.items()}
    values = {"name": "replay", **STUDY, "space": space | {"dropout": 0.0}, "seed": seed, **changes}
    values["training"] = {k: v for k, v in STUDY["training"].items() if k != "dropout"}
    limits = {"epochs": epochs} | changes.get("limits", {})
    return study_from_values(values | {"limits": limits}, "replay")


class _VirtualStop(StopRequest):
    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, seconds: float) -> None:
        self._clock.sleep(seconds)


class _Replaying(Worker):
    """A worker whose trainings are rows of the table."""

    def replaying(self, clock: VirtualClock, history: SearchHistory) -> Callable[[], object]:
        """Return the function that works on the study on this clock."""
        self._replay = partial(_replay, clock, history)
        return self.work

    def _work_in_thread(self) -> None:
        self._train_claims(self._replay)


def _replay(
    clock: VirtualClock,
    history: SearchHistory,
    config: TrainConfig,
    folder: Path,
    reporter: Reporter,
    *,
    rungs: Sequence[int],
    **_: Any,
) -> TrainingResult:
    """Stand-in for :func:`trainer.run.run_training` that reads the table."""
    row = history.trainings.find(config, config.seed)
    trial = int(folder.parent.name)
    done = history.trained.get(trial, 0)  # above 0 if a paused trial is resumed
    records = [_record(n, mae, clock.now) for n, mae in enumerate(row.val_mae[:done], 1)]
    pruned = False
    for rung in (*(step for step in rungs if step > done), EPOCHS):
        new = row.val_mae[len(records) : rung]
        for epoch, mae in enumerate(new, len(records) + 1):
            clock.sleep(row.seconds or 1.0)
            records.append(_record(epoch, mae, clock.now))
            best = min(row.val_mae[:epoch])
            history.report(config, trial, epoch, best, clock.now)
        if len(records) < rung:
            history.failed(config, trial)
            raise TrainingFailed(row.failure)
        reported = tuple(records[-len(new) :])
        if rung == EPOCHS:
            reporter.records(reported)
        elif pruned := reporter.rung(rung, best, reported):
            break
    best_epoch = min(range(len(records)), key=lambda n: records[n].val_mae) + 1
    outcome: Outcome = "pruned" if pruned else "finished"
    metrics = {
        "parameters": history.trainings.parameters(config),
        f"val/{MAE}": best,
        f"val/{RMSE}": RMSE_OF_MAE * best,
    }
    return TrainingResult(outcome, best, best_epoch, len(records), metrics, tuple(records), ())


def _record(epoch: int, mae: float, now: float) -> EpochRecord:
    return EpochRecord(epoch, epoch, mae, mae, {MAE: mae}, 1e-3, 1.0, now)
