"""The power law between the size of the training set and the error, with the intervals of its predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.promote.statistics import LEVEL, Interval


@dataclass(frozen=True)
class PowerLaw:
    """E = factor n^-exponent, fitted by least squares to the logarithms.

    Attributes
    ----------
    factor : error at n = 1, kcal/mol
    exponent : with its confidence interval
    center, squares : mean of the ln n, and sum of their squared deviations from it
    residual : standard deviation of the residuals of ln E
    count : number of errors that were fitted
    """

    factor: float
    exponent: Interval
    center: float
    squares: float
    residual: float
    count: int

    def predict(self, structures: int) -> Interval:
        """Predict the error of a training on so many structures, kcal/mol, with its prediction interval."""
        x = math.log(structures)
        wide = math.sqrt(1 + 1 / self.count + (x - self.center) ** 2 / self.squares)
        half = _quantile(self.count) * self.residual * wide
        value = self.factor * structures**-self.exponent.mean
        return Interval(value, value * math.exp(-half), value * math.exp(half))


def fit_power_law(structures: Sequence[int], errors: Sequence[float]) -> PowerLaw:
    """Fit a power law to the error by the size of the training set.

    Parameters
    ----------
    structures, errors : one of each for every training, kcal/mol; 3 trainings or more, of 2 sizes or more
    """
    x, y = np.log(np.asarray(structures, np.float64)), np.log(np.asarray(errors, np.float64))
    center = float(x.mean())
    squares = float(np.square(x - center).sum())
    exponent = -float(((x - center) * y).sum()) / squares
    log_factor = float(y.mean()) + exponent * center
    residual = math.sqrt(float(np.square(y - log_factor + exponent * x).sum()) / (len(x) - 2))
    half = _quantile(len(x)) * residual / math.sqrt(squares)
    interval = Interval(exponent, exponent - half, exponent + half)
    return PowerLaw(math.exp(log_factor), interval, center, squares, residual, len(x))


def _quantile(count: int) -> float:
    """Return the quantile of Student's t for an interval at ``LEVEL``, after a fit to ``count`` points."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 2, (1 + LEVEL) / 2))
