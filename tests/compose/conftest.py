"""A team's server in containers, from docker-compose.yml as it stands: built, brought up, and taken away.

Where no image can be pulled, the base images are made here of Debian's packages, and what pip would install
in the build is handed to it as a folder of wheels.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]
IMAGES = Path(__file__).parent / "images"
PROJECT = "anitune-test"
#: Not by their usual names: this machine may have a server of its own.
OURS = {"ANITUNE_IMAGE": "anitune-test", "ANITUNE_GATEWAY_IMAGE": "anitune-test-gateway"}
BASE = "anitune-test-debian"
#: What Python's, Caddy's and PostgreSQL's official images bring.
DEBIAN_PACKAGES = "ca-certificates,python3,python3-venv,postgresql,caddy,wget"
INNER_PORTS = (5000, 5432, 8080, 8081, 8443)
PULL_SECONDS = 120.0
START_SECONDS = 120.0


@dataclass(frozen=True)
class Engine:
    """A Docker engine: the environment by which its clients find it, and how Compose is called here."""

    environment: Mapping[str, str]
    compose: tuple[str, ...]

    def docker(self, *arguments: str, check: bool = True) -> str:
        return _run(["docker", *arguments], self.environment, check=check)


class Server:
    """The containers of docker-compose.yml in a folder with its ``.env`` and secrets.

    Attributes
    ----------
    port : the gateway's on this machine
    silent_ports : ports that services listen on inside, and where nothing answered here before
    """

    user = "team"

    project = PROJECT

    def __init__(self, engine: Engine, folder: Path, port: int, silent_ports: list[int]) -> None:
        self.engine = engine
        self.folder = folder
        self.port = port
        self.silent_ports = silent_ports

    @cached_property
    def secrets(self) -> dict[str, str]:
        return {file.name: file.read_text().strip() for file in (self.folder / "secrets").iterdir()}

    def compose(self, *arguments: str, check: bool = True) -> str:
        command = [*self.engine.compose, "--project-name", self.project, *arguments]
        return _run(command, self.engine.environment, folder=self.folder, check=check)

    def is_open(self) -> bool:
        """Whether the gateway, which starts last, has made its certificate and answers."""
        try:
            return self.get("/", None).status_code == 401
        except (AssertionError, httpx.TransportError):  # there is no certificate yet, or it is not used yet
            return False

    def containers(self, service: str | None = None) -> list[dict[str, Any]]:
        """What ``docker inspect`` says of the containers, also of those that have ended."""
        label = f"label=com.docker.compose.project={self.project}"
        filters = ["--filter", label]
        if service is not None:
            filters += ["--filter", f"label=com.docker.compose.service={service}"]
        ids = self.engine.docker("ps", "--all", "--quiet", *filters).split()
        return json.loads(self.engine.docker("inspect", *ids)) if ids else []

    def anitune(self, *arguments: str) -> str:
        """A command in a container that runs already, which is quicker than in one of its own."""
        return self.compose("exec", "-T", "optuna", "anitune", *arguments)

    def get(self, path: str, password: str | None) -> httpx.Response:
        """What the gateway answers; its certificate must be right."""
        auth = (self.user, password) if password is not None else None
        url = f"https://localhost:{self.port}{path}"
        return httpx.get(url, auth=auth, verify=self._trust, trust_env=False, timeout=60.0)

    @cached_property
    def _trust(self) -> ssl.SSLContext:
        root = "/data/caddy/pki/authorities/local/root.crt"
        return ssl.create_default_context(cadata=self.compose("exec", "-T", "gateway", "cat", root))


def answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], bool], what: str, seconds: float, poll: float = 2.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(poll)


@pytest.fixture(scope="session")
def patiently() -> Callable[..., None]:
    """:func:`wait_for`: a test module cannot import from here."""
    return wait_for


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The engine that runs here, or one that is started for these tests, with a folder of its own."""
    compose = _compose()
    if compose is None:
        _missing("Docker Compose")
    if _answers(os.environ):
        yield Engine(os.environ, compose)
        return
    if shutil.which("dockerd") is None:
        _missing("a Docker engine")
    if os.geteuid() != 0:
        _skip("no Docker engine answers, and only root can start one")
    with _engine_of_our_own() as environment:
        yield Engine(environment, compose)


@pytest.fixture(scope="session")
def server(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The whole file, brought up by what README says, with the passwords that ``make secrets`` makes."""
    folder = tmp_path_factory.mktemp("server") / "anitune"
    _copy_clone(folder)
    port = _free_port()
    with ExitStack() as cleaning:
        cleaning.callback(shutil.rmtree, folder, ignore_errors=True)
        cleaning.callback(engine.docker, "rmi", "--force", *OURS.values(), check=False)
        settings = {"ANITUNE_PORT": str(port)} | OURS | _images(engine, folder, cleaning)
        lines = [f"{key}={value}\n" for key, value in settings.items()]
        (folder / ".env").write_text((folder / ".env.example").read_text() + "".join(lines))
        _run(["make", "secrets"], os.environ, folder=folder)
        server = Server(engine, folder, port, [each for each in INNER_PORTS if not answers(each)])
        all_profiles = ("--profile", "cpu", "--profile", "command")
        cleaning.callback(server.compose, *all_profiles, "down", "--volumes", "--remove-orphans", check=False)
        try:
            server.compose("up", "--detach", "--build")
            wait_for(server.is_open, "the gateway", START_SECONDS)
        except AssertionError:
            print(server.compose("logs", "--no-color", check=False))
            raise
        yield server


def _images(engine: Engine, folder: Path, cleaning: ExitStack) -> dict[str, str]:
    """Settings by which images are built: those of a registry, or of ours."""
    text = (folder / "docker-compose.yml").read_text()
    bases = re.findall(r"(?:PYTHON|POSTGRES|CADDY)_IMAGE:-([^}]*)}", text)
    if all(_pulled(engine, base) for base in bases):
        return {}
    if shutil.which("debootstrap") is None:
        _missing("a registry of images, or debootstrap")
    cleaning.callback(engine.docker, "rmi", "--force", f"{BASE}-postgres", BASE, check=False)
    with tempfile.TemporaryDirectory(prefix="anitune-debian-") as debian:
        command = ["debootstrap", "--variant=minbase", f"--include={DEBIAN_PACKAGES}", "bookworm", debian]
        _run(command, os.environ)
        _import(engine, Path(debian))
    engine.docker(
        "build", "--tag", f"{BASE}-postgres", "--file", str(IMAGES / "postgres.Dockerfile"), str(IMAGES)
    )
    wheels = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", "wheels"]
    wanted = ["torch", ".[postgres]", "setuptools>=77"]
    _run([*wheels, "--constraint", "requirements.lock", *wanted], os.environ, folder=folder)
    return {
        "ANITUNE_PYTHON_IMAGE": BASE,
        "ANITUNE_CADDY_IMAGE": BASE,
        "ANITUNE_POSTGRES_IMAGE": f"{BASE}-postgres",
        "ANITUNE_PIP_OPTIONS": "--no-index --find-links wheels",
    }


def _pulled(engine: Engine, image: str) -> bool:
    try:
        subprocess.run(
            ["docker", "pull", "--quiet", image],
            env=dict(engine.environment),
            capture_output=True,
            check=True,
            timeout=PULL_SECONDS,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return False
    return True


def _import(engine: Engine, root: Path) -> None:
    shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run(
            ["docker", "import", "-", BASE],
            env=dict(engine.environment),
            stdin=tar.stdout,
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=600,
        )
    assert tar.returncode == 0


def _copy_clone(folder: Path) -> None:
    """The files of this clone as git has them, and those that are new and not ignored."""
    files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = _run(files, os.environ, folder=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


@contextmanager
def _engine_of_our_own() -> Iterator[dict[str, str]]:
    # Not in pytest's folders: the name of a socket may be some 100 characters long.
    home = Path(tempfile.mkdtemp(prefix="anitune-docker-"))
    environment = {**os.environ, "DOCKER_HOST": f"unix://{home}/docker.sock"}
    arguments = [
        f"--data-root={home}/data",
        f"--exec-root={home}/exec",
        f"--pidfile={home}/docker.pid",
        f"--host={environment['DOCKER_HOST']}",
    ]
    log = home / "dockerd.log"
    bridge = Path("/sys/class/net/docker0")
    there_before = bridge.exists()
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(["dockerd", *arguments], stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers(environment):
                if process.poll() is not None or time.monotonic() > deadline:
                    _skip(f"no Docker engine can be started here: {log.read_text().splitlines()[-1:]}")
                time.sleep(0.5)
            yield environment
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=120)
            if bridge.exists() and not there_before:
                subprocess.run(["ip", "link", "delete", bridge.name], check=False, timeout=300)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _compose() -> tuple[str, ...] | None:
    if shutil.which("docker") is not None:
        asked = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=300)
        if asked.returncode == 0:
            return ("docker", "compose")
    return ("docker-compose",) if shutil.which("docker-compose") is not None else None


def _answers(environment: Mapping[str, str]) -> bool:
    if shutil.which("docker") is None:
        return False
    asked = subprocess.run(["docker", "version"], env=dict(environment), capture_output=True, timeout=300)
    return asked.returncode == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _run(
    command: list[str], environment: Mapping[str, str], *, folder: Path | None = None, check: bool = True
) -> str:
    done = subprocess.run(
        command,
        env=dict(environment),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert not check or done.returncode == 0, (
        f"{' '.join(command)}: {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    )
    return done.stdout


def _missing(what: str) -> None:
    _skip(f"needs {what}: apt-get install docker.io docker-compose debootstrap")


def _skip(reason: str) -> None:
    if os.environ.get("ANITUNE_REQUIRE_SYSTEM") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
