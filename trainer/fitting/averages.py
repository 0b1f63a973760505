"""Exponential moving average of the weights."""

from __future__ import annotations

from typing import overload

import torch


@overload
def new_share(decay: float, step: int) -> float: ...


@overload
def new_share(decay: float, step: torch.Tensor) -> torch.Tensor: ...


def new_share(decay: float, step: int | torch.Tensor) -> float | torch.Tensor:
    """Return the share with which the weights after a number of steps enter their moving average.

    A step counts ``decay`` times as much as the step after it. The decay grows to its full value over the
    first steps, as (1 + n) / (10 + n) after n steps: otherwise the initial weights would dominate the average
    for the first 1 / (1 - decay) steps.

    Parameters
    ----------
    decay : between 0 and 1
    step : n, from 1; float64 if it is a tensor
    """
    if isinstance(step, torch.Tensor):
        return 1 - ((1 + step) / (10 + step)).clamp(max=decay)
    return 1 - min(decay, (1 + step) / (10 + step))
