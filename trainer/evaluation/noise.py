"""How much an error varies by chance: with the structures of the validation set, and with the seed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

NEAR: Final = 1.5
"""Replicates whose mean is above the best error by more than this factor do not count for the noise."""


def mae_standard_error(mae: float, rmse: float, structures: int) -> float:
    """Standard error of a mean absolute error over a set of structures, in the unit of the errors.

    It is sqrt((RMSE^2 - MAE^2) / n), which holds for independent structures. Errors of the structures of one
    molecule are alike, so with a split by molecule it is a lower bound.
    """
    return math.sqrt(max(0.0, rmse**2 - mae**2) / structures)


def pooled_deviation(groups: Iterable[tuple[float, int]]) -> tuple[float, int] | None:
    """Pool standard deviations of groups of values, such as errors of equal settings over seeds.

    Parameters
    ----------
    groups : standard deviation within each group, and the number of its values, which is above 1

    Returns
    -------
    The pooled standard deviation, and the degrees of freedom that it was estimated with; None without groups.
    """
    known = list(groups)
    freedom = sum(count - 1 for _, count in known)
    if not freedom:
        return None
    return math.sqrt(sum((count - 1) * deviation**2 for deviation, count in known) / freedom), freedom


def noise_margin(deviation: float, freedom: float = math.inf) -> float:
    """Difference below which two values with this standard deviation cannot be told apart (95 %).

    Parameters
    ----------
    freedom : degrees of freedom that the deviation was estimated with
    """
    from scipy.special import stdtrit  # takes a third of a second, and is seldom needed

    return float(stdtrit(freedom, 0.975)) * math.sqrt(2) * deviation
