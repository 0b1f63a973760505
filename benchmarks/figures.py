"""What a measurement comes to: one figure, the goal beside it, and the samples of both sides."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

RATIO: Final = "x"
"""The unit of a ratio: how many times better ours is than the reference."""


@dataclass(frozen=True)
class Goal:
    """What a figure shall reach."""

    kind: Literal["at least", "at most", "below"]
    value: float

    def reached(self, figure: float) -> bool:
        """Whether a figure is as good."""
        if self.kind == "below":
            return figure < self.value
        return figure >= self.value if self.kind == "at least" else figure <= self.value


@dataclass(frozen=True)
class Samples:
    """What one side did, measured several times."""

    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Figure:
    """A line of the table.

    Attributes
    ----------
    value : None if it could not be measured; then ``note`` says why
    ours, reference : what the figure was made from
    note : what a reader must know of it
    """

    topic: str
    name: str
    value: float | None
    unit: str
    goal: Goal | None = None
    ours: Samples | None = None
    reference: Samples | None = None
    note: str = ""


def rate_ratio(
    topic: str, name: str, ours: Samples, reference: Samples, goal: Goal | None = None, note: str = ""
) -> Figure:
    """How many times faster ours is, where samples are rates."""
    return Figure(topic, name, ours.median / reference.median, RATIO, goal, ours, reference, note)


def cost_ratio(
    topic: str, name: str, ours: Samples, reference: Samples, goal: Goal | None = None, note: str = ""
) -> Figure:
    """How many times less ours takes, where samples are times or sizes."""
    return Figure(topic, name, reference.median / ours.median, RATIO, goal, ours, reference, note)


def plain(
    topic: str, name: str, unit: str, values: Sequence[float], goal: Goal | None = None, note: str = ""
) -> Figure:
    """A figure of ours alone."""
    samples = Samples(unit, tuple(values))
    return Figure(topic, name, samples.median, unit, goal, samples, note=note)


def quantity(value: float, unit: str) -> str:
    """A value with its unit, to three digits."""
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{number} {unit}"
