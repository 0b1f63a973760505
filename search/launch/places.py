"""The places where workers can be started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from search.launch.kubernetes import kubernetes_provider
from search.launch.local import local_provider
from search.launch.slurm import slurm_provider

if TYPE_CHECKING:
    from parsl.providers.base import ExecutionProvider

    from search.launch.plan import LaunchPlan

PLACES: Mapping[str, Callable[[LaunchPlan], ExecutionProvider]] = MappingProxyType(
    {
        "local": local_provider,
        "slurm": slurm_provider,
        "kubernetes": kubernetes_provider,
    }
)
