"""docker-compose.yml, really run: who gets in, what is published, and a study that survives what breaks."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from conftest import Server

pytestmark = [pytest.mark.compose, pytest.mark.timeout(3600)]  # the images are built within the first test

FILE = Path(__file__).parents[2] / "docker-compose.yml"
TRIALS = 10
STUDY = f"""
name: team
data: {{files: [sample]}}
training: {{epochs: 60, device: cpu}}
space:
  layers: {{low: 1, high: 2}}
  width: {{low: 8, high: 16, step: 8}}
  batch_size: {{choices: [64, 128]}}
sampler: {{kind: random}}
pruner: {{kind: none}}
limits: {{trials: {TRIALS}}}
"""

#: A page, what a page asks for, and what a program asks for, of both dashboards.
PATHS = (
    "/",
    "/api/2.0/mlflow/experiments/search?max_results=1",
    "/dashboard/",
    "/api/meta",
    "/api/studies",
)
Patiently = Callable[..., None]


def test_images_are_pinned_and_workers_reserve_a_gpu() -> None:
    services = yaml.safe_load(FILE.read_text())["services"]
    images = re.findall(r"_IMAGE:-([^}]*)}", FILE.read_text())
    assert len(images) >= 3
    assert all(re.fullmatch(r"[a-z-]+:\d+\.\d+.*", image) for image in images)
    (device,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


@pytest.mark.parametrize("path", PATHS)
def test_only_the_password_opens_the_dashboards(server: Server, path: str) -> None:
    right = server.secrets["gateway-password"]
    assert server.get(path, None).status_code == 401
    assert server.get(path, right[:-1]).status_code == 401
    assert server.get(path, right).status_code == 200


def test_each_path_leads_to_its_dashboard(server: Server) -> None:
    password = server.secrets["gateway-password"]
    assert "<title>MLflow</title>" in server.get("/", password).text
    assert "Optuna Dashboard" in server.get("/dashboard/", password).text
    to_mlflow = server.get("/mlflow", password)
    assert to_mlflow.headers["location"] == f"https://localhost:{server.port}/"


@pytest.mark.parametrize(
    "url",
    ["http://mlflow:5000/api/2.0/mlflow/experiments/search?max_results=1", "http://optuna:8080/api/studies"],
)
def test_a_neighbour_needs_the_token_and_calls_a_server_by_its_name(server: Server, url: str) -> None:
    code = (
        "import urllib.request as r, urllib.error as e\n"
        "token = open('/run/secrets/dashboards-token').read()\n"
        "for host in ('localhost', 'evil.example', '10.evil.com'):\n"
        "    for sent in ({}, {'Authorization': f'Bearer {token}'}):\n"
        f"        try: print(r.urlopen(r.Request('{url}', headers={{'Host': host, **sent}})).status)\n"
        "        except e.HTTPError as error: print(error.code)\n"
    )
    answers = server.compose("exec", "-T", "optuna", "python", "-c", code).split()
    assert answers == ["401", "200", *["403"] * 4]


def test_the_assistant_is_refused_to_who_knows_the_password(server: Server) -> None:
    password = server.secrets["gateway-password"]
    assert server.get("/ajax-api/3.0/mlflow/assistant/config", password).status_code == 403


def test_programs_of_the_team_reach_mlflow_by_the_password(server: Server) -> None:
    password = server.secrets["gateway-password"]
    found = server.get("/api/2.0/mlflow/experiments/search?max_results=9", password).json()
    assert "Default" in {experiment["name"] for experiment in found["experiments"]}


def test_only_the_gateway_is_published(server: Server) -> None:
    published = {
        (container["Config"]["Labels"]["com.docker.compose.service"], int(binding["HostPort"]))
        for container in server.containers()
        for bindings in container["NetworkSettings"]["Ports"].values()
        for binding in bindings or []
    }
    assert published == {("gateway", server.port)}
    assert [port for port in server.silent_ports if port != server.port and _answers(port)] == []
    (inside,) = json.loads(server.engine.docker("network", "inspect", f"{server.project}_inside"))
    assert inside["Internal"]


def test_containers_have_few_rights(server: Server) -> None:
    containers = server.containers()
    assert len(containers) == 5
    for container in containers:
        name, host = container["Name"], container["HostConfig"]
        assert container["Config"]["User"] not in ("", "0", "root"), name
        assert host["ReadonlyRootfs"], name
        assert not host["Privileged"], name
        assert host["CapDrop"] == ["ALL"], name
        assert "no-new-privileges:true" in host["SecurityOpt"], name


@pytest.mark.parametrize("database", ["anitune", "postgres", "template1"])
def test_mlflow_can_enter_no_other_database(server: Server, database: str) -> None:
    tried = server.compose(
        "run", "--rm", "-T", "--no-deps", "--entrypoint", "with-passwords", "mlflow", "python", "-c",
        "import psycopg\n"
        f"try: psycopg.connect('host=postgres user=mlflow dbname={database}')\n"
        "except psycopg.OperationalError as error: print(error)",
    )  # fmt: skip
    assert "permission denied for database" in tried


def test_a_study_survives_a_killed_worker_and_a_restart_of_the_database(
    server: Server, patiently: Patiently, print_report: Callable[[Iterable[str]], None]
) -> None:
    (server.folder / "examples" / "team.yaml").write_text(STUDY)
    server.compose("run", "--rm", "-T", "anitune", "study", "create", "/studies/team.yaml")
    server.compose("up", "--detach", "--scale", "worker-cpu=2", "worker-cpu")
    workers = [container["Id"] for container in server.containers("worker-cpu")]
    assert len(workers) == 2

    patiently(lambda: _states(server).get("complete", 0) > 0, "a first trial", 600, poll=5)
    # All but process 1, which ends as its child did: to the engine the container has crashed.
    server.engine.docker("exec", workers[0], "sh", "-c", "kill -9 -1", check=False)
    patiently(lambda: _inspect(server, workers[0])["RestartCount"] > 0, "a restart of the worker", 60)
    server.compose("restart", "postgres")
    (postgres,) = (container["Id"] for container in server.containers("postgres"))
    patiently(lambda: _is_healthy(server, postgres), "postgres", 60)
    patiently(lambda: _states(server).get("complete", 0) == TRIALS, "the study's end", 1200, poll=5)
    # Both wait for other studies, also the one that was started again.
    patiently(lambda: all(_is_healthy(server, worker) for worker in workers), "the workers' health", 120)
    server.anitune("sync", "team")

    verified = json.loads(server.anitune("study", "verify", "team", "--json"))
    shown = json.loads(server.anitune("study", "show", "team", "--json"))
    numbers = [row["trial"] for row in shown["rows"]]
    print_report(
        [
            "docker-compose.yml, 2 workers: 1 container killed, PostgreSQL restarted",
            f"{TRIALS:>6}  trials asked for",
            f"{shown['trials'].get('complete', 0):>6}  complete",
            f"{len(set(range(TRIALS)) - set(numbers)):>6}  lost",
            f"{len(numbers) - len(set(numbers)):>6}  duplicated",
            f"{len(set(numbers) - set(range(TRIALS))):>6}  too many",
            f"{len(verified['differences']):>6}  differences between SQL, Optuna and MLflow",
        ]
    )
    assert verified["differences"] == []
    assert {state: count for state, count in shown["trials"].items() if count} == {"complete": TRIALS}
    assert sorted(numbers) == list(range(TRIALS))
    assert max(row["attempt"] for row in shown["rows"]) > 1, "the killed worker's trial was taken over"
    password = server.secrets["gateway-password"]
    assert _artifacts(server, shown["rows"][0]["mlflow_run_id"])
    assert '"team"' in server.get("/api/studies", password).text


def test_no_secret_is_shown(server: Server) -> None:
    ids = [container["Id"] for container in server.containers()]
    running = server.engine.docker("ps", "--quiet", "--filter", f"name={server.project}").split()
    shown = {
        "docker inspect": server.engine.docker("inspect", *ids),
        "docker logs": server.compose("logs", "--no-color"),
        "processes": "".join(server.engine.docker("top", each, "-eo", "pid,args") for each in running),
        "images": "".join(
            server.engine.docker("history", "--no-trunc", image)
            for image in ("anitune-test", "anitune-test-gateway")
        ),
        "environment": server.compose("exec", "-T", "optuna", "sh", "-c", "cat /proc/[0-9]*/environ; true"),
    }
    found = {
        (place, name)
        for place, text in shown.items()
        for name, secret in server.secrets.items()
        if secret in text
    }
    assert len(server.secrets) == 5
    assert all(shown.values())
    assert found == set()


def _states(server: Server) -> dict[str, int]:
    states: dict[str, int] = json.loads(server.anitune("study", "show", "team", "--json"))["trials"]
    return states


def _inspect(server: Server, container: str) -> dict[str, Any]:
    (found,) = json.loads(server.engine.docker("inspect", container))
    return dict(found)


def _is_healthy(server: Server, container: str) -> bool:
    return bool(_inspect(server, container)["State"]["Health"]["Status"] == "healthy")


def _artifacts(server: Server, run: str) -> list[Any]:
    password = server.secrets["gateway-password"]
    answer = server.get(f"/api/2.0/mlflow/artifacts/list?run_id={run}", password)
    return list(answer.raise_for_status().json().get("files", []))


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
