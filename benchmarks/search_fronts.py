"""Compare how good a Pareto front searches find for how much training: ``make bench-fronts``.

    python -m benchmarks.search_fronts --help

The studies minimize validation MAE and number of parameters. They are replayed on the table of real trainings
as in :mod:`benchmarks.search_quality`, each trial in full, with equal numbers of epochs and one worker.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

from benchmarks.report import markdown_table, put_part
from benchmarks.search_quality import DOCS, read_task, table_of, versions
from benchmarks.search_replay import SearchHistory, Trainings, replay_optuna, replay_ours
from benchmarks.search_table import EPOCHS, TABLE, Cell, settings_of
from storage.trials.front import pareto_front
from trainer.task import Task

OBJECTIVES: Final = ("val_mae", "parameters")

SHARES: Final = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Shares of the cost of training the whole table, at which searches are judged. A generation of NSGA-II has
50 trials, so that it needs 0.3 of this table's cost before it learns anything."""

Volume = tuple[int, float]
"""Epochs of all trials together, and the hypervolume of the front after them."""


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area that points dominate: error in kcal/mol, parameters by their natural logarithm.

    Parameters
    ----------
    points
        Error and number of parameters.
    reference
        The corner of the area; points beyond it add nothing.
    """
    worst, most = reference
    volume, best = 0.0, worst
    for error, parameters in sorted(points, key=lambda point: (point[1], point[0])):
        if error < best and parameters < most:
            volume += (best - error) * (math.log(most) - math.log(parameters))
            best = error
    return volume


def reference_point(trainings: Trainings) -> tuple[float, float]:
    """The largest error of the table, and twice the largest number of parameters."""
    points = table_points(trainings)
    return max(error for error, _ in points if error < math.inf), 2 * max(count for _, count in points)


def table_points(trainings: Trainings) -> list[tuple[float, float]]:
    """Error (mean over seeds) and parameters of each configuration of the table."""
    return [(error, trainings.parameters(Cell(*settings))) for error, settings in trainings.ranked()]


@dataclass
class FrontHistory(SearchHistory):
    """History of a search: its front of complete trials as a function of the training spent.

    The front is that by the errors that the search has seen. Its hypervolume is of the errors as means over
    the seeds, so that a lucky seed does not count.

    Attributes
    ----------
    volumes
        One for each complete trial.
    """

    volumes: list[Volume] = field(default_factory=list)
    _seen: dict[Any, tuple[float, float]] = field(default_factory=dict)

    def report(self, settings: Any, trial: int, epochs: int, best: float, now: float) -> None:
        super().report(settings, trial, epochs, best, now)
        if epochs < EPOCHS:
            return
        key, count = settings_of(settings), self.trainings.parameters(settings)
        self._seen[key] = (min(best, self._seen.get(key, (math.inf, 0.0))[0]), count)
        front = pareto_front(self._seen, lambda one: self._seen[one])
        points = [(self.trainings.error(Cell(*one)), self._seen[one][1]) for one in front]
        self.volumes.append((self.epochs, hypervolume(points, reference_point(self.trainings))))


def volume_after(volumes: Sequence[Volume], epochs: float) -> float:
    """Hypervolume after this many epochs; 0 before the first complete trial."""
    return next((volume for spent, volume in reversed(volumes) if spent <= epochs), 0.0)


def _ours(
    changes: Mapping[str, Any], trainings: Trainings, task: Task, seed: int, epochs: int
) -> FrontHistory:
    history = FrontHistory(trainings)
    given = {"objectives": list(OBJECTIVES), "pruner": {"kind": "none"}, **changes}
    replay_ours(trainings, task, given, seed, epochs, workers=1, history=history)
    return history


def _optuna(
    sampler: Callable[..., Any], trainings: Trainings, task: Task, seed: int, epochs: int
) -> FrontHistory:
    history = FrontHistory(trainings)
    replay_optuna(trainings, sampler(seed=seed), None, epochs, workers=1, history=history, objectives=2)
    return history


SEARCHES: Final[Mapping[str, Callable[[Trainings, Task, int, int], FrontHistory]]] = {
    "anitune": partial(_ours, {}),
    "anitune, nsgaii": partial(_ours, {"sampler": {"kind": "nsgaii"}}),
    "Optuna, NSGA-II": partial(_optuna, NSGAIISampler),
    "Optuna, TPE": partial(_optuna, TPESampler),
    "random search": partial(_optuna, RandomSampler),
}
"""The compared searches; called with table, task, seed and epochs."""


def replay(name: str, table: Path, features: Path, seed: int) -> list[Volume]:
    """Run one search, and return the volumes of its history."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("anitune").setLevel(logging.ERROR)
    trainings = table_of(table)
    return SEARCHES[name](trainings, read_task(features), seed, _limit(trainings)).volumes


def _limit(trainings: Trainings) -> int:
    return math.ceil(SHARES[-1] * trainings.epochs)


def front_table(found: Mapping[str, Sequence[Sequence[Volume]]], trainings: Trainings) -> list[str]:
    """A table of medians over the seeds, as shares of the hypervolume of the table's own front."""
    whole = hypervolume(table_points(trainings), reference_point(trainings))
    rows = []
    for name, histories in found.items():
        shares = [
            [volume_after(volumes, share * trainings.epochs) / whole for volumes in histories]
            for share in SHARES
        ]
        rows.append([name, *(f"{statistics.median(each):.1%}" for each in shares), str(len(histories))])
    headings = ("search", *(f"after {share * trainings.epochs:,.0f} epochs" for share in SHARES), "seeds")
    return markdown_table(headings, rows)


def main() -> None:
    """Replay searches, and print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE, help="file of the table of real trainings")
    parser.add_argument("--seeds", type=int, default=30, help="replays of each search (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(SEARCHES), metavar="SEARCH")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: one for each core")
    parser.add_argument("--json", type=Path, default=Path("build/search-fronts.json"))
    parser.add_argument("--features", type=Path, default=Path("build/search-features"))
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/search-quality.md")
    arguments = parser.parse_args()
    trainings = table_of(arguments.table)
    read_task(arguments.features)  # computes the features once, before the processes need them
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the processes, which have a core each
    began, found = time.perf_counter(), {}
    with ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("spawn")) as pool:
        for name in arguments.only or SEARCHES:
            run = partial(replay, name, arguments.table, arguments.features)
            found[name] = list(pool.map(run, range(arguments.seeds)))
            print(f"{time.perf_counter() - began:5.0f} s: {name}", flush=True)
    lines = front_table(found, trainings)
    print("\n" + "\n".join(lines))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    values = {"versions": versions(), "seeds": arguments.seeds, "volumes": found}
    arguments.json.write_text(json.dumps(values) + "\n")
    if arguments.write_docs:
        words = ", ".join(f"{name} {number}" for name, number in versions().items())
        made = f"A table of {trainings.count} configurations ({trainings.epochs:,} epochs in all); {words}."
        put_part(DOCS / "search-quality.md", "the fronts", [made, "", *lines])


if __name__ == "__main__":
    main()
