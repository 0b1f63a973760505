"""A bounded selection of trials for the sampler, so that proposals do not get slower in a long study."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from search.errors import SearchError
from search.propose.earlier import joined
from storage.optuna_private import SamplerStudy, non_domination_ranks

SHOWN = 1_000
"""Maximum number of trials that a sampler sees, besides the running ones."""

BEST = 100
"""How many of the best trials the sampler always sees. TPE models at most 25 trials as good ones; for its
model of the others any sample is enough."""


class ShownStudy(SamplerStudy):
    """A study as a sampler sees it when it proposes a trial.

    Trials that other programs have added to Optuna's tables with another space are left out, because a
    sampler would restrict itself to the parameters that all trials have in common.

    Parameters
    ----------
    keeps : the attribute in which the sampler keeps its state. Such a sampler sees all trials
    earlier : trials of earlier studies, with normal scores
    """

    def __init__(
        self,
        name: str,
        storage: BaseStorage,
        sampler: BaseSampler,
        number: int,
        space: Mapping[str, BaseDistribution],
        read_trials: Callable[[], Sequence[FrozenTrial]],
        keeps: str | None = None,
        earlier: Sequence[FrozenTrial] = (),
    ) -> None:
        self._written = _Unmarked(storage, sampler, keeps)
        super().__init__(name, storage, sampler, written=self._written)
        self._keeps = keeps
        self._number = number
        self._space = space
        self._read_trials = read_trials
        self._earlier = earlier

    @cached_property
    def _shown(self) -> Sequence[FrozenTrial]:
        known = self._read_trials()
        if self._keeps is None:
            known = shown(known, self._number)
        of_space = [
            trial
            for trial in known
            if is_of_space(trial, self._space) or not (trial.distributions or trial.state.is_finished())
        ]
        return joined(self._earlier, of_space, _rank)

    def trials_for_samplers(self) -> Sequence[FrozenTrial]:
        """Return the trials from which the sampler proposes, those of earlier studies first."""
        return self._shown

    @property
    def sampler_state(self) -> Mapping[str, Any]:
        """The attributes of the new trial in which the sampler keeps its state, once it has proposed."""
        return self._written.kept


def is_of_space(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> bool:
    """Whether a trial has parameters, and all of them belong to this space."""
    return bool(trial.distributions) and all(
        space.get(name) == known for name, known in trial.distributions.items()
    )


class _Unmarked:
    """A storage in which a sampler cannot write attributes of a trial, except the one that keeps its state.

    Parameters are recorded all at once, so tpe and gp need no marks of what they drew together.
    """

    def __init__(self, storage: BaseStorage, sampler: BaseSampler, keeps: str | None) -> None:
        self.kept: dict[str, Any] = {}
        self._keeps = keeps
        self._storage = storage
        self._sampler = type(sampler).__name__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if key == self._keeps:
            self.kept[key] = value
        elif not key.startswith(("tpe:relative_params:", "gp:relative_params:")):
            raise SearchError(
                f"{self._sampler} keeps its state in the attribute {key!r} of a trial, which is not recorded:"
                " it would learn nothing"
            )


def shown(trials: Sequence[FrozenTrial], number: int) -> Sequence[FrozenTrial]:
    """Select the trials from which the trial of this number is proposed, in their order.

    These are all trials while at most :data:`SHOWN` have ended. After that they are the running trials, the
    best ones, and a random sample of the others that depends on the number alone.
    """
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    if len(ended) <= SHOWN:
        return trials
    kept = {trial.number for trial in heapq.nsmallest(BEST, ended, key=_rank_among(ended))}
    others = [trial.number for trial in ended if trial.number not in kept]
    kept.update(np.random.default_rng(number).choice(others, SHOWN - BEST, replace=False).tolist())
    return [trial for trial in trials if trial.number in kept or not trial.state.is_finished()]


def _rank_among(
    ended: Sequence[FrozenTrial],
) -> Callable[[FrozenTrial], tuple[bool, int, float]]:
    complete = [trial for trial in ended if trial.state == TrialState.COMPLETE]
    if not complete or len(complete[0].values) == 1:
        return _rank
    ranks = non_domination_ranks([trial.values for trial in complete])
    of_trial = {trial.number: rank for trial, rank in zip(complete, ranks, strict=True)}
    # Studies of several objectives have no pruner; all others can only have been ended by hand.
    return lambda trial: (trial.number not in of_trial, of_trial.get(trial.number, 0), 0.0)


def _rank(trial: FrozenTrial) -> tuple[bool, int, float]:
    """Rank as TPE does, smaller is better: complete trials first, then pruned ones, the latest first."""
    if trial.state == TrialState.COMPLETE:
        return (False, 0, trial.value if trial.value is not None else math.inf)
    if not trial.intermediate_values:
        return (True, 1, math.inf)
    step, value = max(trial.intermediate_values.items())
    return (True, -step, value if not math.isnan(value) else math.inf)
