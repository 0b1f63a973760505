"""Finalists: the best configurations of a study, which are trained with further seeds at its end."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence

from search.study import StudyConfig
from storage.trials.duplicate_configs import DUPLICATE_TAG
from storage.trials.views import TrialRow
from trainer.evaluation.metrics import MAE, RMSE
from trainer.evaluation.noise import NEAR, mae_standard_error, noise_margin, pooled_deviation


def missing_replicates(config: StudyConfig, trials: Sequence[TrialRow], structures: int) -> list[int]:
    """Return the number of the original for each replicate that the finalists of a study lack.

    The finalists are the best complete configurations by the mean over their seeds, as far as they are within
    the noise of the best; at least two, because the spread over seeds is not known before. If some of them
    turn out to be worse, others follow, but no more than ``finalists.most`` configurations of a study are
    ever trained again. A failed replicate is not repeated.

    Parameters
    ----------
    trials : all trials of the study, none of which runs
    structures : size of the validation set
    """
    if config.finalists is None:
        return []
    values: defaultdict[int, list[float]] = defaultdict(list)
    trained: defaultdict[int, int] = defaultdict(int)
    originals = {}
    for trial in trials:
        origin = trial.number if trial.replicate_of is None else trial.replicate_of
        trained[origin] += 1
        if trial.state == "complete" and trial.value is not None and DUPLICATE_TAG not in trial.tags:
            values[origin].append(trial.value)
            if trial.replicate_of is None:
                originals[origin] = trial
    means = {origin: statistics.fmean(values[origin]) for origin in originals}
    if len(means) < 2:
        return []  # the first place is not contested
    ranked = sorted(means, key=lambda origin: (means[origin], origin))
    best = ranked[0]
    margin = _margin(originals[best], means, values, structures)
    finalists = [origin for origin in means if trained[origin] > 1]
    for origin in ranked:
        near = len(finalists) < 2 or means[origin] - means[best] <= margin
        if near and origin not in finalists and len(finalists) < config.finalists.most:
            finalists.append(origin)
    return [
        origin
        for origin in sorted(finalists, key=ranked.index)
        for _ in range(config.finalists.seeds - trained[origin])
    ]


def _margin(
    best: TrialRow, means: dict[int, float], values: dict[int, list[float]], structures: int
) -> float:
    """Difference below which two errors near the best cannot be told apart, kcal/mol."""
    mae, rmse = best.summary.get(f"val/{MAE}"), best.summary.get(f"val/{RMSE}")
    of_structures = mae_standard_error(mae, rmse, structures) if mae is not None and rmse is not None else 0.0
    of_seeds = pooled_deviation(
        (statistics.stdev(values[origin]), len(values[origin]))
        for origin, mean in means.items()
        if len(values[origin]) > 1 and mean <= NEAR * means[best.number]
    )
    return noise_margin(math.hypot(of_structures, of_seeds[0] if of_seeds is not None else 0.0))
