from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from search.work.processes import TrainingProcess
from trainer.config import TrainConfig
from trainer.errors import ConfigError, TrainingFailed
from trainer.progress import no_progress
from trainer.reporting import EpochRecord, SilentReporter
from trainer.run import TrainingResult, run_training
from trainer.task import Task

CONFIG = TrainConfig(hidden=(8,), batch_size=32, epochs=4, device="cpu", dropout=0.1)

#: Trains for ever; says the id of the training's process at the first epoch.
WORKER = """
import json, multiprocessing, sys
from pathlib import Path
from search.work.processes import TrainingProcess
from trainer.config import DataConfig, TaskConfig, TrainConfig
from trainer.progress import no_progress
from trainer.reporting import SilentReporter

class Tells(SilentReporter):
    def should_stop(self):
        print(multiprocessing.active_children()[0].pid, flush=True)
        return False

if __name__ == "__main__":
    data, cache, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    with TrainingProcess(TaskConfig(DataConfig(files=(data,))), cache) as process:
        config = TrainConfig(hidden=(8,), epochs=10**6, device="cpu")
        process.train(config, folder, Tells(), rungs=(), warm_start=None, progress=no_progress)
"""


@pytest.fixture
def process(task: Task, feature_root: Path) -> Iterator[TrainingProcess]:
    with TrainingProcess(task.config, feature_root) as started:
        yield started


def train(
    process: TrainingProcess, config: TrainConfig, folder: Path, reporter: SilentReporter, *rungs: int
) -> TrainingResult:
    return process.train(config, folder, reporter, rungs=rungs, warm_start=None, progress=no_progress)


def numbers(result: TrainingResult) -> list[tuple[float, float]]:
    return [(record.train_loss, record.val_loss) for record in result.history]


class Recorder(SilentReporter):
    def __init__(self) -> None:
        self.told: list[EpochRecord] = []

    def records(self, records: tuple[EpochRecord, ...]) -> None:
        self.told += records


def test_trainings_are_those_of_this_process(task: Task, process: TrainingProcess, tmp_path: Path) -> None:
    for number, config in enumerate([CONFIG, replace(CONFIG, hidden=(5, 3), seed=1)]):
        here = run_training(task, config, tmp_path / f"here{number}", SilentReporter())
        recorder = Recorder()
        there = train(process, config, tmp_path / f"there{number}", recorder)
        assert numbers(there) == numbers(here)
        assert recorder.told == list(there.history)
        models = [
            (tmp_path / f"{where}{number}" / "model.safetensors").read_bytes() for where in ("here", "there")
        ]
        assert models[0] == models[1]


def test_a_training_is_pruned_by_the_worker(process: TrainingProcess, tmp_path: Path) -> None:
    class Prunes(SilentReporter):
        def rung(self, epoch: int, best_val_mae: float, records: tuple[EpochRecord, ...]) -> bool:
            assert best_val_mae == min(record.val_mae for record in records)
            return epoch == 2

    result = train(process, CONFIG, tmp_path, Prunes(), 1, 2)
    assert (result.outcome, result.epochs) == ("pruned", 2)


def test_errors_of_a_training_come_through(process: TrainingProcess, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="warm start from"):
        process.train(
            CONFIG, tmp_path, SilentReporter(), rungs=(), warm_start=tmp_path / "no", progress=no_progress
        )
    assert train(process, CONFIG, tmp_path, SilentReporter()).outcome == "finished"


def test_what_goes_wrong_in_the_worker_ends_the_training(process: TrainingProcess, tmp_path: Path) -> None:
    class Loses(SilentReporter):
        def should_stop(self) -> bool:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(process, CONFIG, tmp_path, Loses())
    # The next one has a new process, and goes on at the checkpoint if there is one.
    assert train(process, CONFIG, tmp_path, SilentReporter()).outcome == "finished"


def test_a_process_that_dies_fails_its_training(process: TrainingProcess, tmp_path: Path) -> None:
    class Kills(SilentReporter):
        def should_stop(self) -> bool:
            assert process._running is not None
            os.kill(process._running[0].pid, signal.SIGKILL)
            return False

    with pytest.raises(
        TrainingFailed, match=r"ended unexpectedly \(signal SIGKILL\); is there enough memory"
    ):
        train(process, CONFIG, tmp_path, Kills())
    assert train(process, CONFIG, tmp_path / "next", SilentReporter()).outcome == "finished"


@pytest.fixture
def worker(task: Task, feature_root: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, script, *task.config.data.files, feature_root, tmp_path / "trial"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def next_epoch(worker: subprocess.Popen[str]) -> int:
    """Wait for an epoch: the id of the process that trains."""
    assert worker.stdout is not None
    watchdog = threading.Timer(120, worker.kill)
    watchdog.start()
    line = worker.stdout.readline()
    watchdog.cancel()
    assert line, "the worker ended, or trained no epoch within 120 s"
    return int(line)


def test_a_training_does_not_outlive_its_worker(worker: subprocess.Popen[str]) -> None:
    training = next_epoch(worker)
    server = _parent(training)
    assert server != worker.pid
    worker.kill()
    deadline = time.monotonic() + 60
    while _is_running(training) or _is_running(server):
        assert time.monotonic() < deadline, "the training goes on without its worker"
        time.sleep(0.05)


def test_a_scheduler_that_terminates_all_processes_leaves_the_worker_to_decide(
    worker: subprocess.Popen[str],
) -> None:
    training = next_epoch(worker)
    for process in (_parent(training), training):
        os.kill(process, signal.SIGTERM)
    # The lines of two epochs may have been on their way.
    for _ in range(5):
        assert next_epoch(worker) == training
    assert _is_running(training)


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
