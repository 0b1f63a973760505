from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from select import select

import pytest
from sqlalchemy import update

from storage.errors import RelayLeaseLostError, TrackingUnavailableError
from storage.records.tables import now, outbox
from storage.studies import Study
from storage.tracking.lease import RelayLease, is_relay_running, last_error, running_relay, take_lease
from storage.tracking.process import POLL_SECONDS, SyncResult, sync

NO_PROCESS = 2**22 + 1  # above the largest process id of Linux


@pytest.fixture
def study(make_study: Callable[..., Study]) -> Study:
    return make_study()


@pytest.fixture
def lease(study: Study) -> RelayLease:
    lease = take_lease(study)
    assert lease is not None
    return lease


def test_one_relay_delivers_a_study_until_it_gives_its_lease_back(study: Study, lease: RelayLease) -> None:
    assert is_relay_running(study)
    assert take_lease(study) is None
    lease.release()
    assert not is_relay_running(study)
    assert take_lease(study) is not None


def test_studies_have_a_relay_each(lease: RelayLease, make_study: Callable[..., Study]) -> None:
    assert take_lease(make_study("another")) is not None


def test_of_relays_that_start_together_one_gets_the_lease(study: Study) -> None:
    with ThreadPoolExecutor(8) as pool:
        leases = list(pool.map(take_lease, [study] * 8))
    assert sum(lease is not None for lease in leases) == 1


def test_the_lease_of_a_process_that_ended_on_this_machine_is_free_at_once(
    study: Study, lease: RelayLease
) -> None:
    lease.hand_to(NO_PROCESS)
    assert not is_relay_running(study)
    assert take_lease(study) is not None


def test_the_lease_of_another_machine_holds_until_its_time_is_over(study: Study, lease: RelayLease) -> None:
    with lease.writing(host="elsewhere", pid=NO_PROCESS):
        pass
    assert take_lease(study) is None
    with lease.writing(lease_until=0.0):
        pass
    assert take_lease(study) is not None


def test_who_lost_the_lease_writes_nothing(study: Study, lease: RelayLease) -> None:
    lease.release()
    assert take_lease(study) is not None
    with pytest.raises(RelayLeaseLostError):
        lease.record_error("from the past")
    assert last_error(study) is None


def test_a_relay_is_named_with_its_address_and_the_command_that_ends_it(
    study: Study, lease: RelayLease
) -> None:
    holder = running_relay(study)
    assert holder is not None
    assert str(holder) == (
        f"process {os.getpid()} on {socket.gethostname()}, to {study.database.settings.tracking_uri}"
    )
    assert holder.stop_command == f"`kill {os.getpid()}`"
    with lease.writing(host="elsewhere", pid=7):
        pass
    holder = running_relay(study)
    assert holder is not None
    assert holder.stop_command == "`kill 7` on elsewhere"


@pytest.fixture
def sleeper() -> Iterator[Callable[..., int]]:
    """Starts processes that only sleep, with variables of their own; answers the id of each."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**environment: str) -> int:
        command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert select([process.stdout], [], [], 60)[0], "the process does not start"
        process.stdout.readline()
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("variable", "elsewhere"),
    [
        ("HTTPS_PROXY", True),
        ("http_proxy", True),
        ("MLFLOW_TRACKING_TOKEN", True),
        ("LANG", False),
        ("NO_PROXY", False),
        ("MLFLOW_TRACKING_AUTH", False),
    ],
)
def test_a_relay_with_another_way_to_the_server_delivers_elsewhere(
    study: Study, lease: RelayLease, sleeper: Callable[..., int], variable: str, elsewhere: bool
) -> None:
    lease.hand_to(sleeper(**{variable: "http://proxy:3128"}))
    holder = running_relay(study)
    assert holder is not None
    assert holder.delivers_elsewhere(study) == elsewhere


def test_a_relay_to_another_address_delivers_elsewhere_also_on_another_machine(
    study: Study, lease: RelayLease
) -> None:
    with lease.writing(host="elsewhere", address=None):  # of an older program
        pass
    for address, elsewhere in ((None, False), ("http://localhost:5000", True)):
        with lease.writing(address=address):
            pass
        holder = running_relay(study)
        assert holder is not None
        assert holder.delivers_elsewhere(study) == elsewhere


def no_note(number: int | None) -> str:
    raise AssertionError("another relay delivers")


def test_who_waits_for_a_relay_outlasts_a_trouble_that_passes(
    study: Study,
    lease: RelayLease,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("storage.tracking.process.SAY_SECONDS", 0.0)
    caplog.set_level(logging.INFO, logger="anitune")
    lease.record_error("MLflow is away")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sync, study, no_note)
        with pytest.raises(TimeoutError):
            waiting.result(3 * POLL_SECONDS)
        lease.record_error(None)
        with lease.writing() as connection:
            connection.execute(update(outbox).values(delivered_at=now()))
        assert waiting.result(30) == SyncResult(delivered=1, rejected=0)
    assert f"waiting for its relay, process {os.getpid()} on {socket.gethostname()}" in caplog.text


def test_who_waits_for_a_relay_is_told_of_a_trouble_that_stays(
    study: Study, lease: RelayLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.tracking.process.LONGEST_WAIT_SECONDS", POLL_SECONDS)
    lease.record_error("MLflow is away")
    with pytest.raises(
        TrackingUnavailableError, match=r"MLflow is away \(reported by its relay, process .*: `kill"
    ):
        sync(study, no_note)


def test_who_waits_for_a_relay_of_its_own_notices_that_it_ended(
    study: Study, lease: RelayLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    monkeypatch.setattr("storage.tracking.process._started", [ended])
    lease.hand_to(ended.pid)
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # a zombie, as nobody has asked for it
    home = study.database.settings.home
    home.mkdir(exist_ok=True)
    (home / "mlartifacts").write_text("in the way of the folder")
    monkeypatch.setattr("storage.tracking.process.SYNC_TRIES", 1)
    with pytest.raises(TrackingUnavailableError, match="mlartifacts"):
        sync(study, no_note)
    ended.wait(60)
