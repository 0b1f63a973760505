"""How good a configuration a search finds for how much training, beside its peers: ``make bench-search``.

All search the table of real trainings (:mod:`benchmarks.search_table`), with as many epochs and workers.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.pruners import HyperbandPruner, MedianPruner
from optuna.samplers import RandomSampler, TPESampler

from benchmarks.search_peers import SCHEDULERS, replay_syne_tune
from benchmarks.search_replay import Course, Trainings, replay_optuna, replay_ours
from benchmarks.search_table import EPOCHS, STUDY, TABLE, read_table
from trainer.config import DataConfig, FeatureConfig, SplitConfig
from trainer.progress import no_progress
from trainer.task import Task, prepare_task

SHARES: Final = (0.01, 0.02, 0.03, 0.05, 0.1)
"""Parts of what training the whole table costs, at which a search is judged."""

CLOSE: Final = 0.05
"""A search has arrived when its choice is within this of the table's best."""

OURS: Final[dict[str, dict[str, Any]]] = {
    "anitune": {},
    "anitune, asha": {"pruner": {"kind": "asha", "min_epochs": 3}},
    "anitune, no pruner": {"pruner": {"kind": "none"}},
}
"""Sections of the study file, over its defaults."""


@dataclass(frozen=True)
class Result:
    """What a search came to in the replays of all seeds.

    Attributes
    ----------
    regrets
        By a share of the table's cost: how far the choice was from the table's best, of each seed.
    arrived
        Epochs until the choice was, and stayed, within 5 % of the best, of each seed; infinite if never.
    among_best
        Share of seeds whose choice at 3 % of the cost is among the ten best of the table.
    """

    name: str
    workers: int
    regrets: dict[float, tuple[float, ...]]
    arrived: tuple[float, ...]
    among_best: float


def _optuna(sampler: Callable[..., Any], pruner: Callable[[], Any] | None) -> Callable[..., Course]:
    def search(trainings: Trainings, task: Task, seed: int, epochs: int, workers: int) -> Course:
        return replay_optuna(trainings, sampler(seed=seed), pruner() if pruner else None, epochs, workers)

    return search


def _hyperband() -> HyperbandPruner:
    return HyperbandPruner(min_resource=1, max_resource=EPOCHS, reduction_factor=3)


def searches() -> dict[str, Callable[..., Course]]:
    """All that are compared, by name: each is called with table, task, seed, epochs and number of workers."""

    def ours(
        changes: dict[str, Any], trainings: Trainings, task: Task, seed: int, epochs: int, workers: int
    ) -> Course:
        return replay_ours(trainings, task, changes, seed, epochs, workers)

    def syne_tune(
        name: str, trainings: Trainings, task: Task, seed: int, epochs: int, workers: int
    ) -> Course:
        return replay_syne_tune(trainings, name, seed, epochs, workers, first_rung=3)

    return {
        **{name: partial(ours, changes) for name, changes in OURS.items()},
        "random search": _optuna(RandomSampler, None),
        "Optuna": _optuna(TPESampler, None),
        "Optuna, median": _optuna(TPESampler, MedianPruner),
        "Optuna, Hyperband": _optuna(TPESampler, _hyperband),
        **{f"Syne Tune, {name}": partial(syne_tune, name) for name in SCHEDULERS},
    }


@cache
def _table(path: Path) -> Trainings:
    return Trainings(read_table(path))


@cache
def _task(features: Path) -> Task:
    data, split = DataConfig(), SplitConfig(**STUDY["split"])
    return prepare_task(data, split, FeatureConfig(), features, no_progress)


def replay(name: str, table: Path, features: Path, seed: int, workers: int) -> list[tuple[int, float, float]]:
    """The course of one search."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("anitune").setLevel(logging.ERROR)
    trainings = _table(table)
    epochs = math.ceil(SHARES[-1] * trainings.epochs)
    return searches()[name](trainings, _task(features), seed, epochs, workers).points


def judge(
    name: str, workers: int, courses: Sequence[list[tuple[int, float, float]]], table: Trainings
) -> Result:
    """What the courses of all seeds say of a search."""
    best = table.ranked()[0][0]
    tenth = table.ranked()[9][0]
    at = {share: [_taken(course, share * table.epochs) for course in courses] for share in SHARES}
    return Result(
        name,
        workers,
        {share: tuple(error / best - 1 for error in errors) for share, errors in at.items()},
        tuple(_arrived(course, best * (1 + CLOSE)) for course in courses),
        statistics.mean(error <= tenth for error in at[SHARES[2]]),
    )


def _taken(course: Sequence[tuple[int, float, float]], epochs: float) -> float:
    """Error of the configuration that a person would take after so many epochs."""
    return next((error for spent, _, error in reversed(course) if spent <= epochs), math.inf)


def _arrived(course: Sequence[tuple[int, float, float]], error: float) -> float:
    arrived = math.inf
    for spent, _, taken in reversed(course):
        if taken > error:
            break
        arrived = spent
    return arrived


def main() -> None:
    """Replay all searches, and print and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--only", nargs="+", help="names of searches")
    parser.add_argument("--json", type=Path, default=Path("build/search-quality.json"))
    parser.add_argument("--features", type=Path, default=Path("build/search-features"))
    arguments = parser.parse_args()
    table, results = _table(arguments.table), []
    _task(arguments.features)  # once, before the processes ask for it
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name in arguments.only or searches():
            for workers in arguments.workers:
                began = time.perf_counter()
                one = partial(replay, name, arguments.table, arguments.features, workers=workers)
                courses = list(pool.map(one, range(arguments.seeds)))
                results.append(judge(name, workers, courses, table))
                print(f"{_line(results[-1])}  ({time.perf_counter() - began:.0f} s)", flush=True)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    values = [
        asdict(each) | {"arrived": [n if n < math.inf else None for n in each.arrived]} for each in results
    ]
    arguments.json.write_text(json.dumps(values, indent=1) + "\n")


def _line(result: Result) -> str:
    regrets = " ".join(f"{statistics.median(values):7.1%}" for values in result.regrets.values())
    arrived = statistics.median(result.arrived)
    return (
        f"{result.name:22} {result.workers:2d} workers: regret {regrets};"
        f" within 5 % after {arrived:.0f} epochs; among the ten best {result.among_best:.0%}"
    )


if __name__ == "__main__":
    main()
