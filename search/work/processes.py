"""A process for each concurrent trial of a worker on the CPU.

Trainings in threads of one process slow each other down: between two operations of torch, which take some ten
microseconds for small networks, only one thread at a time may run Python. A training sends its reports
through a pipe, so that only the worker writes records.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Self

from search.work.forkserver import forkserver_context, main_hidden
from storage.settings import attempt_log
from trainer.config import TaskConfig, TrainConfig
from trainer.errors import TrainerError, TrainingCutOff
from trainer.progress import Progress, no_progress
from trainer.reporting import EpochRecord, Reporter
from trainer.run import TrainingResult, run_training
from trainer.task import prepare_task

#: How long the worker's thread waits in one call, s. An interrupt reaches it only between two calls.
WAIT: Final = 0.2

#: Option of prctl(2) that sets the signal that a process gets when the thread that started it ends.
PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True)
class _Order:
    """A request to train."""

    config: TrainConfig
    folder: Path
    rungs: tuple[int, ...]
    warm_start: Path | None


@dataclass(frozen=True)
class _Rung:
    epoch: int
    best_val_mae: float
    records: tuple[EpochRecord, ...]


@dataclass(frozen=True)
class _Records:
    records: tuple[EpochRecord, ...]


@dataclass(frozen=True)
class _ShouldStop:
    pass


@dataclass(frozen=True)
class _Progress:
    stage: str
    done: int
    total: int


class TrainingProcess:
    """A process that runs one training after the other. It is started with the first training.

    Parameters
    ----------
    task : settings of the data and features that all trainings share
    cache : folder of the stored features
    """

    def __init__(self, task: TaskConfig, cache: Path) -> None:
        self._task = task
        self._cache = cache
        self._running: tuple[Any, Connection] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Kill the process."""
        if self._running is not None:
            process, connection = self._running
            self._running = None
            process.kill()
            process.join()
            connection.close()

    def train(
        self,
        config: TrainConfig,
        folder: Path,
        reporter: Reporter,
        *,
        rungs: tuple[int, ...],
        warm_start: Path | None,
        progress: Progress,
    ) -> TrainingResult:
        """Run :func:`trainer.run.run_training` in the process, with the same parameters and errors.

        Raises
        ------
        TrainingCutOff
            also if the process ends by itself, for example because the system runs out of memory.
        """
        try:
            process, connection = self._running or self._start()
            connection.send(_Order(config, folder, rungs, warm_start))
            while True:
                while not connection.poll(WAIT):
                    pass
                message = connection.recv()
                if isinstance(message, TrainingResult):
                    return message
                if isinstance(message, Exception):
                    raise message
                connection.send(_answer(message, reporter, progress))
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            process.join()
            code = process.exitcode
            self.end()
            raise TrainingCutOff(
                f"the process of the training ended unexpectedly ({_ending(code)}); is there enough memory?"
            ) from error
        except TrainerError:
            raise
        except BaseException:
            # Whatever went wrong in the worker, the training in the process must not continue.
            self.end()
            raise

    def _start(self) -> tuple[Any, Connection]:
        context = forkserver_context()
        connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._task, self._cache))
        with main_hidden():
            process.start()
        theirs.close()
        self._running = process, connection
        return self._running


def _answer(message: object, reporter: Reporter, progress: Progress) -> bool | None:
    match message:
        case _Rung(epoch, best_val_mae, records):
            return reporter.rung(epoch, best_val_mae, records)
        case _Records(records):
            reporter.records(records)
        case _ShouldStop():
            return reporter.should_stop()
        case _Progress(stage, done, total):
            progress(stage, done, total)
    return None


def _ending(code: int | None) -> str:
    return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"


class _PipeReporter:
    """A reporter that sends each call to the worker through a pipe, and waits for the answer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def _ask(self, message: object) -> Any:
        self._connection.send(message)
        return self._connection.recv()

    def rung(self, epoch: int, best_val_mae: float, records: tuple[EpochRecord, ...]) -> bool:
        return bool(self._ask(_Rung(epoch, best_val_mae, records)))

    def records(self, records: tuple[EpochRecord, ...]) -> None:
        self._ask(_Records(records))

    def should_stop(self) -> bool:
        return bool(self._ask(_ShouldStop()))

    def progress(self, stage: str, done: int, total: int) -> None:
        self._ask(_Progress(stage, done, total))


def _serve(connection: Connection, task: TaskConfig, cache: Path) -> None:
    """Run trainings until the worker closes the pipe."""
    _end_with_worker()
    # A terminal sends its signals to all processes; only the worker handles them.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    reporter = _PipeReporter(connection)
    prepared = None
    while True:
        try:
            order = connection.recv()
        except EOFError:
            return
        try:
            _speak_into(attempt_log(order.folder))
            prepared = prepared or prepare_task(task, cache, no_progress)
            end: TrainingResult | Exception = run_training(
                prepared,
                order.config,
                order.folder,
                reporter,
                rungs=order.rungs,
                warm_start=order.warm_start,
                progress=reporter.progress,
            )
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:
            end = error
        connection.send(end)


def _speak_into(log: Path) -> None:
    """Redirect the output of this process and its libraries to the log of the attempt."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def _end_with_worker() -> None:
    """Make the system kill this process when the worker dies, as another worker will take over its trials.

    The parent of this process is the fork server, which ends with the worker.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    worker = parent_process()
    if worker is None or not worker.is_alive():
        sys.exit()
