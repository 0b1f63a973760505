"""When a trial is given up. A new pruner is an entry of ``PRUNERS`` and a kind of ``PrunerConfig``."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from search.study import PrunerConfig, StudyConfig

PRUNERS: dict[str, Callable[[StudyConfig, PrunerConfig], BasePruner]] = {
    "hyperband": lambda config, pruner: HyperbandPruner(
        min_resource=_first_rung(config, pruner),
        max_resource=config.epochs,
        reduction_factor=pruner.reduction_factor,
    ),
    "asha": lambda config, pruner: SuccessiveHalvingPruner(
        min_resource=_first_rung(config, pruner), reduction_factor=pruner.reduction_factor
    ),
    "median": lambda config, pruner: MedianPruner(
        n_startup_trials=pruner.startup_trials, n_warmup_steps=_first_rung(config, pruner)
    ),
    "none": lambda config, pruner: NopPruner(),
}


def rungs(config: StudyConfig) -> tuple[int, ...]:
    """The epochs after which the pruner is asked, and Optuna told; there are none in a study of rows."""
    if config.pruner is None:
        return ()
    factor = config.pruner.reduction_factor
    steps = (_first_rung(config, config.pruner) * factor**k for k in itertools.count())
    return tuple(itertools.takewhile(lambda step: step < config.epochs, steps))


def should_prune(storage: BaseStorage, config: StudyConfig, trial: FrozenTrial) -> bool:
    """Ask the pruner about a trial as Optuna has it at a rung."""
    assert config.pruner is not None
    pruner = PRUNERS[config.pruner.kind](config, config.pruner)
    return pruner.prune(optuna.load_study(study_name=config.name, storage=storage, pruner=pruner), trial)


def _first_rung(config: StudyConfig, pruner: PrunerConfig) -> int:
    # Rounded up, so that no rung falls just before the end.
    return pruner.min_epochs or -(-config.epochs // pruner.reduction_factor**2)
