"""The result of a measurement: a figure, its goal, and the samples of both sides."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

RATIO: Final = "x"
"""Unit of a ratio: how many times better our side is than the reference."""


@dataclass(frozen=True)
class Goal:
    """A value that a figure should reach."""

    kind: Literal["at least", "at most", "below"]
    value: float

    def reached(self, figure: float) -> bool:
        """Whether a figure reaches the goal."""
        if self.kind == "below":
            return figure < self.value
        return figure >= self.value if self.kind == "at least" else figure <= self.value


@dataclass(frozen=True)
class Samples:
    """Repeated measurements of one side."""

    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the samples."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Figure:
    """A line of the table.

    Attributes
    ----------
    value : None if it could not be measured; then ``note`` says why
    ours, reference : the samples that the figure was computed from
    note : remark for readers of the table
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
    """Make a figure of how many times faster our side is, from samples that are rates."""
    return Figure(topic, name, ours.median / reference.median, RATIO, goal, ours, reference, note)


def cost_ratio(
    topic: str, name: str, ours: Samples, reference: Samples, goal: Goal | None = None, note: str = ""
) -> Figure:
    """Make a figure of how many times less our side needs, from samples that are times or sizes."""
    return Figure(topic, name, reference.median / ours.median, RATIO, goal, ours, reference, note)


def plain(
    topic: str, name: str, unit: str, values: Sequence[float], goal: Goal | None = None, note: str = ""
) -> Figure:
    """Make a figure from samples of our side alone."""
    samples = Samples(unit, tuple(values))
    return Figure(topic, name, samples.median, unit, goal, samples, note=note)


def quantity(value: float, unit: str) -> str:
    """Format a value with its unit, to three digits."""
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{number} {unit}"
