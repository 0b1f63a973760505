"""The whole quickstart study, with its pruner, against the naive program on exactly the same trials."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks import study
from benchmarks.figures import Figure, Samples, cost_ratio
from benchmarks.plan import BenchmarkPlan
from benchmarks.tracker_time import home_settings
from storage.database import open_database
from storage.studies import open_study
from storage.trials.views import trial_rows

TOPIC: Final = "quickstart"


def measure(plan: BenchmarkPlan, folder: Path) -> list[Figure]:
    """Run our search, then train its trials, with the same epochs each, in the naive program."""
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as place:
        file, home, rows = (Path(place) / name for name in ("study.yaml", "home", "rows.yaml"))
        file.write_text(yaml.safe_dump(_without_reference(), sort_keys=False))
        started = time.perf_counter()
        study.run_study(file, home)
        seconds = time.perf_counter() - started
        rows.write_text(yaml.safe_dump(_rows_of_trials(home), sort_keys=False))
        _, apart = study.run_timed("ours", rows, Path(place) / "apart")
        whole, naive = study.run_timed("naive", rows, Path(place) / "naive")
    trained = yaml.safe_load(study.QUICKSTART.read_text())["limits"]["trials"]
    return [
        cost_ratio(
            TOPIC,
            f"the whole study, {trained} trials",
            Samples("s", (seconds,)),
            Samples("s", (whole,)),
            study.STUDY_GOAL,
            "the naive program is given each trial and its epochs: it neither samples nor prunes",
        ),
        cost_ratio(
            TOPIC,
            "time in the tracker",
            Samples("s", (apart.tracking,)),
            Samples("s", (naive.tracking,)),
            study.TRACKER_GOAL,
            "ours: records, and all work of the relay, for which no training waits",
        ),
    ]


def _without_reference() -> dict[str, Any]:
    """The quickstart without the reference rows."""
    values: dict[str, Any] = yaml.safe_load(study.QUICKSTART.read_text())
    del values["reference"]
    return values


def _rows_of_trials(home: Path) -> dict[str, Any]:
    """A study file that lists the trials of our study, each with the epochs that it was trained for."""
    values = _without_reference()
    with open_database(home_settings(home)) as database:
        trials = trial_rows(database, open_study(database, values["name"]))
    searched = ("hidden", "activation", "learning_rate", "batch_size", "weight_decay")
    rows = [
        {
            "label": str(trial.number),
            "training": {name: trial.config[name] for name in searched} | {"epochs": trial.epochs},
        }
        for trial in trials
        if trial.config is not None and trial.epochs
    ]
    shared = {"dropout": 0.0, "device": "cpu", **values["training"]}
    return {
        "name": "rows",
        "data": values["data"],
        "split": values["split"],
        "training": shared,
        "rows": rows,
    }
