"""Workers in Kubernetes pods, one pod per node."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from search.errors import LaunchError
from search.launch.shell import GRACE_SECONDS
from storage.settings import ARTIFACTS_VARIABLE, HOME_VARIABLE
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from parsl.providers.base import ExecutionProvider

    from search.launch.config import KubernetesConfig
    from search.launch.plan import LaunchPlan


def kubernetes_provider(plan: LaunchPlan) -> ExecutionProvider:
    """Make a provider of pods with GPUs, variables from secrets, and time to hand trials back.

    Raises
    ------
    ConfigError
        if the launch file names no image.
    LaunchError
        if the package kubernetes or the configuration of a cluster is missing.
    """
    wanted = plan.config.kubernetes
    if wanted is None:
        raise ConfigError(
            "--on kubernetes needs a launch file (--file) with a section kubernetes: and its image"
        )
    try:
        from kubernetes.config import ConfigException
    except ModuleNotFoundError:
        raise LaunchError("Kubernetes needs one more package: pip install 'anitune[kubernetes]'") from None
    from parsl.providers import KubernetesProvider

    gpus = {wanted.gpu_resource: str(plan.gpus_per_node)} if plan.gpus_per_node else {}
    try:
        provider = KubernetesProvider(
            image=wanted.image,
            namespace=wanted.namespace,
            max_cpu=wanted.cores,
            init_cpu=wanted.cores,
            max_mem=wanted.memory,
            init_mem=wanted.memory,
            extra_limits=gpus,
            extra_requests=gpus,
            secret=wanted.pull_secret,
            service_account_name=wanted.service_account,
            persistent_volumes=list(wanted.volumes.items()),
            pod_name=plan.name.lower(),
            worker_init=plan.init,
            **plan.scaling,
        )
    except ConfigException as error:
        raise LaunchError(f"no Kubernetes cluster is configured here: {error}") from None
    variables = {HOME_VARIABLE: str(plan.home)}
    if artifacts := os.environ.get(ARTIFACTS_VARIABLE):
        variables[ARTIFACTS_VARIABLE] = artifacts
    provider.kube_client = _CompletePods(provider.kube_client, wanted, variables)  # type: ignore[assignment]
    return provider


class _CompletePods:
    """The Kubernetes API, with pod settings that Parsl does not offer: variables, secrets, time to end."""

    def __init__(self, api: Any, config: KubernetesConfig, variables: dict[str, str]) -> None:
        self._api = api
        self._config = config
        self._variables = variables

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    def create_namespaced_pod(self, namespace: str, body: Any) -> Any:
        from kubernetes import client  # of the extra kubernetes

        body.spec.restart_policy = "Never"  # Parsl replaces a pod that ended
        body.spec.termination_grace_period_seconds = GRACE_SECONDS
        (container,) = body.spec.containers
        container.env = [client.V1EnvVar(name=name, value=value) for name, value in self._variables.items()]
        container.env_from = [
            client.V1EnvFromSource(secret_ref=client.V1SecretEnvSource(name=secret))
            for secret in self._config.secrets
        ]
        container.ports = None  # nobody connects to a worker
        return self._api.create_namespaced_pod(namespace=namespace, body=body)
