"""A real study with secrets in all its settings: a PostgreSQL and an MLflow that ask for passwords, and S3.

Everything that it says and leaves behind is then searched for them.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from typer.testing import CliRunner

from dashboards.environment import mlflow_environment
from dashboards.servers import run_dashboards
from search.cli.main import app
from storage.postgresql import PostgreSQL
from storage.settings import Settings

# MLflow and boto3 use what is deprecated elsewhere; our own warnings stay errors.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:(mlflow|boto)")]

START_SECONDS = 180.0
BUCKET = "anitune"
STUDY = """
name: tiny
data: {{files: [{data}]}}
training: {{epochs: 3, hidden: [8], device: cpu, checkpoint_seconds: 0}}
pruner: {{kind: none}}
limits: {{trials: 2}}
"""


@dataclass(frozen=True)
class Secrets:
    """Random words that must not appear anywhere."""

    database: str = field(default_factory=lambda: secrets.token_hex(16))
    mlflow: str = field(default_factory=lambda: secrets.token_hex(16))
    bucket: str = field(default_factory=lambda: secrets.token_hex(16))
    wrong: str = field(default_factory=lambda: secrets.token_hex(16))

    def found_in(self, content: bytes) -> list[str]:
        """The names of those that are in the content, as they are or as sign-in by HTTP writes them."""
        found = []
        for name, secret in vars(self).items():
            signed_in = base64.b64encode(f"admin:{secret}".encode())
            if secret.encode() in content or signed_in.rstrip(b"=") in content:
                found.append(name)
        return found


@dataclass(frozen=True)
class Site:
    """What a team has before it comes to anitune."""

    folder: Path
    secrets: Secrets
    postgresql: PostgreSQL
    mlflow: str
    s3: str

    def database_url(self, name: str, password: str | None = None) -> str:
        url = self.postgresql.url(name).replace("anitune@", f"ann:{password or self.secrets.database}@", 1)
        return url.replace("postgresql://", "postgresql+psycopg://", 1)

    @property
    def tracking_uri_with_password(self) -> str:
        return self.mlflow.replace("http://", f"http://admin:{self.secrets.mlflow}@")

    @property
    def cloud(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "team",
            "AWS_SECRET_ACCESS_KEY": self.secrets.bucket,
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_S3_ENDPOINT_URL": self.s3,
        }

    def tables(self, database: str) -> dict[str, bytes]:
        """Everything that is in a database."""
        with psycopg.connect(self.postgresql.url(database)) as connection:
            query = "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname = 'public'"
            names = [name for (name,) in connection.execute(query)]
            assert len(names) > 10
            rows = {
                name: connection.execute(f"SELECT t::text FROM {name} t").fetchall()  # type: ignore[arg-type]
                for name in names
            }
        return {f"{database}: {name}": repr(found).encode() for name, found in rows.items()}

    def objects(self) -> dict[str, bytes]:
        """Everything that is in the bucket."""
        client = bucket_client(self)
        listed = client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return {
            f"s3: {each['Key']}": client.get_object(Bucket=BUCKET, Key=each["Key"])["Body"].read()
            for each in listed
        }


def bucket_client(site: Site) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=site.s3,
        aws_access_key_id="team",
        aws_secret_access_key=site.secrets.bucket,
        region_name="us-east-1",
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def running(log: Path, environment: Mapping[str, str], *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a session of its own, until the end of the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=5).status_code < 500
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        # Not below pytest's folder: root runs PostgreSQL as another user, who must be able to reach it.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="anitune-secrets-")))
        folder.chmod(0o755)
        postgresql = PostgreSQL(folder / "postgresql", folder / "postgresql.log")
        ports = free_port(), free_port()
        site = Site(
            folder, Secrets(), postgresql, f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
        )
        postgresql.start()
        stack.callback(postgresql.stop)
        make_databases(site)

        log = folder / "s3.log"
        s3 = stack.enter_context(
            running(log, {}, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(ports[1]))
        )
        wait_for(lambda: answers(site.s3), s3, log)
        bucket_client(site).create_bucket(Bucket=BUCKET)

        users = folder / "users.ini"
        users.write_text(
            "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
            f"database_uri = sqlite:///{folder / 'users.db'}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        behind = Settings(folder, "sqlite:///none.db", site.database_url("tracking"))
        environment = {
            **mlflow_environment(behind, ""),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_UVICORN_OPTS": "--no-access-log",
            **site.cloud,
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
            "MLFLOW_AUTH_CONFIG_PATH": str(users),
            "MLFLOW_AUTH_ADMIN_PASSWORD": site.secrets.mlflow,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        }
        place = ["--host", "127.0.0.1", "--port", str(ports[0]), "--workers", "1"]
        log = folder / "mlflow.log"
        mlflow = stack.enter_context(
            running(log, environment, "-m", "mlflow", "server", "--app-name", "basic-auth", *place)
        )
        wait_for(lambda: answers(f"{site.mlflow}/health"), mlflow, log)
        yield site


def make_databases(site: Site) -> None:
    with psycopg.connect(site.postgresql.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE ann LOGIN PASSWORD '{site.secrets.database}'")
        for name in ("records", "tracking"):
            connection.execute(f"CREATE DATABASE {name} OWNER ann")
        rules = site.postgresql.data / "pg_hba.conf"
        rules.write_text(f"local all ann scram-sha-256\n{rules.read_text()}")
        connection.execute("SELECT pg_reload_conf()")


class Said:
    """Runs commands, and keeps all that they say."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self.words: dict[str, bytes] = {}
        self.processes: set[str] = set()
        """Command lines of all processes of the machine, as they were seen."""

    def anitune(self, *arguments: str, code: int = 0, **environment: str) -> str:
        process = subprocess.Popen(
            [sys.executable, "-m", "search.cli.main", *arguments],
            env={**os.environ, **self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with ThreadPoolExecutor(1) as pool:
            output = pool.submit(process.communicate, timeout=600)
            while not output.done():
                for each in psutil.process_iter(["cmdline"]):
                    self.processes.add(" ".join(each.info["cmdline"] or ()))
                time.sleep(0.2)
        said, complained = output.result()
        self.words[f"{' '.join(arguments)} ({len(self.words)})"] = said + complained
        assert process.returncode == code, complained.decode()
        return str(said.decode())


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def home(site: Site) -> Path:
    return site.folder / "home"


@pytest.fixture(scope="module")
def said(site: Site, home: Path, data_file: Path) -> Said:
    """The study was run, checked and looked at."""
    said = Said(
        {
            "ANITUNE_HOME": str(home),
            "ANITUNE_STORAGE_URL": site.database_url("records"),
            "ANITUNE_TRACKING_URI": site.mlflow,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": site.secrets.mlflow,
            **site.cloud,
        }
    )
    file = site.folder / "study.yaml"
    file.write_text(STUDY.format(data=data_file))
    said.anitune("study", "run", str(file), "--pack", "2")
    return said


def test_an_mlflow_with_sign_in_and_artifacts_on_s3_has_all_of_a_study(
    site: Site, home: Path, said: Said
) -> None:
    assert httpx.get(f"{site.mlflow}/api/2.0/mlflow/experiments/search?max_results=1").status_code == 401
    verified = json.loads(said.anitune("study", "verify", "tiny", "--json"))
    assert verified["differences"] == []
    assert verified["artifacts"] > 0
    keys = {name.rsplit("/", 1)[-1] for name in site.objects()}
    assert {"study.json", "model.safetensors", "config.json", "loss.png"} <= keys
    assert not (home / "mlartifacts").exists()


def test_no_secret_is_said_or_left_behind(site: Site, home: Path, said: Said) -> None:
    said.anitune("workers", "--json")
    said.anitune("study", "show", "tiny")
    # The same MLflow, with the password in its address.
    in_url = {"ANITUNE_TRACKING_URI": site.tracking_uri_with_password, "MLFLOW_TRACKING_PASSWORD": ""}
    said.anitune("sync", "tiny", "--again", **{**in_url, "MLFLOW_TRACKING_USERNAME": ""})
    with run_dashboards(Settings(home, site.database_url("records"), site.tracking_uri_with_password)):
        said.processes |= {" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"])}

    searched = {
        **said.words,
        **{line: line.encode() for line in said.processes},
        **files_below(home),
        **{str(log): log.read_bytes() for log in site.folder.glob("*.log")},
        "users.db": (site.folder / "users.db").read_bytes(),
        **site.tables("records"),
        **site.tables("tracking"),
        **site.objects(),
    }
    assert [name for name in searched if "search.cli.main relay" in name], "no process was looked at"
    assert [name for name in searched if "/logs/relay-tiny.log" in name]
    assert [name for name in searched if "/checkpoint.safetensors" in name]
    assert {
        name: found for name, content in searched.items() if (found := site.secrets.found_in(content))
    } == {}


def test_errors_tell_no_secret(site: Site, said: Said) -> None:
    wrong, right = site.secrets.wrong, site.secrets.mlflow
    no_user = {"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""}
    places = {
        "wrong password of the database": {"ANITUNE_STORAGE_URL": site.database_url("records", wrong)},
        "no database there": {"ANITUNE_STORAGE_URL": f"postgresql://ann:{right}@127.0.0.1:1/x"},
        "no such database": {"ANITUNE_STORAGE_URL": site.database_url("absent")},
        "no such driver": {"ANITUNE_STORAGE_URL": f"postgresql+nosuch://ann:{right}@127.0.0.1/x"},
        "no such kind": {"ANITUNE_STORAGE_URL": f"mysql://ann:{right}@127.0.0.1/x?password={wrong}"},
        "one database for both": {"ANITUNE_TRACKING_URI": site.database_url("records")},
        "wrong password of MLflow": {"MLFLOW_TRACKING_PASSWORD": wrong},
        "wrong password in its address": {
            "ANITUNE_TRACKING_URI": site.mlflow.replace("://", f"://admin:{wrong}@"),
            **no_user,
        },
        "no MLflow there": {"ANITUNE_TRACKING_URI": f"http://admin:{right}@127.0.0.1:1", **no_user},
        "MLflow's own database": {
            "ANITUNE_TRACKING_URI": f"postgresql+psycopg://ann:{right}@127.0.0.1:1/mlflow"
        },
    }
    for name, place in places.items():
        runner = CliRunner(env={**said.environment, **place})
        plain = runner.invoke(app, ["study", "verify", "tiny"])
        assert plain.exit_code in (1, 2), (name, plain.output)
        *course, line = plain.stderr.splitlines()
        assert course in ([], ["tiny: comparing SQL, Optuna and MLflow ..."]), (name, plain.output)
        assert line.startswith("anitune: "), (name, plain.output)
        debug = runner.invoke(app, ["--debug", "study", "verify", "tiny"])
        assert debug.exc_info is not None
        traceback_ = "".join(traceback.format_exception(*debug.exc_info))
        assert "Traceback" in traceback_
        for words in (plain.output, debug.output, traceback_):
            assert site.secrets.found_in(words.encode()) == [], (name, words)


def test_the_search_finds_what_it_looks_for(site: Site, tmp_path: Path) -> None:
    for name, secret in vars(site.secrets).items():
        (tmp_path / "leak").write_text(f"--password={secret}\n")
        (content,) = files_below(tmp_path).values()
        assert site.secrets.found_in(content) == [name]
    request = httpx.Request("GET", "http://x")
    sent = next(httpx.BasicAuth("admin", site.secrets.mlflow).auth_flow(request))
    assert site.secrets.found_in(sent.headers["Authorization"].encode()) == ["mlflow"]
    with psycopg.connect(site.postgresql.url("records"), autocommit=True) as connection:
        connection.execute(f"CREATE TABLE leak AS SELECT '{site.secrets.database}' AS word")
    leaks = {name: site.secrets.found_in(content) for name, content in site.tables("records").items()}
    assert {name for name, found in leaks.items() if found} == {"records: public.leak"}
