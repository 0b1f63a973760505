"""Importance of the searched settings for the error of a trial, by Optuna's PED-ANOVA."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from storage.trials.views import TrialRow
from trainer.config import default_settings, searchable_fields
from trainer.networks.widths import neurons, widest

_LOG: Final = ("learning_rate", "weight_decay")


def searched_settings(trials: Sequence[TrialRow]) -> dict[str, list[Any]]:
    """Values of each setting in these trials, by name; only searchable settings that vary.

    A network is described by the number of its ``layers`` and the sum of its widths (``neurons``, or
    ``neurons of H``), because the width of a third layer means nothing for a network with two.
    """
    columns: dict[str, list[Any]] = {}
    for name in (*searchable_fields(), "features"):
        # A trial that lacks a setting is older than the setting, and had its default.
        usual = default_settings()[name]
        values = [trial.config.get(name, usual) if trial.config else None for trial in trials]
        if name == "hidden":
            columns["layers"] = [len(widest(widths)) if widths else None for widths in values]
            columns |= _neurons(values)
        else:
            columns[name] = values
    return {name: values for name, values in columns.items() if len({str(value) for value in values}) > 1}


def _neurons(values: Sequence[Any]) -> dict[str, list[Any]]:
    """One column for each element if all networks have widths by element, else the mean of the elements."""
    known = [widths for widths in values if widths]
    if known and all(isinstance(widths, Mapping) for widths in known):
        return {
            f"neurons of {element}": [sum(widths[element]) if widths else None for widths in values]
            for element in known[0]
        }
    return {"neurons": [neurons(widths) if widths else None for widths in values]}


def importances(trials: Sequence[TrialRow]) -> dict[str, float]:
    """Shares that sum to 1, the largest first; empty with fewer than two trials or if nothing varies."""
    settings = {name: values for name, values in searched_settings(trials).items() if None not in values}
    if len(trials) < 2 or not settings:
        return {}
    distributions = {name: _distribution(name, values) for name, values in settings.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(direction="minimize")
        study.add_trials(
            optuna.trial.create_trial(
                params=_params(settings, distributions, i), distributions=distributions, value=trial.value
            )
            for i, trial in enumerate(trials)
        )
        found = optuna.importance.get_param_importances(study)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _params(
    settings: Mapping[str, Sequence[Any]], distributions: Mapping[str, BaseDistribution], i: int
) -> dict[str, Any]:
    return {
        name: values[i] if isinstance(distributions[name], CategoricalDistribution) else float(values[i])
        for name, values in settings.items()
    }


def _distribution(name: str, values: Sequence[Any]) -> BaseDistribution:
    if any(isinstance(value, str | bool) for value in values):
        return CategoricalDistribution(sorted({*values}))
    low, high = float(min(values)), float(max(values))
    # The ends are included on a log scale too, whatever rounding does.
    return FloatDistribution(low, math.nextafter(high, math.inf), log=name in _LOG and low > 0)
