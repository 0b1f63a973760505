"""Workers in Slurm jobs, one job per node."""

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
    """Make a provider of Slurm jobs that get a signal some time before they end.

    Raises
    ------
    ConfigError
        if the launch file has no section ``slurm``, which sets the walltime.
    LaunchError
        if this machine has no Slurm.
    """
    # Parsl is in the extra launch; the command line names the places without it.
    from parsl.launchers import SimpleLauncher
    from parsl.providers import SlurmProvider

    slurm = plan.config.slurm
    if slurm is None:
        raise ConfigError("--on slurm needs a launch file (--file) with a section slurm: and its walltime")
    if shutil.which("sbatch") is None:
        raise LaunchError("there is no sbatch here: launch from a machine that can submit Slurm jobs")
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
        # The signal goes to the batch shell alone (B), which handles it: see search.launch.shell.
        scheduler_options=f"#SBATCH --signal=B:TERM@{GRACE_SECONDS}",
        worker_init=plan.init,
        launcher=SimpleLauncher(),
        **plan.scaling,
    )
