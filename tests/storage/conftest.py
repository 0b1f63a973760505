from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from storage.database import Database, open_database
from storage.settings import Settings, embedded
from storage.studies import Budget, Study, create_study
from storage.trials.queue import WorkerInfo


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Where a test keeps its records: each runs on both databases. They have tables and no rows."""
    settings = embedded(tmp_path / "home")
    if request.param == "sqlite":
        request.getfixturevalue("copy_tables")(settings.home / "anitune.db")
        return settings
    return replace(settings, storage_url=request.getfixturevalue("postgresql_url_with_tables"))


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """As ``settings``, without tables."""
    settings = embedded(tmp_path / "home")
    if request.param == "sqlite":
        return settings
    return replace(settings, storage_url=request.getfixturevalue("postgresql_url"))


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    with open_database(settings) as opened:
        yield opened


@pytest.fixture
def database_away(postgresql_server: str) -> Iterator[Callable[[Database], AbstractContextManager[None]]]:
    """Makes the server let nobody into a database for a block."""
    url = postgresql_server.replace("postgresql://", "postgresql+psycopg://")
    server = create_engine(url, isolation_level="AUTOCOMMIT")

    @contextmanager
    def away(database: Database) -> Iterator[None]:
        name = database.engine.url.database
        with server.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
            connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"),
                {"name": name},
            )
            try:
                yield
            finally:
                connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))

    yield away
    server.dispose()


@pytest.fixture
def make_study(database: Database) -> Callable[..., Study]:
    """Begins a study with a budget."""

    def make(name: str = "widths", **budget: float) -> Study:
        return create_study(database, name, {"sampler": "random"}, Budget(**budget))  # type: ignore[arg-type]

    return make


@pytest.fixture
def worker() -> WorkerInfo:
    return WorkerInfo(name="w1", host="alpha", pid=17, device="cpu", versions={"torch": "2.13.0"})
