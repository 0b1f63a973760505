"""Statistics to distinguish two configurations that were trained on the same folds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

LEVEL: Final = 0.95
"""Confidence of the intervals."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval at ``LEVEL``."""

    mean: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether the interval contains zero, so that there may be no difference."""
        return self.low <= 0.0 <= self.high


def paired_interval(differences: Sequence[float], test_to_train: float) -> Interval:
    """Return the mean of paired differences with the corrected resampled t interval.

    Runs on folds share most of their training data, so their differences are not independent, and the usual
    standard error, s / sqrt(n), is too small. Here it is s sqrt(1/n + test_to_train), with n - 1 degrees of
    freedom: Nadeau, Bengio, Mach. Learn. 52, 239 (2003), equation 17; for folds with several seeds as in
    Bouckaert, Frank, PAKDD (2004), 3.

    Parameters
    ----------
    differences : one difference per run, n in all, 2 or more
    test_to_train : size of the validation set over that of the training set; 1/(k - 1) for k folds
    """
    from scipy.special import stdtrit  # takes a third of a second, and is seldom needed

    n = len(differences)
    values = np.asarray(differences, dtype=np.float64)
    mean = float(values.mean())
    error = float(values.std(ddof=1)) * math.sqrt(1 / n + test_to_train)
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * error
    return Interval(mean, mean - half, mean + half)


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation of 2 or more values, in their unit."""
    return float(np.std(np.asarray(values, dtype=np.float64), ddof=1))
