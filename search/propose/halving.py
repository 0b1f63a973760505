"""Asynchronous successive halving (ASHA): which trials continue at a rung, and which paused one is promoted.

L. Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from search.study import PrunerConfig
from storage.trials.paused import RungResult


def goes_on(pruner: PrunerConfig, results: Sequence[RungResult], number: int, step: int) -> bool:
    """Whether a trial that has just reached a rung continues at once.

    With ``stop`` a trial that ends at a rung is lost, so the first trials at a rung continue until there are
    enough to compare. A paused trial is not lost.
    """
    at_rung = [result for result in results if result.step == step]
    if pruner.stop and len(at_rung) < pruner.reduction_factor:
        return True
    return any(result.number == number for result in _best(pruner, at_rung))


def promoted(pruner: PrunerConfig, results: Sequence[RungResult], may_begin: bool) -> int | None:
    """Return the number of the paused trial to resume, or None.

    It is the best paused trial of the latest rung that has a paused trial among its best. Once no new trial
    may begin, at least the best ``finish`` trials of each rung continue, so that the study ends with as many
    fully trained trials to choose from.
    """
    at_least = 0 if may_begin else pruner.finish
    for step in sorted({result.step for result in results}, reverse=True):
        at_rung = [result for result in results if result.step == step]
        for result in _best(pruner, at_rung, at_least):
            if result.paused:
                return result.number
    return None


def _best(pruner: PrunerConfig, at_rung: Sequence[RungResult], at_least: int = 0) -> list[RungResult]:
    ranked = sorted(at_rung, key=lambda result: (result.value, result.number))
    return ranked[: max(len(ranked) // pruner.reduction_factor, at_least)]
