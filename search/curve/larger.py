"""The next larger network than a given one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from search.dimensions import Dimension
from trainer.config import Choices, Range
from trainer.networks.widths import Hidden, Widths, neurons

GROWTH: Final = 1.5
"""How much wider a layer becomes if the space has no larger width."""

MULTIPLE: Final = 32
"""Such a width is rounded up to a multiple of this number of neurons."""


def larger_hidden(space: Mapping[str, Dimension] | None, hidden: Hidden) -> Hidden:
    """Return the widths of the next larger network of a space.

    If the space lists whole architectures, it is the one with the next larger number of neurons; else each
    layer, of each element, has the next larger width. Where the space ends, layers are wider by half.

    Parameters
    ----------
    space : search space; None: there is none
    hidden : widths of the hidden layers of the given network
    """
    dimensions = space or {}
    if isinstance(listed := dimensions.get("hidden"), Choices):
        more = [each for each in listed.choices if neurons(each) > neurons(hidden)]
        if more:
            found: Hidden = min(more, key=neurons)
            return found
    if isinstance(hidden, dict):
        return {element: _next_widths(widths, dimensions) for element, widths in hidden.items()}
    return _next_widths(hidden, dimensions)


def _next_widths(widths: Widths, dimensions: Mapping[str, Dimension]) -> Widths:
    return tuple(_next_width(width, dimensions.get("width")) for width in widths)


def _next_width(width: int, dimension: Dimension | None) -> int:
    values: tuple[int, ...] = ()
    if isinstance(dimension, Choices):
        values = dimension.choices
    elif isinstance(dimension, Range) and dimension.step is not None:
        values = tuple(range(dimension.low, dimension.high + 1, dimension.step))
    wider = MULTIPLE * math.ceil(GROWTH * width / MULTIPLE)
    return min((each for each in values if each > width), default=wider)
