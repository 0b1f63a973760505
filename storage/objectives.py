"""The objectives of a study, all of which are minimized: the error, and costs of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

ERROR: Final = "val_mae"
"""The first objective of every study."""


@dataclass(frozen=True)
class Objective:
    """What trials are compared by.

    Attributes
    ----------
    label
        Its name with the unit, as Optuna shows it.
    meaning
        What it is, for people.
    metric
        Key of its value among the numbers of a trial; None: it is the result of the trial.
    log
        Whether ratios count rather than differences, as for costs.
    """

    label: str
    meaning: str
    metric: str | None
    log: bool = True


OBJECTIVES: Final[Mapping[str, Objective]] = {
    ERROR: Objective(
        "val MAE, kcal/mol", "best validation MAE over the epochs, in kcal/mol", None, log=False
    ),
    "parameters": Objective("parameters", "weights and biases of all networks", "parameters"),
    "inference_time": Objective(
        "inference time, µs per atom",
        "processor time of a prediction from AEVs in one thread of a CPU, in µs per atom",
        "inference_us_per_atom",
    ),
}


def objectives_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The objectives in the record of a study; a study that is older than this setting has the error only."""
    return tuple(config.get("objectives") or (ERROR,))


def objective_values(
    objectives: Sequence[str], error: float, numbers: Mapping[str, float]
) -> tuple[float, ...]:
    """The values of the objectives of a trial, in their order.

    Parameters
    ----------
    error
        Best validation MAE, kcal/mol.
    numbers
        The numbers of a trial that has ended (``summary``).
    """
    metrics = (OBJECTIVES[name].metric for name in objectives)
    return tuple(error if metric is None else numbers[metric] for metric in metrics)
