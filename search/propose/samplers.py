"""What a study proposes next. A new sampler is an entry of ``SAMPLERS`` and a kind of ``SamplerConfig``.

A sampler is built anew for each proposal, seeded by the study's seed and the trial's number: so a worker
that starts again does not repeat the proposals that it began with, workers side by side do not propose
the same, and a study with one worker can be repeated.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.propose.history import ShownStudy
from search.propose.rows import row_params
from search.propose.seeds import sampler_seed
from search.propose.space import distributions, grid_points, used_params
from search.study import StudyConfig
from trainer.errors import ConfigError

STARTUP_TRIALS = 10


class PointsSampler(BaseSampler):
    """Gives each trial the point of its number.

    Optuna's own grid would train a network once for each value of the widths that it does not have,
    and would leave it to chance whether two workers train the same point.
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


def _startup(config: StudyConfig) -> int:
    return (config.sampler.startup_trials if config.sampler else None) or STARTUP_TRIALS


SAMPLERS: dict[str, Callable[[StudyConfig, int], BaseSampler]] = {
    "tpe": lambda config, seed: TPESampler(n_startup_trials=_startup(config), seed=seed),
    "gp": lambda config, seed: GPSampler(
        n_startup_trials=_startup(config), seed=seed, warn_independent_sampling=False
    ),
    "random": lambda config, seed: RandomSampler(seed=seed),
    # One sequence for the whole study, of which each trial takes the next point.
    "qmc": lambda config, seed: QMCSampler(
        scramble=True,
        seed=config.seed,
        independent_sampler=RandomSampler(seed=seed),
        warn_independent_sampling=False,
    ),
    "grid": lambda config, seed: PointsSampler(grid_points(config)),
}


def make_sampler(config: StudyConfig, number: int) -> BaseSampler:
    """The sampler that proposes the trial of this number."""
    if config.rows is not None:
        return PointsSampler([row_params(config, row) for row in config.rows])
    assert config.sampler is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # qmc, since Optuna 3.0
        return SAMPLERS[config.sampler.kind](config, sampler_seed(config.seed, number))


def trial_limit(config: StudyConfig) -> int | None:
    """Trials that a study has at most; grids and rows end when they are used up."""
    if config.rows is not None:
        return len(config.rows)
    assert config.sampler is not None
    if config.sampler.kind != "grid":
        return config.limits.trials
    size = len(grid_points(config))
    return size if config.limits.trials is None else min(size, config.limits.trials)


@dataclass(frozen=True)
class Proposal:
    """What a sampler chose for a trial.

    Attributes
    ----------
    params : of the network that is trained, by name
    stored : all parameters as Optuna keeps them, those that the network has no use for too: value and
        distribution (JSON) by name
    """

    params: dict[str, Any]
    stored: dict[str, tuple[float, str]]


def propose(
    storage: BaseStorage, config: StudyConfig, number: int, asked_for: Mapping[str, Any] | None = None
) -> Proposal:
    """Choose the parameters of a trial that Optuna already counts as running; they are not written yet.

    The sampler is shown the trials that :func:`search.propose.history.shown` selects, of all brackets:
    Optuna's hyperband would let it learn from one of them only.

    Parameters
    ----------
    asked_for : parameters that a person wants, of the space of the study

    Raises
    ------
    ConfigError
        if the trials of the study are listed, and there is none of this number.
    """
    sampler = make_sampler(config, number)
    points = sampler.points if isinstance(sampler, PointsSampler) else None
    if points is not None and number >= len(points):
        raise ConfigError(
            f"study {config.name!r} has {len(points)} trials, and trial {number} is none of them: somebody"
            " has made some in Optuna"
        )
    space = distributions(config)
    study = ShownStudy(config.name, storage, sampler, number, space)
    trial = create_trial(state=TrialState.RUNNING)
    trial.number = number
    sampler.before_trial(study, trial)
    asked_for = asked_for or {}
    joint = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))
    for name in points[number] if points is not None else space:
        distribution = space[name]
        if name in asked_for:
            value = asked_for[name]
        elif distribution.single():
            value = _only_value(distribution)
        elif name in joint:
            value = joint[name]
        else:
            value = sampler.sample_independent(study, trial, name, distribution)
        trial.params[name] = value
        trial.distributions[name] = distribution
    return Proposal(
        used_params(trial.params),
        {
            name: (distribution.to_internal_repr(trial.params[name]), distribution_to_json(distribution))
            for name, distribution in trial.distributions.items()
        },
    )


def _only_value(distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return distribution.low
