"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Average over the steps of a training, in which a step counts ``decay`` times the one after it.

    The decay grows to its full value over the first steps, as (1 + n) / (10 + n) after n of them: otherwise
    the initial weights would dominate the average for the first 1 / (1 - decay) steps.

    Parameters
    ----------
    averaged : the parameters that hold the average, equal to the initial weights
    decay : between 0 and 1
    """

    def __init__(self, averaged: Iterable[torch.nn.Parameter], decay: float) -> None:
        self._averaged = [p.detach() for p in averaged]
        self._decay = decay

    @torch.no_grad()
    def update(self, parameters: list[torch.nn.Parameter], step: int) -> None:
        """Take in the weights after ``step`` steps."""
        decay = min(self._decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self._averaged, parameters, step)  # type: ignore[no-untyped-call]
