"""Of a long study, the trials that a sampler is shown: a proposal must not cost more the longer it lasts."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Container, Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import Any, cast

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from storage.trials.optuna_rows import PAUSED

SHOWN = 1_000
"""Trials that a sampler is shown at most, besides those that run."""

BEST = 100
"""Among them the best. TPE takes no more than 25 for its good ones, and is told the rest from any sample."""


class ShownStudy(Study):
    """A study as a sampler sees it when it proposes a trial.

    Trials that others have made of another space, in Optuna's tables, are none of it: of their parameters
    and its own, a sampler would look at what they have in common.
    """

    def __init__(
        self,
        name: str,
        storage: BaseStorage,
        sampler: BaseSampler,
        number: int,
        space: Mapping[str, BaseDistribution],
        read_trials: Callable[[], Sequence[FrozenTrial]],
    ) -> None:
        super().__init__(study_name=name, storage=storage, sampler=sampler)
        self._storage = cast(BaseStorage, _Unmarked(storage))
        self._number = number
        self._space = space
        self._read_trials = read_trials

    @cached_property
    def _shown(self) -> Sequence[FrozenTrial]:
        known = shown([_paused_as_pruned(trial) for trial in self._read_trials()], self._number)
        return [
            trial
            for trial in known
            if is_of_space(trial, self._space) or not (trial.distributions or trial.state.is_finished())
        ]

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        # What Optuna's samplers read the trials by.
        return [trial for trial in self._shown if states is None or trial.state in states]


def is_of_space(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> bool:
    """Whether a trial has parameters, and all of them are of this space."""
    return bool(trial.distributions) and all(
        space.get(name) == known for name, known in trial.distributions.items()
    )


def _paused_as_pruned(trial: FrozenTrial) -> FrozenTrial:
    """A paused trial, which Optuna has as running, tells a sampler as much as a pruned one."""
    if trial.state != TrialState.RUNNING or PAUSED not in trial.user_attrs:
        return trial
    paused = copy(trial)
    paused.state = TrialState.PRUNED
    return paused


class _Unmarked:
    """A storage in which TPE does not note down what it drew: parameters are recorded all at once."""

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        pass


def shown(trials: Sequence[FrozenTrial], number: int) -> Sequence[FrozenTrial]:
    """The trials to propose the trial of this number from, in their order.

    All, as long as no more than :data:`SHOWN` have ended. Then those that run, the best, and a random choice
    of the others: another one for each proposal, the same if it is repeated.
    """
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    if len(ended) <= SHOWN:
        return trials
    kept = {trial.number for trial in heapq.nsmallest(BEST, ended, key=_rank)}
    others = [trial.number for trial in ended if trial.number not in kept]
    kept.update(np.random.default_rng(number).choice(others, SHOWN - BEST, replace=False).tolist())
    return [trial for trial in trials if trial.number in kept or not trial.state.is_finished()]


def _rank(trial: FrozenTrial) -> tuple[bool, int, float]:
    """Smaller is better, as TPE sorts them: complete trials first, then those that were pruned late."""
    if trial.state == TrialState.COMPLETE:
        return (False, 0, trial.value if trial.value is not None else math.inf)
    if not trial.intermediate_values:
        return (True, 1, math.inf)
    step, value = max(trial.intermediate_values.items())
    return (True, -step, value if not math.isnan(value) else math.inf)
