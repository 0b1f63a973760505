"""Learning rate of each epoch, by name of the schedule.

A schedule is a function of the settings and of the validation MAEs so far. It has no state,
so that a resumed training continues with the same rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trainer.config import TrainConfig

#: Epochs without a better validation MAE after which the plateau schedule halves the rate.
PLATEAU_EPOCHS = 10


@dataclass(frozen=True)
class Schedule:
    """A schedule of the learning rate.

    Attributes
    ----------
    summary : what it does, for the description of the setting
    rate : returns the rate of the epoch after those with some validation MAEs
    """

    summary: str
    rate: Callable[[TrainConfig, Sequence[float]], float]


def _constant(config: TrainConfig, val_maes: Sequence[float]) -> float:
    return config.learning_rate


def _plateau(config: TrainConfig, val_maes: Sequence[float]) -> float:
    """Halve the rate after ``PLATEAU_EPOCHS`` without a better validation MAE, and restart the count."""
    rate, best, waited = config.learning_rate, math.inf, 0
    for mae in val_maes:
        best, waited = (mae, 0) if mae < best else (best, waited + 1)
        if waited == PLATEAU_EPOCHS:
            rate, waited = rate / 2, 0
    return rate


def _cosine(config: TrainConfig, val_maes: Sequence[float]) -> float:
    """Follow half a cosine from the full rate in the first epoch to zero after the last.

    Loshchilov, Hutter, ICLR 2017, arXiv:1608.03983, equation 5 without restarts.
    """
    return config.learning_rate * (1 + math.cos(math.pi * len(val_maes) / config.epochs)) / 2


SCHEDULES: Final[Mapping[str, Schedule]] = {
    "constant": Schedule("constant", _constant),
    "plateau": Schedule("halved on a plateau", _plateau),
    "cosine": Schedule("cosine to zero", _cosine),
}


def next_learning_rate(config: TrainConfig, val_maes: Sequence[float]) -> float:
    """Return the rate of the epoch after those with validation MAEs ``val_maes``."""
    return SCHEDULES[config.schedule].rate(config, val_maes)
