"""Run a study in this process, and add up the time that it spends on its tracker.

    python -m benchmarks.tracker_time ours STUDY.yaml FOLDER
    python -m benchmarks.tracker_time naive STUDY.yaml FOLDER

The result is ``FOLDER/tracker.json``. For both, the MLflow database is created before the clock starts.
"""

from __future__ import annotations

import functools
import json
import runpy
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import yaml

NAIVE: Final = Path(__file__).resolve().parent.parent / "examples" / "naive_glue.py"

RESULT: Final = "tracker.json"

#: The functions of ``mlflow`` that the naive program calls.
MLFLOW_CALLS: Final = (
    "set_tracking_uri",
    "get_experiment_by_name",
    "create_experiment",
    "start_run",
    "end_run",
    "log_params",
    "log_metric",
    "log_artifact",
)

#: The functions that our worker calls to record a trial.
RECORD_CALLS: Final = ("record_config", "record_metrics", "rung", "record_artifacts", "finish")


@dataclass(frozen=True)
class TrackerTime:
    """Durations within a study, s.

    Attributes
    ----------
    training : time from the start of the first trial to the end of the last
    recording : part of it, in which the training waited for numbers and files to be recorded
    tracking : all work to bring them into MLflow, whether or not a training waited for it
    """

    training: float
    recording: float
    tracking: float


class Stopwatch:
    """Adds up the time inside of some functions; nested calls count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._running = False

    def watch(self, owner: Any, names: tuple[str, ...]) -> None:
        """Replace functions of a module or class by timed ones."""
        for name in names:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._running:
                return function(*args, **kwargs)
            self._running, started = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._running = False
                self.seconds += time.perf_counter() - started

        return timed


def run_naive(study: Path, folder: Path) -> TrackerTime:
    """Train the rows with ``examples/naive_glue.py``, whose training waits for each call of MLflow."""
    import mlflow
    import optuna
    from mlflow.tracking import fluent

    _make_mlflow_database(folder)
    stopwatch = Stopwatch()
    stopwatch.watch(mlflow, MLFLOW_CALLS)
    # A run that ends with its block calls end_run by the module's own name.
    stopwatch.watch(fluent, ("end_run",))
    epochs = yaml.safe_load(study.read_text())["training"]["epochs"]
    options = {"configurations": study, "epochs": epochs, "folder": folder, "device": "cpu"}
    sys.argv = [str(NAIVE), *(f"--{name}={value}" for name, value in options.items())]
    runpy.run_path(str(NAIVE), run_name="__main__")
    trials = optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'optuna.db'}").trials
    begins = [trial.datetime_start for trial in trials if trial.datetime_start is not None]
    ends = [trial.datetime_complete for trial in trials if trial.datetime_complete is not None]
    training = (max(ends) - min(begins)).total_seconds()
    return TrackerTime(training, stopwatch.seconds, stopwatch.seconds)


def run_ours(file: Path, folder: Path) -> TrackerTime:
    """Train the rows with our worker, and run the relay afterwards, so that both can be timed separately."""
    from search.cli.progress import watch
    from search.cli.relay import note_writer
    from search.study import load_study
    from search.work.stopping import StopRequest
    from search.work.worker import Worker
    from storage.database import open_database
    from storage.studies import Budget, create_study
    from storage.tracking.process import sync
    from storage.trials.attempts import Attempt
    from trainer.config import dump_config
    from trainer.progress import no_progress
    from trainer.task import prepare_task

    _make_mlflow_database(folder)
    config = load_study(file)
    stopwatch = Stopwatch()
    stopwatch.watch(Attempt, RECORD_CALLS)
    with open_database(home_settings(folder)) as database:
        study = create_study(
            database, config.name, dump_config(config), Budget(trials=len(config.rows or ()))
        )
        features = database.settings.features
        task = prepare_task(config.task, features, no_progress)
        study.set_facts(task.fingerprints)
        started = time.perf_counter()
        with watch() as watcher:
            Worker(database, study, config, task, watcher, StopRequest(), lambda _: None).work()
        training = time.perf_counter() - started
        started = time.perf_counter()
        sync(study, note_writer(study))
        delivery = time.perf_counter() - started
    return TrackerTime(training, stopwatch.seconds, stopwatch.seconds + delivery)


def home_settings(folder: Path) -> Any:
    """Settings for embedded databases in a home folder of their own."""
    from storage.settings import Settings

    return Settings(
        home=folder,
        storage_url=f"sqlite:///{folder / 'anitune.db'}",
        tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
    )


def _make_mlflow_database(folder: Path) -> None:
    from mlflow import MlflowClient

    folder.mkdir(parents=True, exist_ok=True)
    MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()


def main() -> None:
    """Run the command line."""
    side, study, folder = sys.argv[1], Path(sys.argv[2]).absolute(), Path(sys.argv[3]).absolute()
    result = {"ours": run_ours, "naive": run_naive}[side](study, folder)
    (folder / RESULT).write_text(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
