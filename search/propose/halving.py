"""Asynchronous successive halving (ASHA): who goes on at a rung, and which paused trial is promoted.

L. Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from search.study import PrunerConfig
from storage.trials.paused import RungResult


def goes_on(pruner: PrunerConfig, results: Sequence[RungResult], number: int, step: int) -> bool:
    """Whether the trial of this number, which has just reached a rung, is trained further at once.

    A trial that is stopped there is lost, so the first ones that reach a rung go on until there are enough
    to compare. A trial that is paused is not lost.
    """
    at_rung = [result for result in results if result.step == step]
    if pruner.stop and len(at_rung) < pruner.reduction_factor:
        return True
    return any(result.number == number for result in _best(pruner, at_rung))


def promoted(pruner: PrunerConfig, results: Sequence[RungResult], may_begin: bool) -> int | None:
    """Number of the paused trial to resume: the best one of the latest rung that has one among its best.

    Once no new trial may begin, at least the best trial of each rung goes on, so the study ends with a trial
    that was trained in full.
    """
    for step in sorted({result.step for result in results}, reverse=True):
        at_rung = [result for result in results if result.step == step]
        for result in _best(pruner, at_rung, at_least=int(not may_begin)):
            if result.paused:
                return result.number
    return None


def _best(pruner: PrunerConfig, at_rung: Sequence[RungResult], at_least: int = 0) -> list[RungResult]:
    ranked = sorted(at_rung, key=lambda result: (result.value, result.number))
    return ranked[: max(len(ranked) // pruner.reduction_factor, at_least)]
