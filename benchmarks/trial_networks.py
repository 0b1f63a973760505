"""Networks that are trained side by side, as different as those that a search proposes."""

from __future__ import annotations

from typing import Final, TypedDict

from trainer.config import Activation

#: One to three layers of 32 to 256 neurons.
WIDTHS: Final = ((32,), (64, 32), (128,), (64, 64, 32), (256,), (96, 48), (32, 32), (128, 64))
ACTIVATIONS: Final[tuple[Activation, ...]] = ("celu", "relu", "gelu", "silu")


class TrialNetwork(TypedDict):
    """Arguments of :class:`~trainer.config.TrainConfig`."""

    hidden: tuple[int, ...]
    activation: Activation


def trial_network(number: int) -> TrialNetwork:
    """The network of the trial with this number, from 0; networks repeat after eight."""
    return TrialNetwork(
        hidden=WIDTHS[number % len(WIDTHS)], activation=ACTIVATIONS[number % len(ACTIVATIONS)]
    )
