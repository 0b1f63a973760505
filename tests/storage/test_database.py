from __future__ import annotations

import logging
import multiprocessing
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, create_engine, event, insert, select
from sqlalchemy.engine import make_url

from storage.database import Database, network_filesystem, open_database
from storage.errors import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseUnreachableError,
    SettingsError,
)
from storage.postgresql import PostgreSQL
from storage.records.tables import now, studies
from storage.settings import Settings
from storage.studies import Budget, Study, create_study, list_studies, open_study, study_progress
from storage.tracking.mlflow_tables import check_tables
from storage.tracking.outbox import MetricRow
from storage.trials.attempts import Attempt
from storage.trials.queue import WorkerInfo, claim_trial
from storage.trials.views import metric_history

NOBODY = 65534


def one_line(error: pytest.ExceptionInfo[DatabaseError]) -> str:
    said = str(error.value)
    assert "\n" not in said
    return said


def sqlite_settings(home: Path) -> Settings:
    return Settings(home, f"sqlite:///{home / 'anitune.db'}", f"sqlite:///{home / 'mlflow.db'}")


def open_and_count(settings: Settings, barrier: object, counts: object) -> None:
    barrier.wait(60)  # type: ignore[attr-defined]
    with open_database(settings) as database:
        counts.put(len(list_studies(database)))  # type: ignore[attr-defined]


def test_many_processes_may_open_an_empty_database_at_once(empty_settings: Settings) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, counts = context.Barrier(3, timeout=60), context.Queue()
    openers = [
        context.Process(target=open_and_count, args=(empty_settings, barrier, counts)) for _ in range(3)
    ]
    for process in openers:
        process.start()
    found = [counts.get(timeout=60) for _ in openers]
    for process in openers:
        process.join(60)

    assert found == [0, 0, 0]
    assert [process.exitcode for process in openers] == [0, 0, 0]


def test_what_was_written_is_there_after_opening_again(
    settings: Settings, make_study: Callable[..., Study]
) -> None:
    make_study("widths")
    with open_database(settings) as again:
        assert [study.name for study in list_studies(again)] == ["widths"]


def test_a_block_that_raises_writes_nothing(database: Database) -> None:
    row = {"name": "x", "optuna_study_id": 1, "config": {}, "facts": {}, "created_at": now()}
    with suppress(KeyError), database.writing() as connection:
        connection.execute(insert(studies).values(row))
        raise KeyError
    with database.reading() as connection:
        assert connection.execute(select(studies)).all() == []


def test_the_clock_of_the_database_runs_within_a_transaction(database: Database) -> None:
    with database.writing() as connection:
        first = connection.execute(select(now())).scalar_one()
        times = [connection.execute(select(now())).scalar_one() for _ in range(200)]
    assert times[-1] > first
    assert times == sorted(times)


def test_a_reader_does_not_wait_for_the_writer(database: Database, make_study: Callable[..., Study]) -> None:
    make_study("before")
    row = {"name": "x", "optuna_study_id": 1, "config": {}, "facts": {}, "created_at": now()}
    with database.writing() as writer:
        writer.execute(insert(studies).values(row))
        with database.reading() as reader:
            assert reader.execute(select(studies.c.name)).scalars().all() == ["before"]


def test_a_thread_that_gets_no_connection_may_try_again(database: Database) -> None:
    engine = create_engine(database.engine.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    small = Database(database.settings, engine, database._rdb)
    with small.reading(), pytest.raises(DatabaseBusyError) as error, small.reading():
        pass
    one_line(error)
    engine.dispose()


def test_threads_claim_and_finish_trials_side_by_side(
    database: Database, make_study: Callable[..., Study], worker: WorkerInfo
) -> None:
    study = make_study(trials=12)

    def work() -> list[int]:
        numbers = []
        while (claim := claim_trial(database, study, worker)) is not None:
            attempt = Attempt(database, study, claim)
            with database.plain_errors(), attempt.fenced():
                study.optuna_trial(claim.optuna_trial_id).suggest_float("x", 0, 1)
            for step in (1, 2):
                rows = [MetricRow("val/loss", step, 0.5, 1_000)]
                assert not attempt.rung(step, 1.0 / step, rows, lambda trial: False)
            attempt.finish("complete", value=float(claim.number))
            numbers.append(claim.number)
        return numbers

    with ThreadPoolExecutor(6) as pool:
        done = [future.result() for future in [pool.submit(work) for _ in range(6)]]
    assert sorted(number for numbers in done for number in numbers) == list(range(12))
    for trial in study.optuna.get_trials():
        assert trial.value == trial.number
        assert trial.intermediate_values == {1: 1.0, 2: 0.5}
        assert list(trial.params) == ["x"]


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
def test_a_stopped_worker_does_not_stop_the_others(
    database: Database, make_study: Callable[..., Study], worker: WorkerInfo
) -> None:
    study = make_study()
    claim = None
    with suppress(DatabaseUnreachableError), database.writing() as stopped:
        stopped.execute(select(studies).with_for_update()).all()
        # Waits until the server ends the transaction of the one that does nothing.
        claim = claim_trial(database, study, worker)
    assert claim is not None


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    settings = Settings(tmp_path, "postgresql+psycopg://ann:secret@127.0.0.1:1/x", "http://mlflow")
    with pytest.raises(DatabaseUnreachableError, match=r"127\.0\.0\.1:1/x.*refused") as error:
        open_database(settings)
    assert "secret" not in one_line(error)


def test_a_database_that_is_not_there(tmp_path: Path, postgresql_server: str) -> None:
    url = make_url(postgresql_server).set(drivername="postgresql+psycopg", database="absent")
    settings = Settings(tmp_path, url.render_as_string(hide_password=False), "http://mlflow")
    with pytest.raises(DatabaseUnreachableError, match='"absent" does not exist') as error:
        open_database(settings)
    one_line(error)


@pytest.mark.slow
def test_a_server_that_recovers_is_waited_for(public_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = PostgreSQL(public_folder / "postgresql", public_folder / "log")
    try:
        server.start()
        server.stop()
        # It asks for what it may have to recover, and gets none, slowly; until then it lets nobody in.
        with (server.data / "postgresql.conf").open("a") as file:
            file.write("restore_command = 'sleep 2; exit 1'\nhot_standby = off\n")
        (server.data / "recovery.signal").touch()
        shutil.chown(server.data / "recovery.signal", server.data.owner())
        url = server.url("anitune").replace("postgresql://", "postgresql+psycopg://", 1)
        settings = Settings(public_folder, url, "http://mlflow")
        with ThreadPoolExecutor(1) as pool, caplog.at_level(logging.INFO, "anitune"):
            started = pool.submit(start_slowly, server)
            deadline = time.monotonic() + 60
            while not recovers(server):
                assert not started.done(), "it came up without having to recover"
                assert time.monotonic() < deadline, "the server does not begin to recover"
                time.sleep(0.02)
            with open_database(settings) as database:
                assert list_studies(database) == []
            started.result(60)
        (said,) = (record.getMessage() for record in caplog.records)
        assert re.search(r"the database system is .*; try again .*\(waiting for at most 120 s\)$", said)
        assert "\n" not in said
    finally:
        server.stop()


def start_slowly(server: PostgreSQL) -> None:
    with suppress(psycopg.OperationalError):  # of its own first question, while the server recovers
        server.start()


def recovers(server: PostgreSQL) -> bool:
    """Whether there is a server that lets nobody in yet."""
    try:
        psycopg.connect(server.url("anitune")).close()
    except psycopg.OperationalError as error:
        return "the database system is" in str(error)
    return False


def test_a_server_that_does_not_come_up_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.database.STARTING_PATIENCE", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=refuse_as_one_that_starts, args=(listening,), daemon=True).start()
        port = listening.getsockname()[1]
        settings = Settings(tmp_path, f"postgresql+psycopg://ann:secret@127.0.0.1:{port}/x", "http://mlflow")
        with pytest.raises(DatabaseUnreachableError, match="the database system is starting up") as error:
            open_database(settings)
        assert "secret" not in one_line(error)


def refuse_as_one_that_starts(listening: socket.socket) -> None:
    """Speak to each client as PostgreSQL does while it starts."""
    fields = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"
    with suppress(OSError):
        while True:
            with listening.accept()[0] as client:
                while client.recv(8192)[4:8] in (b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30"):
                    client.sendall(b"N")  # neither TLS nor GSSAPI
                client.sendall(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)


def test_a_database_without_an_encoding_is_refused(
    tmp_path: Path, make_postgresql_database: Callable[..., str]
) -> None:
    options = "ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0 STRATEGY file_copy"
    url = make_url(make_postgresql_database(options))
    secret = url.password or "secret"
    text = url.set(password=secret).render_as_string(hide_password=False)
    for refused in (
        lambda: open_database(Settings(tmp_path, text, "http://mlflow")),
        lambda: check_tables(text),
    ):
        with pytest.raises(
            SettingsError, match=r"/anitune_test_.*no encoding \(SQL_ASCII\); make one with"
        ) as error:
            refused()
        assert "\n" not in str(error.value)
        assert secret not in str(error.value)


@pytest.mark.skipif("ANITUNE_TEST_POSTGRES_URL" in os.environ, reason="it changes the server's rules")
def test_a_wrong_password(tmp_path: Path, postgresql_url: str) -> None:
    url = make_url(postgresql_url)
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        rules = Path(connection.execute("SHOW hba_file").fetchone()[0])  # type: ignore[index]
        trusting = rules.read_text()
        connection.execute("DROP ROLE IF EXISTS ann")
        connection.execute("CREATE ROLE ann LOGIN PASSWORD 'right'")
        rules.write_text(f"local all ann scram-sha-256\n{trusting}")
        connection.execute("SELECT pg_reload_conf()")
        try:
            wrong = url.set(username="ann", password="wr0ng").render_as_string(hide_password=False)
            with pytest.raises(DatabaseUnreachableError, match="password authentication failed") as error:
                open_database(Settings(tmp_path, wrong, "http://mlflow"))
            assert "wr0ng" not in one_line(error)
        finally:
            rules.write_text(trusting)
            connection.execute("SELECT pg_reload_conf()")


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("")
    with pytest.raises(DatabaseUnreachableError, match=f"{home}.*folder") as error:
        open_database(sqlite_settings(home))
    one_line(error)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "anitune.db").write_text("a letter to a friend, longer than the header of a database")
    with pytest.raises(DatabaseError, match="not a database; restore a copy") as error:
        open_database(sqlite_settings(tmp_path))
    one_line(error)


@contextmanager
def without_rights() -> Iterator[None]:
    """Be a user who may write where all may only: root may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("home", "advice"), [("", "its folder can be written"), ("new/home", "choose another one")]
)
def test_a_read_only_folder(public_folder: Path, home: str, advice: str) -> None:
    public_folder.chmod(0o555)
    with without_rights(), pytest.raises(DatabaseUnreachableError, match=str(public_folder)) as error:
        open_database(sqlite_settings(public_folder / home))
    assert advice in one_line(error)
    assert list(public_folder.iterdir()) == []


def test_a_read_only_database(public_folder: Path, worker: WorkerInfo) -> None:
    settings = sqlite_settings(public_folder)
    with open_database(settings) as database:
        create_study(database, "widths", {}, Budget())
    (public_folder / "anitune.db").chmod(0o444)
    public_folder.chmod(0o555)
    files = set(public_folder.iterdir())
    with without_rights(), open_database(settings) as database:
        assert database.read_only
        study = open_study(database, "widths")
        assert len(study.optuna.get_trials()) == 0
        with pytest.raises(DatabaseError, match="can be read, but not written here") as error:
            claim_trial(database, study, worker)
        assert set(public_folder.iterdir()) == files
    one_line(error)
    public_folder.chmod(0o755)
    (public_folder / "anitune.db").chmod(0o644)
    with open_database(settings) as database:
        assert not database.read_only


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_a_full_disk_loses_nothing_that_was_recorded(
    database: Database, make_study: Callable[..., Study], worker: WorkerInfo
) -> None:
    study = make_study()
    claim = claim_trial(database, study, worker)
    assert claim is not None
    attempt = Attempt(database, study, claim)
    attempt.record_metrics([MetricRow("val/loss", 1, 0.5, 1_000)])
    with database.engine.connect() as connection:
        # What SQLite does without a free page is what it does on a full disk.
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    many = [MetricRow("val/loss", epoch, 0.5, 1_000) for epoch in range(2, 5_000)]

    with pytest.raises(DatabaseError, match="full; free some space") as error:
        attempt.record_metrics(many)
    one_line(error)
    assert [row.step for row in metric_history(database, study, 0)["val/loss"]] == [1]
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    attempt.record_metrics(many)
    assert len(metric_history(database, study, 0)["val/loss"]) == 4_999


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
def test_the_server_remembers_the_statements_of_readers(
    database: Database, make_study: Callable[..., Study]
) -> None:
    study = make_study()
    for _ in range(20):
        study_progress(database, study)
    with database.reading() as connection:
        prepared = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%%anitune_trials%%'"
        assert connection.exec_driver_sql(prepared).scalar_one() == 1


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
def test_a_connection_that_breaks_under_a_query_of_optuna_is_one_to_wait_for(
    database: Database, make_study: Callable[..., Study], worker: WorkerInfo
) -> None:
    study = make_study()
    for _ in range(2):
        claim_trial(database, study, worker)

    broken = []

    def break_off(connection: Connection, cursor: object, statement: str, *_: object) -> None:
        if "ORDER BY trials.trial_id" in statement and not broken:
            broken.append(statement)
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            with database.engine.connect() as other:
                other.exec_driver_sql("SELECT pg_terminate_backend(%s, 5000)", (pid,))

    event.listen(database._rdb.engine, "before_cursor_execute", break_off)
    message = "the connection broke; check"
    with pytest.raises(DatabaseUnreachableError, match=message) as error, database.plain_errors():
        database.optuna.get_all_trials(study.optuna_study_id)
    one_line(error)
    assert broken
    with database.plain_errors():
        assert len(database.optuna.get_all_trials(study.optuna_study_id)) == 2


def test_a_password_with_strange_characters_reaches_the_server(tmp_path: Path, postgresql_url: str) -> None:
    url = make_url(postgresql_url).set(username="postgres", password="{a}%/@:")
    settings = Settings(tmp_path, url.render_as_string(hide_password=False), "http://mlflow")
    with open_database(settings) as database:
        assert list_studies(database) == []


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/export /home nfs4 rw 0 0
/dev/sdb1 /home/ann/scratch xfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/home/ann/study", "nfs4"), ("/home/ann/scratch/study", None), ("/homework", None), ("/home", "nfs4")],
)
def test_a_network_file_system_is_noticed(path: str, kind: str | None) -> None:
    assert network_filesystem(Path(path), MOUNTS) == kind


def test_a_local_folder_gets_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        open_database(replace(sqlite_settings(tmp_path))).close()
    assert caplog.records == []


def test_a_truncated_database(tmp_path: Path) -> None:
    settings = sqlite_settings(tmp_path)
    open_database(settings).close()
    with (tmp_path / "anitune.db").open("r+b") as file:
        file.truncate(20_000)
    with pytest.raises(DatabaseError, match="malformed; restore a copy") as error:
        open_database(settings)
    one_line(error)
