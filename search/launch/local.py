"""Workers on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.errors import ConfigError

if TYPE_CHECKING:
    from parsl.providers.base import ExecutionProvider

    from search.launch.plan import LaunchPlan

ADDRESS = "127.0.0.1"


def local_provider(plan: LaunchPlan) -> ExecutionProvider:
    """One block of processes here.

    Raises
    ------
    ConfigError
        for more than one node.
    """
    from parsl.launchers import SimpleLauncher
    from parsl.providers import LocalProvider

    if plan.nodes > 1:
        raise ConfigError("--on local is one node: leave --nodes away, or choose slurm or kubernetes")
    return LocalProvider(  # type: ignore[no-untyped-call]
        worker_init=plan.init, launcher=SimpleLauncher(), **plan.scaling
    )
