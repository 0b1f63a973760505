"""Exponential moving average of the weights."""

from __future__ import annotations

import torch


class WeightAverage:
    """Average over the steps of a training, in which a step counts ``decay`` times the one after it.

    The decay grows to its full value over the first steps, as (1 + n) / (10 + n) after n of them: otherwise
    the initial weights would dominate the average for the first 1 / (1 - decay) steps.

    Parameters
    ----------
    vector : holds the average; equal to the initial weights, and changed in place
    decay : between 0 and 1
    """

    def __init__(self, vector: torch.Tensor, decay: float) -> None:
        self._vector = vector
        self._decay = decay

    def update(self, weights: torch.Tensor, step: int | torch.Tensor) -> None:
        """Take in the weights after ``step`` steps, float64 if the number is on the device."""
        if isinstance(step, torch.Tensor):
            kept = ((1 + step) / (10 + step)).clamp(max=self._decay)
            self._vector.lerp_(weights, (1 - kept).to(self._vector.dtype))
        else:
            self._vector.lerp_(weights, 1 - min(self._decay, (1 + step) / (10 + step)))
