"""The methods of a search by name: samplers and pruners.

It imports Optuna only when one of them is made, because their names are the choices of settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trainer.lazy_import import LazyImport

if TYPE_CHECKING:
    import optuna
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

    from search.study import PrunerConfig, StudyConfig
else:
    optuna = LazyImport("optuna")

STARTUP_TRIALS: Final = 10


@dataclass(frozen=True)
class Sampler:
    """Chooses the next configuration.

    Attributes
    ----------
    make : makes Optuna's sampler, given the study and the seed of one proposal; None: each trial has the
        point of a grid with its number. A new one is made for each proposal, so it may keep nothing except
        in the trials themselves, and is refused if it writes other attributes of a trial than ``keeps``.
    learns : whether it proposes at random until ``startup_trials`` have ended, and learns from then on
    needs_values : whether it learns from complete trials only, so that no pruner may stop one for good
    keeps : the system attribute in which it keeps its state, and which is recorded with a proposal
    """

    make: Callable[[StudyConfig, int], BaseSampler] | None
    learns: bool = False
    needs_values: bool = False
    keeps: str | None = None


def _startup(config: StudyConfig) -> int:
    return (config.sampler.startup_trials if config.sampler else None) or STARTUP_TRIALS


SAMPLERS: Final[Mapping[str, Sampler]] = {
    "tpe": Sampler(
        # Joint also for several objectives, for which Optuna's default is to draw each parameter by itself.
        lambda config, seed: optuna.samplers.TPESampler(
            n_startup_trials=_startup(config), multivariate=True, seed=seed
        ),
        learns=True,
    ),
    "gp": Sampler(
        lambda config, seed: optuna.samplers.GPSampler(
            n_startup_trials=_startup(config), seed=seed, warn_independent_sampling=False
        ),
        learns=True,
        needs_values=True,
    ),
    # A generation has 50 trials, and the first one is random.
    "nsgaii": Sampler(
        lambda config, seed: optuna.samplers.NSGAIISampler(seed=seed),
        needs_values=True,
        keeps="NSGAIISampler:generation",
    ),
    "random": Sampler(lambda config, seed: optuna.samplers.RandomSampler(seed=seed)),
    # The whole study has one sequence, of which each trial takes the next point.
    "qmc": Sampler(
        lambda config, seed: optuna.samplers.QMCSampler(
            scramble=True,
            seed=config.seed,
            independent_sampler=optuna.samplers.RandomSampler(seed=seed),
            warn_independent_sampling=False,
        )
    ),
    "grid": Sampler(None),
}


@dataclass(frozen=True)
class Pruner:
    """Stops trials early, at rungs.

    Attributes
    ----------
    make : makes Optuna's pruner, given the study and the settings of its pruner; None: none of Optuna's
    halves : whether it is our own successive halving, which may pause a trial (:mod:`search.propose.halving`)
    """

    make: Callable[[StudyConfig, PrunerConfig], BasePruner] | None = None
    halves: bool = False

    @property
    def stops(self) -> bool:
        """Whether any trial stops early."""
        return self.halves or self.make is not None


PRUNERS: Final[Mapping[str, Pruner]] = {
    "hyperband": Pruner(
        lambda config, pruner: optuna.pruners.HyperbandPruner(
            min_resource=pruner.first_rung(config.epochs),
            max_resource=config.epochs,
            reduction_factor=pruner.reduction_factor,
        )
    ),
    "asha": Pruner(halves=True),
    "median": Pruner(
        lambda config, pruner: optuna.pruners.MedianPruner(
            n_startup_trials=pruner.startup_trials, n_warmup_steps=pruner.first_rung(config.epochs)
        )
    ),
    "none": Pruner(),
}
