from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from storage.addresses import redacted
from storage.errors import SettingsError
from storage.postgresql import DATABASE, PostgreSQL
from storage.settings import (
    ServerAddresses,
    Settings,
    is_of_anitune_up,
    load_settings,
    write_addresses,
)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder, and nothing set."""
    monkeypatch.chdir(tmp_path)
    for variable in ("ANITUNE_HOME", "ANITUNE_STORAGE_URL", "ANITUNE_TRACKING_URI", "ANITUNE_ARTIFACTS"):
        monkeypatch.delenv(variable, raising=False)


def test_with_nothing_set_up_all_lies_in_one_folder(tmp_path: Path) -> None:
    settings = load_settings()

    home = tmp_path / "anitune-data"
    assert settings.home == home
    assert settings.storage_url == f"sqlite:///{home}/anitune.db"
    assert settings.tracking_uri == f"sqlite:///{home}/mlflow.db"
    assert settings.trial_folder("widths", 7) == home / "trials" / "widths" / "00007"
    assert settings.attempt_folder("widths", 7, 2) == home / "trials" / "widths" / "00007" / "attempt-2"
    assert not home.exists()


def test_arguments_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANITUNE_HOME", "/data/ani")
    monkeypatch.setenv("ANITUNE_STORAGE_URL", "postgresql://ann@db/studies")
    monkeypatch.setenv("ANITUNE_TRACKING_URI", "http://mlflow:5000")

    assert load_settings() == Settings(
        Path("/data/ani"), "postgresql+psycopg://ann@db/studies", "http://mlflow:5000"
    )
    given = load_settings("postgres://bob@db/other", "http://other:5000")
    assert given == Settings(Path("/data/ani"), "postgresql+psycopg://bob@db/other", "http://other:5000")


def test_folders_begin_at_home_or_at_a_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch")
    for text, path in {
        "~/a": tmp_path / "a",
        "$HOME/a": tmp_path / "a",
        "${SCRATCH}/a": Path("/scratch/a"),
    }.items():
        monkeypatch.setenv("ANITUNE_HOME", text)
        monkeypatch.setenv("ANITUNE_ARTIFACTS", text)
        settings = load_settings()
        assert (settings.home, settings.artifacts_in) == (path, path)
        for name, value in settings.environment().items():  # as a child does, in which variables may differ
            monkeypatch.setenv(name, value)
        assert load_settings() == settings
    monkeypatch.setenv("ANITUNE_HOME", "/x/$HOME/a")
    assert load_settings().home == Path("/x/$HOME/a")


def test_the_servers_of_anitune_up_are_found_until_something_else_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "a b"
    monkeypatch.setenv("ANITUNE_HOME", str(home))
    (home / "servers").mkdir(parents=True)
    addresses = ServerAddresses(PostgreSQL.of(home).url(DATABASE), "http://127.0.0.1:5001", "alpha")
    write_addresses(home / "servers", addresses)

    own = load_settings()
    assert make_url(own.storage_url).query == make_url(addresses.storage_url).query
    assert own.storage_url.startswith("postgresql+psycopg://anitune@/anitune?")
    assert own.tracking_uri == "http://127.0.0.1:5001"
    assert is_of_anitune_up(own.storage_url, home)

    monkeypatch.setenv("ANITUNE_TRACKING_URI", "http://mlflow:5000")
    assert load_settings() == Settings(home, own.storage_url, "http://mlflow:5000")
    elsewhere = load_settings("postgresql://ann@db/studies")
    assert elsewhere.storage_url == "postgresql+psycopg://ann@db/studies"
    assert not is_of_anitune_up(elsewhere.storage_url, home)


def test_a_copy_of_a_home_does_not_use_the_servers_of_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, copy = tmp_path / "first", tmp_path / "copy"
    (first / "servers").mkdir(parents=True)
    write_addresses(
        first / "servers",
        ServerAddresses(PostgreSQL.of(first).url(DATABASE), "http://127.0.0.1:5001", "alpha"),
    )
    shutil.copytree(first, copy)
    monkeypatch.setenv("ANITUNE_HOME", str(copy))
    with pytest.raises(SettingsError, match=r"was moved, or is a copy.*run `anitune up` here"):
        load_settings()
    monkeypatch.setenv("ANITUNE_HOME", str(first))
    assert load_settings().tracking_uri == "http://127.0.0.1:5001"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"storage_url": "x"}'])
def test_damaged_addresses_are_one_clear_line(text: str, tmp_path: Path) -> None:
    servers = tmp_path / "anitune-data" / "servers"
    servers.mkdir(parents=True)
    (servers / "addresses.json").write_text(text)
    with pytest.raises(
        SettingsError, match=r"addresses.json: damaged; remove it, and run `anitune up` again"
    ):
        load_settings()


def test_a_child_process_finds_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = load_settings("postgresql://ann:s3cr%40t@db/studies")
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir("/")

    assert load_settings() == settings


def test_a_relative_file_stays_the_same_file_in_another_folder(tmp_path: Path) -> None:
    assert load_settings("sqlite:///studies.db").storage_url == f"sqlite:///{tmp_path}/studies.db"


def test_artifacts_are_in_the_home_in_a_folder_or_in_the_database(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ANITUNE_STORAGE_URL", "postgresql://ann@db/studies")
    assert (load_settings().artifacts_in, load_settings().artifacts_elsewhere) == (None, False)
    monkeypatch.setenv("ANITUNE_ARTIFACTS", "shared")
    assert (load_settings().artifacts, load_settings().artifacts_elsewhere) == (tmp_path / "shared", True)
    monkeypatch.setenv("ANITUNE_ARTIFACTS", "anitune-data/mine")
    assert not load_settings().artifacts_elsewhere
    monkeypatch.setenv("ANITUNE_ARTIFACTS", "database")
    settings = load_settings()
    assert (settings.artifacts_in, settings.artifacts_elsewhere) == ("database", True)
    assert settings.environment()["ANITUNE_ARTIFACTS"] == "database"
    monkeypatch.delenv("ANITUNE_STORAGE_URL")
    with pytest.raises(SettingsError, match="ANITUNE_ARTIFACTS=database needs PostgreSQL"):
        load_settings()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("studies.db", "not a database URL"),
        ("mysql://ann:secret@db/studies", "SQLite or PostgreSQL"),
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
    ],
)
def test_an_unusable_url_is_refused_in_one_line(url: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as error:
        load_settings(url)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("storage", "tracking"),
    [
        ("sqlite:///one.db", "sqlite:///{here}/one.db"),
        ("postgresql://ann:secret@db/x", "postgresql+psycopg2://bob:other@db/x"),
    ],
)
def test_mlflow_may_not_share_the_database(storage: str, tracking: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="same database") as error:
        load_settings(storage, tracking.format(here=tmp_path))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["postgresql://ann:secret@db/x", "postgresql://ann@db/x?password=secret", "secret"]
)
def test_a_password_is_never_shown(url: str) -> None:
    assert "secret" not in redacted(url)
