"""What a study learns from earlier ones: configurations to try first, and trials for its sampler.

Errors of different studies are not comparable: their data may differ, and so may the length of their
trainings. So each study, also the one that learns, is converted to normal scores by itself: a trial that is
better than a share 1 - q of the trials of its study gets the value Phi^-1(q), where Phi is the cumulative
normal distribution. The sampler then sees all trials as trials of one study, the earlier ones as the older.
D. Salinas, H. Shen and V. Perrone, A Quantile-based Approach for Hyperparameter Transfer Learning, ICML 2020,
section 4.1. Trying the best configurations of earlier studies first: M. Feurer, J. T. Springenberg and
F. Hutter, Initializing Bayesian Hyperparameter Optimization via Meta-Learning, AAAI 2015.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.propose.enqueued import params_from_settings
from search.propose.predicted import with_predicted_errors
from search.propose.rows import WIDTH
from search.propose.space import distributions
from search.study import StudyConfig, study_from_record
from storage.earlier_studies import EarlierStudy
from storage.optuna_private import ENQUEUED_KEY
from storage.studies import Study
from storage.trials.duplicate_configs import DUPLICATE_TAG
from storage.trials.views import TrialRow, error_of, trial_rows
from trainer.config import default_settings, searchable_fields
from trainer.errors import ConfigError
from trainer.fingerprints import digest_of

FIRST: Final = 5
"""Maximum number of configurations of earlier studies that are tried first."""

KEPT: Final = 100
"""Maximum number of trials that are copied of one earlier study, so that it does not outweigh this one."""

BEST: Final = 20
"""How many of these are the best ones; the others are evenly spaced by rank."""


@dataclass(frozen=True)
class FirstConfiguration:
    """A configuration that is tried first.

    Attributes
    ----------
    params : parameters of this study
    source : study and trial that it comes from, as text
    """

    params: Mapping[str, Any]
    source: str


@dataclass(frozen=True)
class EarlierTrials:
    """What a study learns from earlier ones.

    Attributes
    ----------
    first : configurations to try first, in this order
    trials : trials of earlier studies as trials of this one, whose values are normal scores
    """

    first: Sequence[FirstConfiguration] = ()
    trials: Sequence[FrozenTrial] = ()

    def next_first(
        self, number: int, trials: Callable[[], Sequence[FrozenTrial]]
    ) -> FirstConfiguration | None:
        """Return the configuration that the trial of this number tries first; None if there is none.

        Trials that were enqueued do not count, so none of the configurations is lost to them.

        Parameters
        ----------
        trials : returns the trials of the study in Optuna
        """
        if not self.first:
            return None
        place = number - sum(
            trial.number < number and ENQUEUED_KEY in trial.system_attrs for trial in trials()
        )
        return self.first[place] if place < len(self.first) else None


NOTHING: Final = EarlierTrials()
"""For a study that does not learn from others."""


def copy_of(config: StudyConfig, study: Study) -> EarlierStudy:
    """Copy the results of an earlier study that lie in the space of a study.

    A result is that of a complete, pruned or paused trial. It lies in the space if the searched settings do;
    the others may differ. Named AEV constants are compared by what they are, and have the name that the study
    that learns gives them.

    Parameters
    ----------
    config : the study that learns
    study : the earlier study

    Raises
    ------
    ConfigError
        if there is no such result.
    """
    where = f"{config.name}: learn_from"
    earlier = study_from_record(study.config, study.name)
    errors = _errors(study, earlier)
    ranked = sorted(
        filter(_has_result, trial_rows(study.database, study)), key=lambda trial: _rank(trial, errors)
    )
    if not ranked:
        raise ConfigError(f"{where}: study {study.name!r} has no trial with a result yet")
    inside = [
        {
            "trial": trial.number,
            "state": trial.state,
            "value": trial.value,
            "epochs": trial.epochs,
            "quantile": (place + 0.5) / len(ranked),
            "settings": settings,
        }
        for place, trial in enumerate(ranked)
        if _searched_params(config, settings := _translated(trial.config or {}, earlier, config)) is not None
    ]
    if not inside:
        raise ConfigError(
            f"{where}: none of the {len(ranked)} trials of study {study.name!r} lies in the space of this"
            " study; compare the two spaces, or leave that study out"
        )
    kept = _thinned(inside)
    facts = {name: fact for name, fact in study.facts.items() if name in ("data", "split")}
    values = {"study": study.name, "trials": len(ranked), "facts": facts, "results": kept}
    return EarlierStudy(study.name, len(ranked), facts, kept, digest_of(values))


def learned(config: StudyConfig, copies: Sequence[EarlierStudy]) -> EarlierTrials:
    """Convert the copies that a study learns from to its own space."""
    space = distributions(config)
    trials: list[FrozenTrial] = []
    # The best trials are the last, because TPE gives the oldest ones less weight.
    for each in copies:
        for result in reversed(each.results):
            params = _searched_params(config, result["settings"])
            assert params is not None, "only results that lie in the space are copied"
            filled = _filled(params, space, seed=len(trials))
            score = normal_score(result["quantile"])
            trial = create_trial(
                state=TrialState.COMPLETE, value=score, params=filled, distributions=dict(space)
            )
            trial.number = len(trials)
            trials.append(trial)
    return EarlierTrials(_first(config, copies), trials)


def joined(
    earlier: Sequence[FrozenTrial], own: Sequence[FrozenTrial], rank: Callable[[FrozenTrial], Any]
) -> Sequence[FrozenTrial]:
    """Return the trials of earlier studies and, after them, those of this study, all with normal scores.

    Parameters
    ----------
    earlier : :attr:`EarlierTrials.trials`
    own : the trials of this study
    rank : key by which its ended trials are sorted, the best first
    """
    if not earlier:
        return own
    ended = sorted((t for t in own if t.state in (TrialState.COMPLETE, TrialState.PRUNED)), key=rank)
    scores = {trial.number: normal_score((place + 0.5) / len(ended)) for place, trial in enumerate(ended)}
    shifted = []
    for trial in own:
        other = copy.copy(trial)
        other.number = trial.number + len(earlier)
        if trial.number in scores:
            other.state, other.value = TrialState.COMPLETE, scores[trial.number]
        shifted.append(other)
    return [*earlier, *shifted]


def normal_score(quantile: float) -> float:
    """Return the value below which this share of a standard normal distribution lies."""
    return NormalDist().inv_cdf(quantile)


def _has_result(trial: TrialRow) -> bool:
    return (
        trial.state in ("complete", "pruned", "paused")
        and trial.value is not None
        and trial.config is not None
        and DUPLICATE_TAG not in trial.tags
        and trial.replicate_of is None
    )


def _errors(study: Study, config: StudyConfig) -> dict[int, float]:
    """Return the errors of a study's trials after a full training, kcal/mol, predicted for paused ones.

    They are those that its own sampler learns from. A study whose pruner stops trials for good has none for
    them.
    """
    if not config.pauses:
        return {}
    with study.database.plain_errors():
        trials = study.optuna.get_trials(deepcopy=False)
    predicted = with_predicted_errors(trials, config.epochs)
    return {trial.number: trial.value for trial in predicted if trial.value is not None}


def _rank(trial: TrialRow, errors: Mapping[int, float]) -> tuple[bool, int, float, int]:
    """Rank as the sampler does, smaller is better: by error; trials without one last, the longest first."""
    if trial.state == "complete" or trial.number in errors:
        return (False, 0, errors.get(trial.number, error_of(trial)), trial.number)
    return (True, -trial.epochs, error_of(trial), trial.number)


def _searchable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the searchable settings; one that a record lacks was added later, and has its default there.

    Named AEV constants have no default. Copies made by earlier versions lack them, and leave them open.
    """
    complete = {**default_settings(), **settings}
    features = {"features": settings["features"]} if "features" in settings else {}
    return {name: complete[name] for name in searchable_fields()} | features


def _translated(settings: Mapping[str, Any], earlier: StudyConfig, config: StudyConfig) -> dict[str, Any]:
    """Return the searchable settings of a trial of another study, with AEV constants named as in a study.

    Constants without a name there are None. The elements may be others, because the data may be.
    """
    values = _searchable(settings)
    aev = earlier.features.named(values.get("features"))
    names = [
        name
        for name, each in (config.features.choices or {}).items()
        if replace(each, elements=aev.elements) == aev
    ]
    return values | {"features": names[0] if names else None}


def _searched_params(config: StudyConfig, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Convert the settings that a study searches to its parameters; None if they are not in its space."""
    searched = {
        "hidden" if name == "layers" or name.startswith(WIDTH) else name for name in distributions(config)
    }
    return _params(config, {name: value for name, value in _searchable(settings).items() if name in searched})


def _params(config: StudyConfig, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        return params_from_settings(config, settings, config.name)
    except ConfigError:
        return None


def _thinned(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Keep the best results, and of the others as many as :data:`KEPT` allows, evenly spaced by rank."""
    if len(results) <= KEPT:
        return list(results)
    others = np.linspace(BEST, len(results) - 1, KEPT - BEST).round().astype(int)
    return [*results[:BEST], *(results[i] for i in others)]


def _first(config: StudyConfig, copies: Sequence[EarlierStudy]) -> list[FirstConfiguration]:
    """Choose the configurations to try first: the best of each study in turn, of distinct architectures.

    Only if there are too few architectures, another configuration of one follows. All settings of the network
    and its training that a study may search must be possible in this study.
    """
    found = [
        [
            (FirstConfiguration(params, f"trial {result['trial']} of {each.name}"), settings)
            for result in each.results
            if result["state"] == "complete"
            and (params := _params(config, settings := _searchable(result["settings"]))) is not None
        ]
        for each in copies
    ]
    in_turn = [each for each in chain.from_iterable(zip_longest(*found)) if each is not None]
    distinct: dict[str, FirstConfiguration] = {}
    others: list[FirstConfiguration] = []
    for first, settings in in_turn:
        network = digest_of([settings["hidden"], settings["activation"]])
        if network not in distinct:
            distinct[network] = first
        elif all(first.params != other.params for other in (*distinct.values(), *others)):
            others.append(first)
    return [*distinct.values(), *others][:FIRST]


def _filled(params: Mapping[str, Any], space: Mapping[str, BaseDistribution], seed: int) -> dict[str, Any]:
    """Draw the widths that a network does not use, because samplers need trials with all parameters."""
    random = np.random.default_rng(seed)
    return {name: params[name] if name in params else _drawn(space[name], random) for name in space}


def _drawn(distribution: BaseDistribution, random: np.random.Generator) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[random.integers(len(distribution.choices))]
    assert isinstance(distribution, IntDistribution), "widths are whole numbers"
    steps = (distribution.high - distribution.low) // distribution.step
    return distribution.low + distribution.step * int(random.integers(steps + 1))
