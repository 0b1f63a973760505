"""Workers in jobs of Slurm, one job a node."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from search.errors import LaunchError
from search.launch.shell import GRACE_SECONDS
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from parsl.providers.base import ExecutionProvider

    from search.launch.plan import LaunchPlan


def slurm_provider(plan: LaunchPlan) -> ExecutionProvider:
    """Jobs that are told of their end before it comes.

    Raises
    ------
    ConfigError
        if the launch file does not say how long.
    LaunchError
        if there is no Slurm here.
    """
    from parsl.launchers import SimpleLauncher
    from parsl.providers import SlurmProvider

    slurm = plan.config.slurm
    if slurm is None:
        raise ConfigError("--on slurm needs a launch file (--file) with a section slurm: and its walltime")
    if shutil.which("sbatch") is None:
        raise LaunchError("there is no sbatch here: launch from a machine that Slurm's jobs are sent from")
    return SlurmProvider(
        partition=slurm.partition,
        account=slurm.account,
        qos=slurm.qos,
        constraint=slurm.constraint,
        cores_per_node=slurm.cores_per_node,
        mem_per_node=slurm.memory_gb,
        gpus_per_node=plan.gpus_per_node or None,
        walltime=slurm.walltime,
        exclusive=slurm.exclusive,
        # To the batch shell alone (B), which knows what to do: see search.launch.shell.
        scheduler_options=f"#SBATCH --signal=B:TERM@{GRACE_SECONDS}",
        worker_init=plan.init,
        launcher=SimpleLauncher(),
        **plan.scaling,
    )
