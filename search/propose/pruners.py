"""Pruners, which stop trials early. A new one is an entry of ``PRUNERS`` and a kind of ``PrunerConfig``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from search.propose import halving
from search.study import PrunerConfig, StudyConfig
from storage.trials.paused import Promotion, RungResult, no_promotion

Decision = Callable[[StudyConfig, BaseStorage, FrozenTrial, Callable[[], Sequence[RungResult]]], bool]
"""A function with the parameters and result of :func:`stops`."""


def _by_optuna(make: Callable[[StudyConfig, PrunerConfig], BasePruner]) -> Decision:
    def decide(
        config: StudyConfig,
        storage: BaseStorage,
        trial: FrozenTrial,
        results: Callable[[], Sequence[RungResult]],
    ) -> bool:
        pruner = make(config, _settings(config))
        return pruner.prune(optuna.load_study(study_name=config.name, storage=storage, pruner=pruner), trial)

    return decide


def _by_halving(
    config: StudyConfig,
    storage: BaseStorage,
    trial: FrozenTrial,
    results: Callable[[], Sequence[RungResult]],
) -> bool:
    assert trial.last_step is not None
    return not halving.goes_on(_settings(config), results(), trial.number, trial.last_step)


PRUNERS: dict[str, Decision] = {
    "asha": _by_halving,
    "hyperband": _by_optuna(
        lambda config, pruner: HyperbandPruner(
            min_resource=_first_rung(config, pruner),
            max_resource=config.epochs,
            reduction_factor=pruner.reduction_factor,
        )
    ),
    "median": _by_optuna(
        lambda config, pruner: MedianPruner(
            n_startup_trials=pruner.startup_trials, n_warmup_steps=_first_rung(config, pruner)
        )
    ),
    "none": lambda config, storage, trial, results: False,
}


def rungs(config: StudyConfig) -> tuple[int, ...]:
    """Return the rungs: epochs after which the pruner decides. A study of rows has none."""
    if config.pruner is None:
        return ()
    factor = config.pruner.reduction_factor
    steps = (_first_rung(config, config.pruner) * factor**k for k in itertools.count())
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
    return PRUNERS[_settings(config).kind](config, storage, trial, results)


def promotion(config: StudyConfig) -> Promotion:
    """Return the function that chooses which paused trial is resumed."""
    pruner = config.pruner
    return partial(halving.promoted, pruner) if pruner is not None and pruner.pauses else no_promotion


def _settings(config: StudyConfig) -> PrunerConfig:
    assert config.pruner is not None, "only a search has rungs"
    return config.pruner


def _first_rung(config: StudyConfig, pruner: PrunerConfig) -> int:
    # The first rung is early if trials are paused, as pausing loses nothing. It is rounded up, so that no
    # rung falls just before the end.
    return pruner.min_epochs or -(-config.epochs // (27 if pruner.pauses else pruner.reduction_factor**2))
