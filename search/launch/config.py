"""The launch file: settings of the machines on which workers are started."""

from __future__ import annotations

import re
from dataclasses import field
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from search.documents import read_document
from trainer.config import STRICT, load_config

_SECRET = re.compile(r"(PASSWORD|SECRET|TOKEN|ACCESS_KEY)=|://[^/\s:@]+:[^/\s@]+@", re.IGNORECASE)


def _without_secrets(setup: str) -> str:
    if _SECRET.search(setup):
        raise ValueError(
            "do not put a password or a token in a launch file: workers take them from the environment of"
            " anitune launch, and on Kubernetes from the secrets that kubernetes.secrets names"
        )
    return setup


@dataclass(frozen=True, config=STRICT)
class SlurmConfig:
    """Options of sbatch for jobs of one node each."""

    walltime: Annotated[
        str,
        Field(pattern=r"^\d+:[0-5]\d:[0-5]\d$", description="of a job, HH:MM:SS"),
    ]
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    cores_per_node: Annotated[int | None, Field(ge=1)] = None
    memory_gb: Annotated[int | None, Field(ge=1, description="of a node")] = None
    exclusive: Annotated[bool, Field(description="share nodes with no other job")] = False


@dataclass(frozen=True, config=STRICT)
class KubernetesConfig:
    """Settings of the pods, one per node."""

    image: Annotated[str, Field(min_length=1)]
    namespace: str = "default"
    cores: Annotated[int, Field(ge=1)] = 4
    memory: Annotated[str, Field(pattern=r"^\d+(Ki|Mi|Gi|Ti)$", description="such as 16Gi")] = "16Gi"
    gpu_resource: Annotated[str, Field(description="what the cluster calls a GPU")] = "nvidia.com/gpu"
    secrets: Annotated[
        tuple[str, ...], Field(description="secrets whose entries are variables of the workers")
    ] = ()
    pull_secret: str | None = None
    service_account: str | None = None
    volumes: Annotated[dict[str, str], Field(description="claim: folder where it is mounted")] = field(
        default_factory=dict
    )


@dataclass(frozen=True, config=STRICT)
class LaunchConfig:
    """A launch file: shared settings, and a section for each kind of place."""

    setup: Annotated[
        str,
        Field(description="shell lines that run before the workers, such as module load"),
        AfterValidator(_without_secrets),
    ] = ""
    address: Annotated[
        str | None,
        Field(description="address at which workers on other machines reach this one; null: its host name"),
    ] = None
    slurm: SlurmConfig | None = None
    kubernetes: KubernetesConfig | None = None


def load_launch(path: Path) -> LaunchConfig:
    """Read and check a launch file.

    Raises
    ------
    StudyFileError, ConfigError
        with one line that names the file, the key and its line.
    """
    document = read_document(path)
    return load_config(LaunchConfig, document.values, str(path), document.lines)
