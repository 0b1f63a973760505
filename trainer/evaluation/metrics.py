"""Error metrics of predictions, overall and by kind of molecule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

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


@dataclass(frozen=True)
class Metric:
    """One number for many errors. It scales with the errors, so it has their unit.

    Attributes
    ----------
    measure : computes it from the errors (n,) of the best network, after a training
    of_epoch : computes it from the errors (n, K) of K networks after each epoch, (K,); None: not done
    """

    measure: Callable[[npt.NDArray[np.float64]], float]
    of_epoch: Callable[[Tensor], Tensor] | None = None


MAE: Final = "mae_kcalmol"
"""The metric that a study minimizes."""

RMSE: Final = "rmse_kcalmol"

#: Every entry is recorded, shown and reported under its name, in kcal/mol.
METRICS: Final[Mapping[str, Metric]] = {
    MAE: Metric(mean_absolute_error, lambda errors: errors.abs().mean(0)),
    RMSE: Metric(root_mean_square_error, lambda errors: errors.square().mean(0).sqrt()),
    "max_error_kcalmol": Metric(max_error, lambda errors: errors.abs().amax(0)),
}


def measure_epoch(errors: Tensor) -> tuple[Tensor, ...]:
    """Compute the metrics of an epoch, (K,) each, from the errors (n, K) of K networks, in their unit."""
    return tuple(metric.of_epoch(errors) for metric in METRICS.values() if metric.of_epoch is not None)


def epoch_metric_names() -> tuple[str, ...]:
    """Return the names of the metrics of an epoch, in the order of :func:`measure_epoch`."""
    return tuple(name for name, metric in METRICS.items() if metric.of_epoch is not None)


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
        f"{subset}/{name}{group}": metric.measure(some)
        for group, some in groups.items()
        for name, metric in METRICS.items()
    }
