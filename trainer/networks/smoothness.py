"""Which networks have forces that are not continuous; without torch, for those who only tell it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

KINKED: Final = ("relu",)
"""Functions with a kink: forces jump where a structure crosses it."""


def kink_warning(activations: Collection[str]) -> str | None:
    """What is wrong with a model of these activations, as what it "has"; None: it is smooth."""
    kinked = sorted(set(activations) & set(KINKED))
    if not kinked:
        return None
    return (
        f"the activation {', '.join(kinked)}, whose slope jumps: its forces are not continuous, and molecular"
        " dynamics does not conserve energy; prefer celu, silu or gelu"
    )
