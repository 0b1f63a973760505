"""Workers on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.errors import ConfigError

if TYPE_CHECKING:
    from parsl.providers.base import ExecutionProvider

    from search.launch.plan import LaunchPlan

ADDRESS = "127.0.0.1"


def local_provider(plan: LaunchPlan) -> ExecutionProvider:
    """Make a provider of one block of processes on this machine.

    Raises
    ------
    ConfigError
        if more than one node is wanted.
    """
    # Parsl is in the extra launch; the command line names the places without it.
    from parsl.launchers import SimpleLauncher
    from parsl.providers import LocalProvider

    if plan.nodes > 1:
        raise ConfigError("--on local has one node: leave out --nodes, or choose slurm or kubernetes")
    return LocalProvider(  # type: ignore[no-untyped-call]
        worker_init=plan.init, launcher=SimpleLauncher(), **plan.scaling
    )
