"""Proposals of trials, by the samplers of :mod:`search.methods`.

A new sampler is built for each proposal, seeded by the study's seed and the trial's number. So a worker that
restarts does not repeat its first proposals, concurrent workers propose different trials, and a study with
one worker is reproducible.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.methods import SAMPLERS
from search.propose.constraints import allowed_points, network_params, obeys, shrunk
from search.propose.earlier import NOTHING, EarlierTrials
from search.propose.history import ShownStudy, is_of_space
from search.propose.predicted import with_predicted_errors
from search.propose.rows import row_params
from search.propose.seeds import sampler_seed
from search.propose.space import distributions, finite_points, grid_points, is_finite, used_params
from search.study import StudyConfig
from trainer.errors import ConfigError

DRAWS = 10
"""How often a sampler may draw before the untried configuration nearest to the last draw is taken."""

DRAWS_WITHIN = 20
"""How often a sampler may draw networks that break a constraint before the last one is shrunk. It is shrunk
at once if the sampler draws the same network again, as gp does."""


class PointsSampler(BaseSampler):
    """Gives each trial the point with its number.

    Optuna's grid sampler would train a network once for each value of the widths that it does not use, and
    two workers could train the same point.
    """

    def __init__(self, points: Sequence[Mapping[str, Any]]) -> None:
        self.points = points

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.points[trial.number][param_name]


def make_sampler(config: StudyConfig, number: int) -> BaseSampler:
    """Make the sampler that proposes the trial of this number."""
    if config.rows is not None:
        return PointsSampler([row_params(config, row) for row in config.rows])
    assert config.sampler is not None
    make = SAMPLERS[config.sampler.kind].make
    if make is None:
        return PointsSampler(allowed_points(config, grid_points(config)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # qmc, since Optuna 3.0
        return make(config, sampler_seed(config.seed, number))


def trial_limit(config: StudyConfig) -> int | None:
    """Return the maximum number of trials, which grids and rows limit too; None: no limit."""
    if config.rows is not None:
        return len(config.rows)
    assert config.sampler is not None
    if not config.sampler.has_points:
        return config.limits.trials
    size = len(allowed_points(config, grid_points(config)))
    return size if config.limits.trials is None else min(size, config.limits.trials)


@dataclass(frozen=True)
class Proposal:
    """The parameters that a sampler chose for a trial.

    Attributes
    ----------
    params : parameters that the network uses, by name
    stored : all parameters, also those that the network does not use, as Optuna stores them: value and
        distribution (JSON) by name
    used_up : whether every point of the space was tried before
    learned_from : study and trial of a configuration of an earlier study, as text
    """

    params: dict[str, Any]
    stored: dict[str, tuple[float, str]]
    sampler_state: dict[str, Any]
    used_up: bool = False
    learned_from: str | None = None


def propose(
    storage: BaseStorage,
    config: StudyConfig,
    number: int,
    asked_for: Mapping[str, Any] | None = None,
    earlier: EarlierTrials = NOTHING,
) -> Proposal:
    """Choose the parameters of a trial that Optuna already counts as running, without writing them.

    The sampler sees the trials that :func:`search.propose.history.shown` selects, from all brackets; Optuna's
    hyperband would let it learn from one bracket only. A configuration that was tried is not proposed again
    while there is an untried one. In an infinite space a random draw repeats one only if it was tried first:
    an earlier study with the same seed drew it as well. No proposal breaks a constraint of the
    study: the sampler draws again, and if that does not help, the network is shrunk.

    Parameters
    ----------
    asked_for : enqueued parameters, which belong to the space of the study and can obey its constraints
    earlier : what the study learns from earlier ones

    Raises
    ------
    ConfigError
        if the study has a list of trials, and this number is beyond its end.
    """
    study_id = storage.get_study_id_from_name(config.name)
    trials = cache(lambda: storage.get_all_trials(study_id, deepcopy=False))  # read only where it is needed
    draw = _within_constraints(config, _drawing(storage, config, number, trials, earlier.trials))
    if not asked_for and (first := earlier.next_first(number, trials)) is not None:
        return dataclasses.replace(_proposal(draw(first.params)), learned_from=first.source)
    trial = draw(asked_for or {})
    if asked_for or config.repeats != "take" or _has_points(config):
        return _proposal(trial)
    if not is_finite(config) and not earlier.first:
        return _proposal(trial)
    space = distributions(config)
    tried = {
        _point(other.params) for other in trials() if other.number != number and is_of_space(other, space)
    }
    for _ in range(1, DRAWS):
        if _point(trial.params) not in tried:
            return _proposal(trial)
        trial = draw({})
    points = finite_points(config)
    if _point(trial.params) not in tried or points is None:
        return _proposal(trial)
    untried = [point for point in allowed_points(config, points) if _point(point) not in tried]
    if not untried:
        return dataclasses.replace(_proposal(trial), used_up=True)
    drawn = trial.params
    differing = [sum(drawn[name] != value for name, value in point.items()) for point in untried]
    least = min(differing)
    nearest = [point for point, n in zip(untried, differing, strict=True) if n == least]
    chosen = np.random.default_rng(sampler_seed(config.seed, number)).integers(len(nearest))
    return _proposal(draw(nearest[chosen]))


def _within_constraints(
    config: StudyConfig, draw: Callable[[Mapping[str, Any]], FrozenTrial]
) -> Callable[[Mapping[str, Any]], FrozenTrial]:
    """Return a function that draws as ``draw`` does, and only what obeys the constraints of the study."""

    def drawn(wanted: Mapping[str, Any]) -> FrozenTrial:
        trial, refused = draw(wanted), None
        for _ in range(DRAWS_WITHIN):
            if _has_points(config) or obeys(config, trial.params):
                return trial
            if (network := network_params(trial.params)) == refused:
                break
            trial, refused = draw(wanted), network
        return draw(shrunk(config, trial.params, wanted))

    return drawn


def repeated(trial: FrozenTrial) -> Proposal:
    """Propose the parameters of another trial again, for a training with another seed."""
    return _proposal(trial)


def _drawing(
    storage: BaseStorage,
    config: StudyConfig,
    number: int,
    trials: Callable[[], Sequence[FrozenTrial]],
    earlier: Sequence[FrozenTrial],
) -> Callable[[Mapping[str, Any]], FrozenTrial]:
    """Return a function that draws the parameters of a trial.

    Its argument fixes some parameters, and the sampler chooses the others. The trials of the study are
    prepared for the sampler only once, however often it draws.
    """
    sampler = make_sampler(config, number)
    points = sampler.points if isinstance(sampler, PointsSampler) else None
    if points is not None and number >= len(points):
        raise ConfigError(
            f"study {config.name!r} has {len(points)} trials, but trial {number} is not one of them:"
            " somebody has created trials in Optuna"
        )
    space = distributions(config)
    read = (lambda: with_predicted_errors(trials(), config.epochs)) if config.pauses else trials
    keeps = SAMPLERS[config.sampler.kind].keeps if config.sampler is not None else None
    study = ShownStudy(config.name, storage, sampler, number, space, read, keeps, earlier)
    new = create_trial(state=TrialState.RUNNING)
    new.number = len(earlier) + number  # as the study numbers it
    sampler.before_trial(study, new)
    joint_space = sampler.infer_relative_search_space(study, new)

    def draw(wanted: Mapping[str, Any]) -> FrozenTrial:
        trial = copy.deepcopy(new)
        joint = sampler.sample_relative(study, trial, joint_space)
        for name in points[number] if points is not None else space:
            distribution = space[name]
            if name in wanted:
                value = wanted[name]
            elif distribution.single():
                value = _only_value(distribution)
            elif name in joint:
                value = joint[name]
            else:
                value = sampler.sample_independent(study, trial, name, distribution)
            trial.params[name] = value
            trial.distributions[name] = distribution
        trial.system_attrs.update(study.sampler_state)
        return trial

    return draw


def _proposal(trial: FrozenTrial) -> Proposal:
    return Proposal(
        used_params(trial.params),
        {
            name: (distribution.to_internal_repr(trial.params[name]), distribution_to_json(distribution))
            for name, distribution in trial.distributions.items()
        },
        dict(trial.system_attrs),
    )


def _has_points(config: StudyConfig) -> bool:
    """Whether each trial has the point with its number, as rows and grids do."""
    return config.rows is not None or (config.sampler is not None and config.sampler.has_points)


def _point(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return the used parameters, rounded for comparison: Optuna steps to 0.30000000000000004, not 0.3."""
    values = {
        name: float(f"{value:.12g}") if isinstance(value, float) else value for name, value in params.items()
    }
    return tuple(sorted(used_params(values).items()))


def _only_value(distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return distribution.low
