"""Errors at the end that trials which have not been trained in full are predicted to have."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from copy import copy

from optuna.trial import FrozenTrial, TrialState


def with_predicted_errors(trials: Sequence[FrozenTrial], epochs: int) -> list[FrozenTrial]:
    """Show each trial that has reached a rung as a complete one with a predicted error.

    For Optuna, a paused trial is running, so a sampler would not learn from it; and of pruned trials TPE
    takes those as better that were trained longer. Many workers reach late rungs with trials that were the
    best of few, so better trials at earlier rungs would count as worse.

    The predicted error is the error at the last rung of the trial, times the median ratio between
    neighboring rungs of the trials that have reached both. No rung is predicted that no trial has reached.

    Parameters
    ----------
    trials
        The trials of a study, with their best validation MAE so far at each rung.
    epochs
        Epochs of a full training.
    """
    curves = [_curve(trial, epochs) for trial in trials]
    steps = sorted(set().union(*curves))
    ratios = {step: _median_ratio(curves, step, after) for step, after in itertools.pairwise(steps)}
    shown = []
    for trial, curve in zip(trials, curves, strict=True):
        if trial.state in (TrialState.RUNNING, TrialState.PRUNED) and curve:
            last = max(curve)
            factor = math.prod(ratio for step, ratio in ratios.items() if step >= last)
            trial = copy(trial)
            trial.state = TrialState.COMPLETE
            trial.value = curve[last] * factor
        shown.append(trial)
    return shown


def _curve(trial: FrozenTrial, epochs: int) -> dict[int, float]:
    """Error at each rung (kcal/mol) by epoch, and at the end if the trial is complete."""
    curve = {step: value for step, value in trial.intermediate_values.items() if not math.isnan(value)}
    if trial.state == TrialState.COMPLETE:
        assert trial.value is not None
        curve[epochs] = trial.value
    return curve


def _median_ratio(curves: Sequence[Mapping[int, float]], step: int, after: int) -> float:
    """Median of the error at ``after`` over that at ``step``; 1 if no trial has both."""
    both = [curve for curve in curves if curve.get(step, 0) > 0 and after in curve]
    return statistics.median(curve[after] / curve[step] for curve in both) if both else 1.0
