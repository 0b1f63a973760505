"""Decisions to stop trials early, by the pruners of :mod:`search.methods`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from search.methods import PRUNERS
from search.propose import halving
from search.study import StudyConfig
from storage.trials.paused import Promotion, RungResult, no_promotion


def rungs(config: StudyConfig) -> tuple[int, ...]:
    """Return the rungs: epochs after which the pruner decides. A study of rows has none."""
    if config.pruner is None:
        return ()
    first, factor = config.pruner.first_rung(config.epochs), config.pruner.reduction_factor
    steps = (first * factor**k for k in itertools.count())
    return tuple(itertools.takewhile(lambda step: step < config.epochs, steps))


def stops(
    config: StudyConfig,
    storage: BaseStorage,
    trial: FrozenTrial,
    results: Callable[[], Sequence[RungResult]],
) -> bool:
    """Whether a trial stops at a rung.

    Parameters
    ----------
    trial
        The trial in Optuna, with its value at the rung.
    results
        Function that reads the results at all rungs.
    """
    settings = config.pruner
    assert settings is not None, "only a search has rungs"
    pruner = PRUNERS[settings.kind]
    if pruner.halves:
        assert trial.last_step is not None
        return not halving.goes_on(settings, results(), trial.number, trial.last_step)
    if pruner.make is None:
        return False
    of_optuna = pruner.make(config, settings)
    study = optuna.load_study(study_name=config.name, storage=storage, pruner=of_optuna)
    return of_optuna.prune(study, trial)


def promotion(config: StudyConfig) -> Promotion:
    """Return the function that chooses which paused trial is resumed."""
    pruner = config.pruner
    return partial(halving.promoted, pruner) if pruner is not None and pruner.pauses else no_promotion
