"""Whether going on with a study is worth it: the expected gain against the noise of the error.

A. Makarova et al., Automatic Termination for Hyperparameter Optimization, AutoML-Conf 2022: a search ends
when an upper bound of its simple regret, from a Gaussian process, is within the noise of the error that it
minimizes, since a smaller improvement could not be told from chance. There the noise comes from
cross-validation; here it comes from the validation set and, if equal settings were trained several times,
from the seeds. As in the leaderboard, it is the difference below which two errors cannot be told apart. The
bound is Optuna's (:class:`optuna.terminator.RegretBoundEvaluator`).
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import optuna
from optuna.study import StudyDirection
from optuna.terminator import RegretBoundEvaluator
from optuna.trial import FrozenTrial, TrialState

from search.propose.history import is_of_space
from search.propose.predicted import with_predicted_errors
from search.propose.seeds import sampler_seed
from search.propose.space import distributions, used_params
from search.study import StudyConfig
from storage.studies import ExpectedGain
from storage.trials.duplicate_configs import DUPLICATE_TAG
from storage.trials.optuna_rows import PAUSED
from trainer.evaluation.metrics import MAE, RMSE
from trainer.evaluation.noise import NEAR, mae_standard_error, noise_margin, pooled_deviation

FEWEST: Final = 20
"""Number of results from which the gain is estimated, as in Optuna: with fewer the bound says little."""

_MAE: Final = f"val/{MAE}"
_RMSE: Final = f"val/{RMSE}"


def expected_gain(config: StudyConfig, trials: Sequence[FrozenTrial], structures: int) -> ExpectedGain | None:
    """Estimate how much better the best trial of a study could become; None if it cannot be estimated yet.

    Full trainings are results and, where the pruner pauses trials, also paused and pruned ones with the error
    that they are predicted to have in the end, which the sampler learns from, too.

    Parameters
    ----------
    trials : the trials of the study in Optuna
    structures : size of the validation set
    """
    space = distributions(config)
    ours = [
        trial
        for trial in trials
        if (trial.state != TrialState.RUNNING or PAUSED in trial.user_attrs)
        and is_of_space(trial, space)
        and DUPLICATE_TAG not in trial.user_attrs
    ]
    shown = with_predicted_errors(ours, config.epochs) if config.pauses else ours
    results = [trial for trial in shown if trial.state == TrialState.COMPLETE]
    full = [trial for trial in ours if trial.state == TrialState.COMPLETE]
    deviation = _deviation(full, structures)
    if len(results) < FEWEST or deviation is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = RegretBoundEvaluator(seed=sampler_seed(config.seed, len(results)))
    bound = float(evaluator.evaluate(results, StudyDirection.MINIMIZE))
    gain = min(max(0.0, bound), min(map(_error, full)))  # no error is below zero
    return ExpectedGain(len(results), gain, noise_margin(deviation))


def states_of_results(config: StudyConfig) -> tuple[str, ...]:
    """Return the states of trials that are results in a study."""
    return ("complete", "paused", "pruned") if config.pauses else ("complete",)


def _deviation(results: Sequence[FrozenTrial], structures: int) -> float | None:
    """Standard deviation of the error of the best trial, kcal/mol; None if there is none."""
    best = min(results, key=_error, default=None)
    if best is None or not {_MAE, _RMSE} <= best.user_attrs.keys():
        return None
    of_structures = mae_standard_error(best.user_attrs[_MAE], best.user_attrs[_RMSE], structures)
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for trial in results:
        groups[repr(sorted(used_params(trial.params).items()))].append(_error(trial))
    of_seeds = pooled_deviation(
        (statistics.stdev(group), len(group))
        for group in groups.values()
        if len(group) > 1 and statistics.fmean(group) <= NEAR * _error(best)
    )
    return math.hypot(of_structures, of_seeds[0] if of_seeds is not None else 0.0)


def _error(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value
