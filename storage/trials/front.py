"""The Pareto front of trials, and its knee: one definition for the search, pages, notes and reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from storage.objectives import OBJECTIVES, objective_values
from storage.trials.views import TrialRow, complete_trials

T = TypeVar("T")


@dataclass(frozen=True)
class Front:
    """The complete trials of a study that no other beats in all its objectives.

    Attributes
    ----------
    trials
        The cheapest first.
    knee
        See :func:`knee`; None if no trial is complete.
    """

    trials: tuple[TrialRow, ...]
    knee: TrialRow | None

    def mark(self, trial: TrialRow) -> str:
        """What a trial is, for a column of a table: ``knee``, ``front``, or nothing."""
        if trial is self.knee:
            return "knee"
        return "front" if any(trial is each for each in self.trials) else ""


def front_of_several(trials: Iterable[TrialRow], objectives: Sequence[str]) -> Front | None:
    """The :func:`study_front`; None for a study of one objective, which has a best trial and no front."""
    return study_front(trials, objectives) if len(objectives) > 1 else None


def study_front(trials: Iterable[TrialRow], objectives: Sequence[str]) -> Front:
    """The Pareto front of the complete trials of a study in its objectives, with the knee."""

    def values(trial: TrialRow) -> tuple[float, ...]:
        assert trial.value is not None, "a complete trial has a result"
        return objective_values(objectives, trial.value, trial.summary)

    front = pareto_front(complete_trials(trials), values)
    best = knee([values(trial) for trial in front], [OBJECTIVES[name].log for name in objectives])
    return Front(tuple(front), front[best] if best is not None else None)


def pareto_front(candidates: Iterable[T], values: Callable[[T], Sequence[float]]) -> list[T]:
    """Those that no other candidate beats, the cheapest first.

    One is beaten by another that is nowhere worse. Of candidates with equal values only the first is kept.

    Parameters
    ----------
    values
        Values of a candidate, smaller is better: the error, then the costs.
    """
    front: list[tuple[Sequence[float], T]] = []
    known = [(values(candidate), candidate) for candidate in candidates]
    # In this order no candidate is beaten by a later one.
    for mine, candidate in sorted(known, key=lambda one: (*one[0][1:], one[0][0])):
        if not any(all(a <= b for a, b in zip(other, mine, strict=True)) for other, _ in front):
            front.append((mine, candidate))
    return [candidate for _, candidate in front]


def knee(front: Sequence[Sequence[float]], log: Sequence[bool]) -> int | None:
    """Index of the knee of a Pareto front: from there on, less error costs much, and less cost many errors.

    All objectives are scaled to [0, 1] over the front, those in ``log`` by their logarithms. The knee is the
    point with the largest distance, towards smaller values, from the line between the ends of the front; of
    more than two objectives, from the plane through (1, 0, ...), (0, 1, ...) and so on. It is the point with
    the smallest sum of the scaled objectives. Of equal ones the first in ``front`` with the least error is
    taken. I. Das, On characterizing the "knee" of the Pareto curve based on normal-boundary intersection,
    Struct. Optim. 18, 107 (1999).

    Returns
    -------
    None for an empty front.
    """
    if not front:
        return None
    columns = []
    for column, by_ratio in zip(zip(*front, strict=True), log, strict=True):
        scaled = [math.log(value) for value in column] if by_ratio else list(column)
        low, high = min(scaled), max(scaled)
        columns.append([(value - low) / (high - low) if high > low else 0.0 for value in scaled])
    sums = [round(math.fsum(point), 12) for point in zip(*columns, strict=True)]
    return min(range(len(front)), key=lambda index: (sums[index], front[index][0]))
