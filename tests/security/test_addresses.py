"""Addresses that hold a password, and mostly cannot be read: no command says or keeps the password."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, unquote_plus

import pytest
from typer.testing import CliRunner

from search.cli.main import app
from storage.addresses import WithoutSecrets, redacted, storage_address, tracking_address, without_secrets
from storage.database import open_database
from storage.errors import SettingsError
from storage.settings import (
    ARTIFACTS_VARIABLE,
    HOME_VARIABLE,
    STORAGE_VARIABLE,
    TRACKING_VARIABLE,
    load_settings,
)
from storage.studies import Budget, create_study, open_study
from storage.tracking.lease import last_error, take_lease

SECRET = "Tr0ub4dor"

#: What is wrong with the address, and what the line says of it.
HOSTILE = {
    "slash": ("postgresql://ann:x/{}@db/studies", "%2F"),
    "slash after a number": ("postgresql://ann:12/{}@db/studies", "%2F"),
    "at": ("postgresql://ann:x@{}@db/studies", "%40"),
    "at, of a server": ("http://ann:x@{}@mlflow:5000", "%40"),
    "slash, of a server": ("https://ann:{}/x@mlflow", "%2F"),
    "question mark": ("http://ann:1?{}@mlflow", "%3F"),
    "number sign": ("http://ann:1#{}@mlflow", "%23"),
    "blank": ("postgresql://ann:x {}@db/studies", "%20"),
    "line feed": ("http://ann:{}\n@mlflow", "unprintable"),
    "NUL": ("postgresql://ann:{}%00@db/studies", "unprintable"),
    "bracket": ("postgresql://ann:[{}@db/studies", "%5B"),
    "bracket that stays open": ("http://ann:{}@[::1:5000", "host"),
    "no IPv6 address": ("http://ann:{}@[::zz]:5000", "host"),
    "port": ("postgresql://ann:{}@db:port/studies", "port"),
    "port that is a password": ("postgresql://ann:{}", "port"),
    "port of a server": ("http://ann:{}@mlflow:70000", "port"),
    "scheme": ("mysql://ann:{}@db/studies", "write"),
    "no scheme": ("ann:{}@db/studies", "write"),
    "a driver": ("postgres+{}://ann@db/studies", "write"),
    "a file with a host": ("sqlite://ann:{}@db/studies.db", "sqlite:///FILE"),
    "options of a file": ("sqlite:///studies.db?{}", "%3F"),
    "a word": ("{}", "write"),
}
COMMANDS = (
    ["study", "list"],
    ["study", "show", "tiny"],
    ["study", "verify", "tiny"],
    ["study", "repair", "tiny"],
    ["study", "delete", "tiny", "--yes"],
    ["worker", "tiny"],
    ["workers"],
    ["sync", "tiny"],
    ["relay", "tiny"],
    ["gc"],
    ["report", "tiny"],
    ["dashboards"],
    ["migrate"],
    ["promote", "tiny"],
    ["reproduce", "tiny", "0"],
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("storage.addresses._replaced", {})
    for variable in (STORAGE_VARIABLE, TRACKING_VARIABLE, ARTIFACTS_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path


def refuse_secret(folder: Path, *texts: str) -> None:
    """The password is in none of the texts, nor in any file below the folder."""
    for text in texts:
        assert SECRET not in text
    for file in folder.rglob("*"):
        assert SECRET not in file.name
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("variable", [STORAGE_VARIABLE, TRACKING_VARIABLE])
def test_every_command_refuses_it_in_a_line_that_does_not_repeat_it(
    variable: str, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, says = HOSTILE[kind]
    monkeypatch.setenv(variable, address.format(SECRET))
    niceness = os.nice(0)
    for command in COMMANDS:
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2, (command, result.output)
        assert result.stderr.startswith(f"anitune: {variable}")
        assert result.stderr.count("\n") == 1
        if variable == TRACKING_VARIABLE or not address.startswith("http"):
            assert says in result.stderr
        refuse_secret(folder, result.output)
    assert not (folder / "home").exists()
    assert os.nice(0) == niceness  # nothing has begun


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("option", ["--storage", "--tracking"])
def test_options_and_study_files_refuse_it(option: str, kind: str, folder: Path) -> None:
    address = HOSTILE[kind][0].format(SECRET)
    result = CliRunner().invoke(app, [option, address, "study", "list"])
    assert result.exit_code == 2
    refuse_secret(folder, result.output)

    file = folder / "study.yaml"
    key = option.removeprefix("--")
    file.write_text(f"name: tiny\nlimits: {{trials: 1}}\n{key}: {address!r}\n")
    result = CliRunner().invoke(app, ["study", "create", str(file)])
    file.unlink()
    assert result.exit_code == 2
    assert key in result.stderr
    refuse_secret(folder, result.output)


@pytest.mark.parametrize("address", ["s3://key:{}@bucket", "postgresql://ann:{}@db/x"])
def test_an_address_is_no_place_for_artifacts(
    address: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ARTIFACTS_VARIABLE, address.format(SECRET))
    result = CliRunner().invoke(app, ["study", "list"])
    assert result.exit_code == 2
    assert ARTIFACTS_VARIABLE in result.stderr
    refuse_secret(folder, result.output)


@pytest.mark.parametrize(
    ("storage", "tracking"),
    [
        ("postgresql://ann:{}@db:port/x", ""),
        ("postgresql://ann:{}@127.0.0.1:9/x", ""),
        ("postgresql://ann@127.0.0.1:9/x?sslmode={}", ""),
        ("", "http://ann:{}@[::1:5000"),
    ],
)
def test_a_traceback_does_not_hold_it(storage: str, tracking: str, folder: Path) -> None:
    password = f"{SECRET}%40x"
    answer = subprocess.run(
        [sys.executable, "-m", "search.cli.main", "--debug", "study", "list"],
        env={
            **os.environ,
            STORAGE_VARIABLE: storage.format(password if "@127" not in storage or ":{}" in storage else "no"),
            TRACKING_VARIABLE: tracking.format(password),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 1
    assert "Traceback" in answer.stderr
    refuse_secret(folder, answer.stdout, answer.stderr)


def test_an_mlflow_that_is_away_leaves_it_nowhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_database(load_settings()) as database:
        create_study(database, "tiny", {}, Budget(trials=1))
    monkeypatch.setenv(TRACKING_VARIABLE, f"http://ann:{SECRET}%2F@127.0.0.1:9")
    monkeypatch.setattr("storage.tracking.process.SYNC_TRIES", 1)
    result = CliRunner().invoke(app, ["sync", "tiny"])
    assert result.exit_code == 1
    assert "127.0.0.1" in result.stderr
    refuse_secret(folder, result.output)


@pytest.mark.parametrize("written", ["p/w Tr0ub4dor@", "Tr0ub4dor'\"é", "Tr0ub4dor"])
def test_whatever_a_library_says_is_kept_without_it(written: str, folder: Path) -> None:
    encoded = quote(written, safe="")
    address = f"http://ann:{encoded}@127.0.0.1:9"
    assert tracking_address(address, "here") == address
    said = [f"cannot reach {form}: refused" for form in (address, written, encoded, repr(written)[1:-1])]
    with open_database(load_settings()) as database:
        study = create_study(database, "tiny", {}, Budget(trials=1))
        lease = take_lease(study)
        assert lease is not None
        for text in said:
            lease.record_error(text)
            kept = last_error(open_study(database, "tiny"))
            assert kept is not None
            assert kept.startswith("cannot reach ")
            assert kept.endswith(": refused")
            assert SECRET not in kept
    with sqlite3.connect(folder / "home" / "anitune.db") as connection:
        assert SECRET not in "".join(connection.iterdump())


def test_logs_are_written_without_it(caplog: pytest.LogCaptureFixture) -> None:
    storage_address(f"postgresql://ann:{SECRET}@db/x", "here")
    logger = logging.getLogger("anitune")
    logger.filters = [WithoutSecrets()]
    logger.propagate = True
    try:
        raise ValueError(f"postgresql://ann:{SECRET}@db/x")
    except ValueError:
        logger.exception("no %s", SECRET)
    finally:
        logger.filters = []
    assert SECRET not in caplog.text
    assert "no ***" in caplog.text
    assert "postgresql://ann:***@db/x" in caplog.text


def test_short_passwords_do_not_garble_other_words() -> None:
    storage_address("postgresql://ann:an@db/x", "here")
    for scheme in ("postgresql", "postgresql+psycopg"):
        said = without_secrets(f"an anitune at {scheme}://ann:an@db/x")
        assert said == f"an anitune at {scheme}://ann:***@db/x"


@pytest.mark.parametrize("password", ["tiny", "Trial", "postgres", "MLFLOW", "2026", "a b", "x1"])
def test_words_are_replaced_only_where_a_password_is_due(
    password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = quote(password, safe="")
    storage_address(f"postgresql://ann:{encoded}@db/x", "here")
    storage_address(f"postgresql://ann@db/x?sslmode=require&sslpassword={encoded}", "here")
    harmless = (
        f"2026-11-30 Trial 2 of tiny, by postgres at MLFLOW: a b x1; no database {password!r} ({password})"
    )
    assert without_secrets(harmless) == harmless
    due = (
        "postgresql://ann:{}@db/x is away",
        "postgresql+psycopg://ann:{}@other:5432/y",
        "no answer from ann:{}@db",
        "/x?sslmode=require&sslpassword={}",
        "connection: host=db password={} user=ann",
        "connection: host=db password='{}' user=ann",
        "{{'user': 'ann', 'password': '{}'}}",
        '{{"user": "ann", "password": "{}"}}',
        "PGPASSWORD={}",
    )
    for text in due:
        for form in {password, encoded}:
            assert without_secrets(text.format(form)) == text.format("***")
    monkeypatch.setattr("storage.addresses._replaced", {})
    monkeypatch.setenv("PGPASSWORD", password)
    assert without_secrets(harmless) == harmless
    assert without_secrets(due[0].format(password)) == due[0].format("***")


@pytest.mark.parametrize(
    "password", ["correcthorsebattery", "hunter2x", "p-w-d", "12345678", "tiny!", "tinyTiny"]
)
def test_what_is_no_word_is_replaced_everywhere(password: str) -> None:
    storage_address(f"postgresql://ann:{quote(password, safe='')}@db/x", "here")
    assert without_secrets(f"he said {password}.") == "he said ***."


@pytest.mark.parametrize("token", ["tiny", "f3bA9x0012"])
def test_a_lone_user_of_a_server_is_not_shown(token: str) -> None:
    address = f"https://{token}@mlflow:5000/x"
    assert tracking_address(address, "here") == address
    assert redacted(address) == "https://***@mlflow:5000/x"
    for text in (f"{address} is away", f"cannot reach https://{token}@mlflow"):
        assert token not in without_secrets(text)
    assert redacted("postgresql://ann@db/x") == "postgresql://ann@db/x"


@pytest.mark.parametrize(
    "written", ["Tr0ub4dor%2fx%3ay", "Tr0ub4dor%2Fx%3ay", "Tr0ub4dor/x:y", "Tr0ub4dor+x"]
)
@pytest.mark.parametrize("key", ["password", "sslpassword", "pass%77ord"])
def test_a_password_of_a_query_is_replaced_as_it_is_written(key: str, written: str) -> None:
    storage_address(f"postgresql://ann@db/x?{key}={written}", "here")
    plain = unquote_plus(written)
    lower = quote(plain, safe="").replace("%2F", "%2f").replace("%3A", "%3a")
    for form in (written, plain, quote(plain), quote(plain, safe=""), lower):
        assert SECRET not in without_secrets(f"cannot read x?y={form}"), form


@pytest.mark.parametrize(
    ("address", "becomes"),
    [
        ("http://localhost:5000", "http://localhost:5000"),
        ("HTTPS://ann:a%40b@[::1]:443/mlflow", "https://ann:a%40b@[::1]:443/mlflow"),
        ("postgresql+psycopg2://ann:a%2Fb@db,other:5432/x?sslmode=require", None),
        ("sqlite:////data/a%3Fb%25c.db", "sqlite+pysqlite:////data/a%3Fb%25c.db"),
    ],
)
def test_what_can_be_read_is_left_as_it_is(address: str, becomes: str | None) -> None:
    assert tracking_address(address, "here") == (becomes or address)


def test_a_server_without_a_scheme_is_reported_with_one() -> None:
    with pytest.raises(SettingsError, match=r"write http://localhost:5000$"):
        tracking_address("localhost:5000", TRACKING_VARIABLE)
