"""What is asked of each place. Slurm is real in ``test_slurm.py``; Kubernetes is a client that listens."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes
import pytest

from search.errors import LaunchError
from search.launch.config import KubernetesConfig, LaunchConfig, SlurmConfig
from search.launch.places import PLACES
from search.launch.plan import LaunchPlan


@pytest.fixture
def plan(tmp_path: Path) -> LaunchPlan:
    return LaunchPlan("tiny-1", 2, 3, tmp_path, LaunchConfig(setup="module load cuda"), ("tiny",))


class Listening:
    """Takes the place of Kubernetes' API: pods are kept as they would be sent."""

    def __init__(self) -> None:
        self.pods: list[dict[str, Any]] = []
        self.deleted: list[str] = []

    def create_namespaced_pod(self, namespace: str, body: Any) -> Any:
        assert isinstance(body, kubernetes.client.V1Pod)
        plain = kubernetes.client.ApiClient().sanitize_for_serialization(body)
        self.pods.append({"namespace": namespace, **plain})
        return body

    def delete_namespaced_pod(self, name: str, namespace: str, body: Any) -> Any:
        self.deleted.append(name)
        return kubernetes.client.V1Pod()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Listening:
    listening = Listening()
    monkeypatch.setattr(kubernetes.config, "load_kube_config", lambda: None)
    monkeypatch.setattr(kubernetes.client, "CoreV1Api", lambda: listening)
    return listening


def test_a_pod_has_gpus_secrets_volumes_and_time_to_end(
    api: Listening, plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANITUNE_ARTIFACTS", "database")
    wanted = KubernetesConfig(
        image="registry/anitune:1",
        namespace="chem",
        cores=8,
        memory="32Gi",
        secrets=("anitune-database",),
        pull_secret="registry",
        service_account="launcher",
        volumes={"anitune-home": "/data"},
    )
    plan = replace(plan, home=Path("/data"), config=replace(plan.config, kubernetes=wanted))
    provider = PLACES["kubernetes"](plan)
    job = provider.submit("anitune_block process_worker_pool.py", 1, "parsl.workers.block-0")

    (pod,) = api.pods
    spec = pod["spec"]
    (container,) = spec["containers"]
    assert pod["namespace"] == "chem"
    assert pod["metadata"]["name"].startswith("tiny-1.")
    assert container["image"] == "registry/anitune:1"
    amounts = {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "2"}
    assert container["resources"] == {"limits": amounts, "requests": amounts}
    assert container["env"] == [
        {"name": "ANITUNE_HOME", "value": "/data"},
        {"name": "ANITUNE_ARTIFACTS", "value": "database"},
    ]
    assert container["envFrom"] == [{"secretRef": {"name": "anitune-database"}}]
    assert container["volumeMounts"] == [{"mountPath": "/data", "name": "anitune-home"}]
    assert "ports" not in container
    (script,) = container["args"][1:]
    assert script.index("module load cuda") < script.index("anitune_block() {")
    assert script.rstrip().endswith("anitune_block process_worker_pool.py")
    assert spec["volumes"] == [
        {"name": "anitune-home", "persistentVolumeClaim": {"claimName": "anitune-home"}}
    ]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["serviceAccountName"] == "launcher"
    assert spec["restartPolicy"] == "Never"
    assert spec["terminationGracePeriodSeconds"] == 60
    assert (provider.nodes_per_block, provider.init_blocks, provider.max_blocks) == (1, 3, 3)

    provider.cancel([job])
    assert api.deleted == [pod["metadata"]["name"]]


@pytest.mark.usefixtures("api")
def test_a_pod_without_gpus_asks_for_none(api: Listening, plan: LaunchPlan) -> None:
    config = replace(plan.config, kubernetes=KubernetesConfig(image="a"))
    PLACES["kubernetes"](replace(plan, gpus_per_node=0, config=config)).submit("pool", 1, "a")
    (container,) = api.pods[0]["spec"]["containers"]
    assert set(container["resources"]["limits"]) == {"cpu", "memory"}


def test_a_cluster_that_is_not_configured_is_one_line(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    config = replace(plan.config, kubernetes=KubernetesConfig(image="a"))
    with pytest.raises(LaunchError, match="no Kubernetes cluster is configured here"):
        PLACES["kubernetes"](replace(plan, config=config))


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("local", "--on local has one node"),
        ("slurm", "section slurm: and its walltime"),
        ("kubernetes", "section kubernetes: and its image"),
    ],
)
def test_what_a_place_needs_is_one_line(plan: LaunchPlan, place: str, words: str) -> None:
    from trainer.errors import ConfigError

    with pytest.raises(ConfigError, match=words):
        PLACES[place](plan)


def test_slurm_that_is_not_here_is_one_line(plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    config = replace(plan.config, slurm=SlurmConfig(walltime="01:00:00"))
    with pytest.raises(LaunchError, match="there is no sbatch here"):
        PLACES["slurm"](replace(plan, config=config))


def test_kubernetes_without_its_package_is_one_line(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes.config", None)
    config = replace(plan.config, kubernetes=KubernetesConfig(image="a"))
    with pytest.raises(LaunchError, match=r"pip install 'anitune\[kubernetes\]'"):
        PLACES["kubernetes"](replace(plan, config=config))


def test_each_worker_has_a_name_and_a_log(plan: LaunchPlan, tmp_path: Path) -> None:
    folder = tmp_path / "launches" / "tiny-1"
    assert plan.workers == {f"tiny-1.{n}": folder / f"worker-{n}.log" for n in range(6)}
    assert list(replace(plan, gpus_per_node=0, nodes=1).workers) == ["tiny-1.0"]
