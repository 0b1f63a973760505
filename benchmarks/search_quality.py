"""Compare how good a configuration searches find for how much training: ``make bench-search``.

    python -m benchmarks.search_quality --help

All searches use the table of real trainings (:mod:`benchmarks.search_table`), with equal numbers of epochs
and workers. The histories of all replays are kept, so that they can be judged and drawn again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import operator
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.pruners import HyperbandPruner, MedianPruner
from optuna.samplers import RandomSampler, TPESampler

from benchmarks.figures import Goal
from benchmarks.machine import describe_machine
from benchmarks.report import markdown_table, put_part
from benchmarks.search_peers import SCHEDULERS, SYNE_TUNE, has_syne_tune, replay_syne_tune
from benchmarks.search_plot import draw_interactive, draw_static
from benchmarks.search_replay import (
    Point,
    SearchHistory,
    Trainings,
    replay_learning,
    replay_optuna,
    replay_ours,
    taken_after,
)
from benchmarks.search_table import EPOCHS, STUDY, TABLE, read_table
from trainer.config import DataConfig, SplitConfig, TaskConfig
from trainer.progress import no_progress
from trainer.task import Task, prepare_task

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"

SHARES: Final = (0.01, 0.02, 0.03, 0.04, 0.05)
"""Shares of the cost of training the whole table, at which searches are judged."""

GOAL_SHARE: Final = 0.03
"""Share at which the choice should be close to the table's best, and counts if among the ten best."""

CLOSE: Final = 0.05
"""A search has arrived when the error of its choice is within this fraction of the table's best."""

CHEAPER: Final = 1.5
"""How many times fewer epochs than its peers our search should need to arrive."""

OURS: Final[dict[str, dict[str, Any]]] = {
    "anitune": {},
    "anitune, stop": {"pruner": {"kind": "asha", "min_epochs": 3, "stop": True}},
    "anitune, no pruner": {"pruner": {"kind": "none"}},
}
"""Changes to the study file's defaults for each of our searches. The goals are for the first one."""

LEARNING: Final[dict[str, dict[str, Any]]] = {
    "anitune, learning from all": {},
    "anitune, learning from a part": {
        "learning_rate": {"choices": [0.004, 0.01]},
        "batch_size": {"choices": [64, 256]},
    },
}
"""Our searches that learn from an earlier study: the choices of the earlier one, where they are fewer."""

TO_THE_END: Final = "anitune, to the end"
"""Our search without a limit of its epochs: it ends when it has tried all configurations of the table."""

STOPPING: Final = "anitune, until no gain"
"""The same search, which ends also when nothing is left to gain."""

PLAIN_OPTUNA: Final = "Optuna"

Histories = dict[tuple[str, int], list[list[Point]]]
"""Histories of each seed, by name and number of workers of the search."""


@dataclass(frozen=True)
class Result:
    """Results of a search from the replays of all seeds.

    Attributes
    ----------
    regrets
        By share of the table's cost: for each seed, how far the choice was from the table's best.
    arrived
        For each seed, epochs until the choice stayed within 5 % of the best; infinite if it never did.
    among_best
        Share of seeds whose choice at 3 % of the cost is among the ten best of the table.
    """

    name: str
    workers: int
    regrets: dict[float, tuple[float, ...]]
    arrived: tuple[float, ...]
    among_best: float


@dataclass(frozen=True)
class Verdict:
    """A goal and its measurement.

    Attributes
    ----------
    measured
        The measurement as text.
    met
        None if the replays were too short to decide.
    """

    name: str
    goal: str
    measured: str
    met: bool | None


def _optuna(sampler: Callable[..., Any], pruner: Callable[[], Any] | None) -> Callable[..., SearchHistory]:
    def search(trainings: Trainings, task: Task, seed: int, epochs: int, workers: int) -> SearchHistory:
        return replay_optuna(trainings, sampler(seed=seed), pruner() if pruner else None, epochs, workers)

    return search


def _hyperband() -> HyperbandPruner:
    return HyperbandPruner(min_resource=1, max_resource=EPOCHS, reduction_factor=3)


def searches() -> dict[str, Callable[..., SearchHistory]]:
    """All compared searches by name; called with table, task, seed, epochs and number of workers."""

    def ours(
        changes: dict[str, Any], trainings: Trainings, task: Task, seed: int, epochs: int, workers: int
    ) -> SearchHistory:
        return replay_ours(trainings, task, changes, seed, epochs, workers)

    def learning(
        space: dict[str, Any], trainings: Trainings, task: Task, seed: int, epochs: int, workers: int
    ) -> SearchHistory:
        return replay_learning(trainings, task, space, seed, epochs, workers)

    def unlimited(
        changes: dict[str, Any], trainings: Trainings, task: Task, seed: int, epochs: int, workers: int
    ) -> SearchHistory:
        return replay_ours(trainings, task, changes, seed, trainings.epochs, workers)

    def syne_tune(
        name: str, trainings: Trainings, task: Task, seed: int, epochs: int, workers: int
    ) -> SearchHistory:
        return replay_syne_tune(trainings, name, seed, epochs, workers, first_rung=3)

    return {
        **{name: partial(ours, changes) for name, changes in OURS.items()},
        **{name: partial(learning, space) for name, space in LEARNING.items()},
        TO_THE_END: partial(unlimited, {}),
        STOPPING: partial(unlimited, {"limits": {"until_no_gain": True}}),
        "random search": _optuna(RandomSampler, None),
        PLAIN_OPTUNA: _optuna(TPESampler, None),
        "Optuna, median": _optuna(TPESampler, MedianPruner),
        "Optuna, Hyperband": _optuna(TPESampler, _hyperband),
        **{f"{SYNE_TUNE}{name}": partial(syne_tune, name) for name in SCHEDULERS},
    }


@cache
def table_of(path: Path) -> Trainings:
    """Read the trainings of a table once."""
    return Trainings(read_table(path))


@cache
def read_task(features: Path) -> Task:
    """Prepare the task of the table's study once."""
    data, split = DataConfig(), SplitConfig(**STUDY["split"])
    return prepare_task(TaskConfig(data, split), features, no_progress)


def limit(table: Trainings) -> int:
    """Epochs that each search may spend."""
    return math.ceil(SHARES[-1] * table.epochs)


def replay(name: str, table: Path, features: Path, seed: int, workers: int) -> list[Point]:
    """Run one search; return the points of its history at which the choice changed, and its last point."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("anitune").setLevel(logging.ERROR)
    trainings = table_of(table)
    history = searches()[name](trainings, read_task(features), seed, limit(trainings), workers)
    return [*history.changes, *history.points[-1:]]


def replay_all(
    chosen: Sequence[tuple[str, int]], seeds: int, table: Path, features: Path
) -> Iterator[tuple[tuple[str, int], list[list[Point]]]]:
    """Replay searches with all seeds on all cores; yield the histories of one search after the other.

    Parameters
    ----------
    chosen : names of searches, and numbers of workers
    """
    if not chosen:
        return
    read_task(features)  # computes the features once, before the processes need them
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the processes, which have a core each
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        jobs = {
            (name, count): [pool.submit(replay, name, table, features, n, count) for n in range(seeds)]
            for name, count in chosen
        }
        try:
            for search, replays in jobs.items():
                yield search, [each.result() for each in replays]
        finally:
            pool.shutdown(cancel_futures=True)


def judge(name: str, workers: int, histories: Sequence[Sequence[Point]], table: Trainings) -> Result:
    """Compute the results of a search from the histories of all seeds."""
    ranked = table.ranked()
    best, tenth = ranked[0][0], ranked[9][0]
    at = {share: [taken_after(history, share * table.epochs) for history in histories] for share in SHARES}
    # Some searches finish trials that have begun: what they find beyond the limit does not count.
    within = [[point for point in history if point[0] <= limit(table)] for history in histories]
    return Result(
        name,
        workers,
        {share: tuple(error / best - 1 for error in errors) for share, errors in at.items()},
        tuple(_arrived(history, best * (1 + CLOSE)) for history in within),
        statistics.mean(error <= tenth for error in at[GOAL_SHARE]),
    )


def judge_all(histories: Histories, table: Trainings) -> list[Result]:
    """Results of all searches, in their order."""
    return [judge(name, count, found, table) for (name, count), found in histories.items()]


def learning_table(results: Sequence[Result], epochs: int) -> list[str]:
    """A table of the epochs that our searches save by learning from an earlier study.

    Parameters
    ----------
    epochs : the cost of training the whole table
    """
    headings = ("search", "workers", f"epochs until within {CLOSE:.0%}", "saved", "seeds that arrived")
    rows = []
    for each in results:
        alone = next((r for r in results if (r.name, r.workers) == (next(iter(OURS)), each.workers)), None)
        if alone is None or (each is not alone and each.name not in LEARNING):
            continue
        needed, without = statistics.median(each.arrived), statistics.median(alone.arrived)
        known = max(needed, without) < math.inf
        rows.append(
            [
                each.name,
                str(each.workers),
                f"{needed:,.0f}" if needed < math.inf else "",
                f"{1 - needed / without:.0%}" if known and each is not alone else "",
                f"{sum(found < math.inf for found in each.arrived)} of {len(each.arrived)}",
            ]
        )
    return markdown_table(headings, rows)


def stopping_table(histories: Histories, table: Trainings) -> list[str]:
    """A table of how often our search ends for lack of gain, how often too early, and what that saves.

    It has ended too early if its choice is not within 5 % of the table's best. Savings are relative to the
    same seed without this limit.
    """
    headings = ("search", "workers", "seeds that ended early", "too early", "epochs spent", "saved")
    enough = table.ranked()[0][0] * (1 + CLOSE)
    rows = []
    for (name, workers), whole in histories.items():
        if name != TO_THE_END or (STOPPING, workers) not in histories:
            continue
        found = histories[STOPPING, workers]
        spent, without = ([history[-1][0] for history in each] for each in (found, whole))
        early = [
            history[-1][2] for history, ours, most in zip(found, spent, without, strict=True) if ours < most
        ]
        saved = 1 - statistics.median(map(operator.truediv, spent, without))
        rows += [
            [name, str(workers), "", "", _range(without), ""],
            [
                STOPPING,
                str(workers),
                f"{len(early)} of {len(found)}",
                f"{sum(taken > enough for taken in early)}",
                _range(spent),
                f"{saved:.0%}",
            ],
        ]
    return markdown_table(headings, rows)


def _range(epochs: Sequence[int]) -> str:
    return f"{statistics.median(epochs):,.0f} ({min(epochs):,} to {max(epochs):,})"


def _arrived(history: Sequence[Point], error: float) -> float:
    arrived = math.inf
    for spent, _, taken in reversed(history):
        if taken > error:
            break
        arrived = spent
    return arrived


def verdicts(results: Sequence[Result], limit: int) -> list[Verdict]:
    """Check the goals for each number of workers, as far as the searches that they compare were replayed.

    Parameters
    ----------
    limit
        Epochs that each search had: a lower bound of what a peer needs that has not arrived.
    """
    found = []
    for workers in sorted({each.workers for each in results}):
        among = {each.name: each for each in results if each.workers == workers}
        if (ours := among.get(next(iter(OURS)))) is None:
            continue
        found.append(_close(ours))
        peers = {name: each for name, each in among.items() if name.startswith(SYNE_TUNE)}
        best = min(peers.values(), key=lambda each: statistics.median(each.arrived), default=None)
        for peer in (among.get(PLAIN_OPTUNA), best):
            if peer is not None:
                found.append(_cheaper(ours, peer, limit))
    return found


def _close(ours: Result) -> Verdict:
    goal, regret = Goal("at most", CLOSE), statistics.median(ours.regrets[GOAL_SHARE])
    return Verdict(
        f"{_workers(ours.workers)}: median regret at {GOAL_SHARE:.0%} of the table's cost",
        f"{goal.kind} {goal.value:.0%}",
        _percent(regret),
        goal.reached(regret),
    )


def _cheaper(ours: Result, peer: Result, limit: int) -> Verdict:
    goal = Goal("at least", CHEAPER)
    our_epochs, its_epochs = (statistics.median(each.arrived) for each in (ours, peer))
    name = f"{_workers(ours.workers)}: epochs until within {CLOSE:.0%}, of {peer.name} over ours"
    if our_epochs == math.inf:
        return Verdict(name, f"{goal.kind} {goal.value:g}", "ours did not arrive", False)
    ratio = min(its_epochs, limit) / our_epochs
    met: bool | None = goal.reached(ratio)
    if its_epochs == math.inf:
        return Verdict(name, f"{goal.kind} {goal.value:g}", f"more than {ratio:.2f}", met or None)
    return Verdict(name, f"{goal.kind} {goal.value:g}", f"{ratio:.2f}", met)


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _percent(regret: float) -> str:
    return "nothing taken" if regret == math.inf else f"{regret:.1%}"


def goals_table(found: Sequence[Verdict]) -> list[str]:
    """A table of the goals and their measurements."""
    met = {True: "yes", False: "no", None: "undecided"}
    return markdown_table(
        ("", "goal", "measured", "met"),
        [(each.name, each.goal, each.measured, met[each.met]) for each in found],
    )


def figures_table(results: Sequence[Result], epochs: int) -> list[str]:
    """A table with the medians over the seeds for all searches.

    Parameters
    ----------
    epochs : the cost of training the whole table
    """
    headings = (
        "search",
        "workers",
        *(f"regret at {share:.0%}" for share in SHARES),
        f"epochs until within {CLOSE:.0%}",
        "of the table",
        "seeds that arrived",
        f"among the ten best at {GOAL_SHARE:.0%}",
    )
    return markdown_table(
        headings, [_row(each, epochs) for each in sorted(results, key=lambda each: each.workers)]
    )


def _row(result: Result, epochs: int) -> list[str]:
    arrived = statistics.median(result.arrived)
    return [
        result.name,
        str(result.workers),
        *(_percent(statistics.median(result.regrets[share])) for share in SHARES),
        *(("", "") if arrived == math.inf else (f"{arrived:,.0f}", f"{arrived / epochs:.1%}")),
        f"{sum(each < math.inf for each in result.arrived)} of {len(result.arrived)}",
        f"{result.among_best:.0%}",
    ]


def read_histories(path: Path, table: Trainings, seeds: int) -> Histories:
    """Read the histories of a file; empty if they belong to another table, other seeds or other versions."""
    if not path.exists():
        return {}
    values = json.loads(path.read_text())
    if (values["table"], values["seeds"], values["versions"]) != (table.digest, seeds, versions()):
        return {}
    return {
        (each["search"], each["workers"]): [
            [(spent, now, math.inf if error is None else error) for spent, now, error in history]
            for history in each["courses"]
        ]
        for each in values["searches"]
    }


def write_histories(path: Path, table: Trainings, seeds: int, histories: Histories) -> None:
    """Write all histories with their results. Infinite values become null."""
    results = judge_all(histories, table)
    searches = [
        {
            "search": each.name,
            "workers": each.workers,
            "regrets": {share: _finite(values) for share, values in each.regrets.items()},
            "arrived": _finite(each.arrived),
            "among_best": each.among_best,
            "courses": [
                [_finite(point) for point in history] for history in histories[each.name, each.workers]
            ],
        }
        for each in results
    ]
    values = {
        "table": table.digest,
        "seeds": seeds,
        "versions": versions(),
        "goals": [asdict(each) for each in verdicts(results, limit(table))],
        "searches": searches,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values) + "\n")


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if value < math.inf else None for value in values]


def versions() -> Mapping[str, str]:
    """Versions of the packages that the figures depend on."""
    found = describe_machine("cpu").versions
    chosen = {name: found[name] for name in ("python", "anitune", "optuna", "numpy") if name in found}
    return chosen | ({"syne-tune": version("syne-tune")} if has_syne_tune() else {})


def main() -> None:
    """Replay searches, and print, write and draw the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE, help="file of the table of real trainings")
    parser.add_argument("--seeds", type=int, default=30, help="replays of each search (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16], help="virtual workers")
    parser.add_argument(
        "--only", nargs="+", choices=list(searches()), metavar="SEARCH", help="replay only these"
    )
    parser.add_argument(
        "--redraw", action="store_true", help="replay nothing: judge and draw the histories of --json"
    )
    parser.add_argument(
        "--json", type=Path, default=Path("build/search-quality.json"), help="file of the histories"
    )
    parser.add_argument("--features", type=Path, default=Path("build/search-features"))
    parser.add_argument(
        "--write-docs", action="store_true", help="put tables and plots into docs/ and README.md"
    )
    arguments = parser.parse_args()
    if not arguments.table.exists():
        parser.error(f"{arguments.table} does not exist; create it with make search-table")
    table = table_of(arguments.table)
    histories = read_histories(arguments.json, table, arguments.seeds)
    if arguments.redraw and not histories:
        parser.error(f"{arguments.json} has no histories of this table with {arguments.seeds} seeds")
    # The peers depend only on the table, and some take long: they are replayed again only if they are named.
    chosen = [
        (name, count)
        for name in ([] if arguments.redraw else arguments.only or searches())
        for count in arguments.workers
        if arguments.only
        or name in (*OURS, *LEARNING, TO_THE_END, STOPPING)
        or (name, count) not in histories
    ]
    if not has_syne_tune() and any(name.startswith(SYNE_TUNE) for name, _ in chosen):
        parser.error(
            "Syne Tune is not installed: install it with make bench-search, or select others with --only"
        )
    began = time.perf_counter()
    for (name, count), found in replay_all(chosen, arguments.seeds, arguments.table, arguments.features):
        histories = _in_order({**histories, (name, count): found})
        write_histories(arguments.json, table, arguments.seeds, histories)
        result = judge(name, count, found, table)
        print(f"{time.perf_counter() - began:5.0f} s: {', '.join(_row(result, table.epochs))}", flush=True)

    results = judge_all(histories, table)
    goals = verdicts(results, limit(table))
    parts = _parts(histories, results, goals, table)
    for lines in parts.values():
        print("\n" + "\n".join(lines))
    best, drawn = table.ranked()[0][0], _drawn(histories)
    if drawn:
        draw_interactive(drawn, best, limit(table), arguments.json.with_suffix(".html"))
        draw_static(drawn, best, limit(table), arguments.json.with_suffix(".svg"))
    if arguments.write_docs:
        _write_docs(histories, table, arguments.seeds, parts)


def _in_order(histories: Histories) -> Histories:
    """Sort histories by the order of the searches, then by the number of workers."""
    names = list(searches())
    return dict(sorted(histories.items(), key=lambda each: (names.index(each[0][0]), each[0][1])))


def _drawn(histories: Histories) -> Histories:
    """The histories of searches without the help of an earlier study, and with equal budgets."""
    return {key: each for key, each in histories.items() if key[0] not in (*LEARNING, TO_THE_END, STOPPING)}


def _parts(
    histories: Histories, results: Sequence[Result], goals: Sequence[Verdict], table: Trainings
) -> dict[str, list[str]]:
    """The tables for which all searches were replayed, by the name of their part of the page."""
    names = {name for name, _ in histories}
    parts: dict[str, list[str]] = {}
    if PLAIN_OPTUNA in names:
        compared = [each for each in results if (each.name, each.workers) in _drawn(histories)]
        parts |= {"the goals": goals_table(goals), "the figures": figures_table(compared, table.epochs)}
    if names >= {next(iter(OURS)), *LEARNING}:
        parts["the learning"] = learning_table(results, table.epochs)
    if names >= {TO_THE_END, STOPPING}:
        parts["the stopping"] = stopping_table(histories, table)
    return parts


def _write_docs(histories: Histories, table: Trainings, seeds: int, parts: Mapping[str, list[str]]) -> None:
    words = ", ".join(f"{name} {number}" for name, number in versions().items())
    made = [
        f"A table of {table.count} configurations ({table.epochs:,} epochs in all), {seeds} seeds; {words}.",
        "",
    ]
    page = DOCS / "search-quality.md"
    for name, lines in parts.items():
        put_part(page, name, lines if name == "the figures" else [*made, *lines])
    if "the figures" not in parts:
        return
    best, drawn = table.ranked()[0][0], _drawn(histories)
    draw_interactive(drawn, best, limit(table), DOCS / "search-quality.html")
    draw_static(drawn, best, limit(table), DOCS / "images" / "search-quality.svg")
    picture = "![Median regret of all searches against the epochs that they have spent]"
    put_part(
        page,
        "the plot",
        [f"{picture}(images/search-quality.svg)", "", "[The same, interactive](search-quality.html)"],
    )
    put_part(DOCS.parent / "README.md", "the plot", [f"{picture}(docs/images/search-quality.svg)"])


if __name__ == "__main__":
    main()
