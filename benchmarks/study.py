"""A whole study: ``anitune`` against ``examples/naive_glue.py`` on the same list of configurations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.figures import Figure, Goal, Samples, cost_ratio, plain
from benchmarks.plan import BenchmarkPlan
from benchmarks.tracker_time import RESULT, TrackerTime, home_settings

TOPIC: Final = "study"

QUICKSTART: Final = Path(__file__).resolve().parent.parent / "examples" / "quickstart.yaml"

NAME: Final = "benchmark"

STUDY_GOAL: Final = Goal("at least", 10)
TRACKER_GOAL: Final = Goal("at least", 8)
SHARE_GOAL: Final = Goal("below", 5)  # %

#: Seed of the configurations that are drawn from the quickstart's space.
SEED: Final = 1


@dataclass(frozen=True)
class StudyTimes:
    """Durations of a study run from the command line, s.

    Attributes
    ----------
    whole : duration of the program
    trials : time from the start of the first trial to the end of the last
    end : time from then to the end of the program
    """

    whole: float
    trials: float
    end: float

    @property
    def start(self) -> float:
        """Time from the start of the program to that of the first trial."""
        return self.whole - self.trials - self.end


def measure(plan: BenchmarkPlan, folder: Path) -> list[Figure]:
    """Run both programs, and ours once more with its tracker timed separately."""
    # Our relay ends by itself, some time after the study.
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as place:
        file = Path(place) / "study.yaml"
        file.write_text(yaml.safe_dump(study_of_rows(plan.study_trials, plan.study_epochs), sort_keys=False))
        ours = run_ours(file, Path(place) / "ours")
        _, apart = run_timed("ours", file, Path(place) / "apart")
        whole, naive = run_timed("naive", file, Path(place) / "naive")
    size = f"{plan.study_trials} trials of {plan.study_epochs} epochs"
    return [
        cost_ratio(
            TOPIC,
            f"whole study, {size}",
            Samples("s", (ours.whole,)),
            Samples("s", (whole,)),
            STUDY_GOAL,
            f"ours: {ours.start:.1f} s before the trials, {ours.end:.1f} s after them",
        ),
        cost_ratio(
            TOPIC,
            "its trials alone",
            Samples("s", (ours.trials,)),
            Samples("s", (naive.training,)),
            note="both with their own choice of threads and trials at once",
        ),
        cost_ratio(
            TOPIC,
            "time in the tracker",
            Samples("s", (apart.tracking,)),
            Samples("s", (naive.tracking,)),
            TRACKER_GOAL,
            "ours: records, and all work of the relay, for which no training waits",
        ),
        plain(
            TOPIC,
            "share of tracking in the time of our trials",
            "%",
            [100 * apart.recording / apart.training],
            SHARE_GOAL,
            f"trials of {apart.training / plan.study_trials:.1f} s",
        ),
        plain(
            TOPIC,
            "share of tracking in the time of the naive trials",
            "%",
            [100 * naive.recording / naive.training],
        ),
    ]


def study_of_rows(trials: int, epochs: int) -> dict[str, Any]:
    """A study file that lists configurations from the quickstart's space, drawn at random.

    Averaging of the weights is off, because the naive program does not have it.
    """
    import optuna

    from search.propose.space import distributions, train_config
    from search.study import load_study
    from trainer.config import dump_config

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    quickstart = load_study(QUICKSTART)
    space = distributions(quickstart)
    source = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=SEED))
    configs = [
        dump_config(train_config(quickstart, source.ask(space).params, number)) for number in range(trials)
    ]
    searched = ("hidden", "activation", "learning_rate", "batch_size", "weight_decay")
    shared = ("dropout", "optimizer", "schedule", "loss")
    return {
        "name": NAME,
        "data": {"files": list(quickstart.data.files)},
        "split": dump_config(quickstart.split),
        "training": {name: configs[0][name] for name in shared} | {"epochs": epochs, "device": "cpu"},
        "rows": [
            {"label": str(number), "training": {name: config[name] for name in searched}}
            for number, config in enumerate(configs)
        ],
    }


def run_study(file: Path, home: Path) -> None:
    """Run ``anitune study run`` as a person would."""
    command = [sys.executable, "-m", "search.cli.main", "study", "run", str(file)]
    _run(command, home_settings(home).environment())


def run_ours(file: Path, home: Path) -> StudyTimes:
    """Run a study of rows, and read its times from the records."""
    from storage.database import open_database
    from storage.studies import open_study
    from storage.trials.views import trial_rows

    settings = home_settings(home)
    started = time.time()
    run_study(file, home)
    ended = time.time()
    with open_database(settings) as database:
        rows = trial_rows(database, open_study(database, NAME))
    assert all(row.state == "complete" for row in rows), "rows are not pruned, and must not fail"
    begin, end = min(row.started for row in rows), max(row.ended or ended for row in rows)
    return StudyTimes(whole=ended - started, trials=end - begin, end=ended - end)


def run_timed(side: str, file: Path, folder: Path) -> tuple[float, TrackerTime]:
    """Run one program with a stopwatch in its tracker; return its duration (s) and the tracker's times."""
    started = time.perf_counter()
    _run([sys.executable, "-m", "benchmarks.tracker_time", side, str(file), str(folder)], {})
    seconds = time.perf_counter() - started
    return seconds, TrackerTime(**json.loads((folder / RESULT).read_text()))


def _run(command: list[str], environment: dict[str, str]) -> None:
    """Run a program, and raise an error with its output if it fails."""
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}")
