"""Which networks have discontinuous forces. It imports no torch, for modules that only show the warning."""

from __future__ import annotations

from collections.abc import Collection

from trainer.networks.activations import ACTIVATIONS


def kink_warning(activations: Collection[str]) -> str | None:
    """Return what is wrong with a model with these activations, to follow "has"; None if it is smooth."""
    kinked = sorted(name for name in {*activations} if name in ACTIVATIONS and ACTIVATIONS[name].kinked)
    if not kinked:
        return None
    return (
        f"the activation {', '.join(kinked)}, whose derivative jumps: its forces are not continuous, and"
        " molecular"
        " dynamics does not conserve energy; prefer celu, silu or gelu"
    )
