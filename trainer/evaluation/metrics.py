"""Error metrics of predictions, overall and by kind of molecule."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from trainer.evaluation.evaluate import Evaluation


def mean_absolute_error(errors: npt.NDArray[np.float64]) -> float:
    """Return the mean of the absolute errors, in their unit."""
    return float(np.abs(errors).mean())


def root_mean_square_error(errors: npt.NDArray[np.float64]) -> float:
    """Return the root of the mean of the squared errors, in their unit."""
    return float(np.sqrt(np.square(errors).mean()))


def max_error(errors: npt.NDArray[np.float64]) -> float:
    """Return the largest absolute error, in its unit."""
    return float(np.abs(errors).max())


#: Functions of errors (n,) in kcal/mol. Every entry is recorded, shown and reported under its name.
METRICS: dict[str, Callable[[npt.NDArray[np.float64]], float]] = {
    "mae_kcalmol": mean_absolute_error,
    "rmse_kcalmol": root_mean_square_error,
    "max_error_kcalmol": max_error,
}


def measure(evaluation: Evaluation, subset: str) -> dict[str, float]:
    """Compute every metric, overall, by number of heavy atoms and by element set.

    The names are ``subset/metric``, ``subset/metric_heavy_2`` and ``subset/metric_elements_CHO``.
    """
    errors = evaluation.errors
    groups = {"": errors}
    for heavy in np.unique(evaluation.heavy_atoms):
        groups[f"_heavy_{heavy}"] = errors[evaluation.heavy_atoms == heavy]
    for elements in np.unique(evaluation.element_sets):
        groups[f"_elements_{elements}"] = errors[evaluation.element_sets == elements]
    return {
        f"{subset}/{name}{group}": metric(some)
        for group, some in groups.items()
        for name, metric in METRICS.items()
    }
