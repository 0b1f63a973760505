"""The relay against a real MLflow server, with a wire between them that can be cut."""

from __future__ import annotations

import itertools
import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from dashboards import mlflow_server
from storage.audit import verify
from storage.database import Database, open_database
from storage.errors import TrackingUnavailableError
from storage.records.tables import outbox, studies, trials
from storage.settings import Settings
from storage.studies import Budget, Study, create_study
from storage.tokens import make_token, token_file
from storage.tracking.lease import last_error, take_lease
from storage.tracking.outbox import MetricRow
from storage.tracking.process import start_relay, sync
from storage.tracking.relay import Relay, undelivered
from storage.trials.attempts import Attempt
from storage.trials.queue import WorkerInfo, claim_trial
from tests.mlflow_artifacts import artifact

# MLflow uses what is deprecated elsewhere; our own warnings stay errors.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")]

START_SECONDS = 120.0
DELIVERY_SECONDS = 120.0
EPOCH_MS = 1_700_000_000_000
WORKER = WorkerInfo(name="w1", host="h", pid=1, device="cpu", versions={"torch": "2.13.0"})


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an MLflow server that keeps artifacts itself."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    token = make_token(folder, port)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *mlflow_server.command("127.0.0.1", port, token_file(folder, port))],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder / 'mlflow.db'}",
                "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "artifacts"),
            },
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(url) or process.poll() is not None, START_SECONDS)
        assert process.poll() is None, (folder / "log").read_text()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_TOKEN", token)  # the wire has a port of its own
            yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


class Wire:
    """Passes requests on to the server, unless it is cut.

    Attributes
    ----------
    cut
        Whether connections end without an answer, and nothing reaches the server.
    loses_answers
        Whether each request reaches the server, but the first answer to it is lost on its way back.
    statuses
        What becomes of each request: None, it is passed on; else the answer has this status, and every
        second time the server has done all the same what it was asked for.
    failed
        Status and path of those that were answered so.
    """

    def __init__(self, server: str) -> None:
        self.cut = False
        self.loses_answers = False
        self.lost: list[str] = []
        self.statuses: Iterator[int | None] = itertools.repeat(None)
        self.failed: list[tuple[int, str]] = []
        seen: set[tuple[str, str, bytes]] = set()
        wire = self

        class Handler(BaseHTTPRequestHandler):
            def do(self) -> None:
                if wire.cut:
                    self.close_connection = True
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status = next(wire.statuses)
                if status is not None:
                    wire.failed.append((status, self.path))
                    if len(wire.failed) % 2:
                        self.answer(status, "text/plain", b"it went wrong")
                        return
                headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
                answer = httpx.request(
                    self.command,
                    server + self.path,
                    content=body,
                    headers=headers,
                    trust_env=False,
                    timeout=30,
                )
                request = (self.command, self.path, body)
                if wire.loses_answers and request not in seen:
                    seen.add(request)
                    wire.lost.append(self.path)
                    self.close_connection = True
                    return
                kind = answer.headers.get("Content-Type", "")
                self.answer(status or answer.status_code, kind, answer.content)

            def answer(self, status: int, kind: str, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Wire:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def wire(server: str) -> Iterator[Wire]:
    with Wire(server) as wire:
        yield wire


@pytest.fixture
def db(tmp_path: Path, wire: Wire) -> Iterator[Database]:
    settings = Settings(tmp_path, f"sqlite:///{tmp_path / 'anitune.db'}", wire.url)
    with open_database(settings) as db:
        yield db


@pytest.fixture
def study(db: Database, request: pytest.FixtureRequest) -> Study:
    return create_study(db, request.node.name, {"seed": 7}, Budget(trials=10))


def record_trial(study: Study) -> None:
    """Record what a worker records, without training anything."""
    claim = claim_trial(study.database, study, WORKER)
    assert claim is not None
    attempt = Attempt(study.database, study, claim)
    attempt.record_config({}, {"activation": "silu", "learning_rate": 1e-3}, planned_epochs=3)
    for epoch in (1, 2, 3):
        attempt.record_metrics([MetricRow("val/mae_kcalmol", epoch, 9.0 / epoch, EPOCH_MS + epoch)])
    attempt.record_metrics([MetricRow("val/loss", 1, math.nan, EPOCH_MS)])
    for path in ("plots/loss.png", "model.safetensors"):
        file = study.database.settings.home / "made-by-worker"
        file.write_text(f"{path} of trial {claim.number}")
        attempt.record_artifacts({path: file})
    attempt.finish("complete", 3.0, summary={"val/mae_kcalmol": 3.0})


def write_note(number: int | None) -> str:
    return f"about {number}"


def everything(study: Study, server: str) -> dict[str, Any]:
    """All that MLflow shows of a study, to be compared before and after."""
    from mlflow import MlflowClient

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name(study.name)
    runs = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs), "a run is there twice"
    return {
        run.info.run_name: {
            "status": (run.info.status, run.info.start_time, run.info.end_time),
            "id": run.info.run_id,
            "params": run.data.params,
            "tags": run.data.tags,
            "history": {
                key: sorted(
                    (point.step, repr(point.value), point.timestamp)
                    for point in client.get_metric_history(run.info.run_id, key)
                )
                for key in run.data.metrics
            },
            "artifacts": {
                path: artifact(client, run.info.run_id, path).decode()
                for path in ("plots/loss.png", "model.safetensors")
                if run.info.run_name != study.name
            },
        }
        for run in runs
    }


def assert_whole(trial: dict[str, Any], number: int) -> None:
    assert trial["status"][0] == "FINISHED"
    assert trial["params"] == {"activation": "silu", "learning_rate": "0.001"}
    assert trial["history"]["val/mae_kcalmol"] == [
        (1, "9.0", EPOCH_MS + 1),
        (2, "4.5", EPOCH_MS + 2),
        (3, "3.0", EPOCH_MS + 3),
    ]
    assert trial["history"]["val/loss"] == [(1, "nan", EPOCH_MS)]
    assert [point[:2] for point in trial["history"]["final/val_mae_kcalmol"]] == [(0, "3.0")]
    assert trial["artifacts"] == {
        "plots/loss.png": f"plots/loss.png of trial {number}",
        "model.safetensors": f"model.safetensors of trial {number}",
    }


def test_a_trial_arrives_whole_with_artifacts_that_the_server_keeps(study: Study, server: str) -> None:
    record_trial(study)
    sync(study, write_note)
    assert_whole(everything(study, server)["trial 0"], 0)
    assert undelivered(study) == 0


def test_answers_lost_on_their_way_make_nothing_twice_and_lose_nothing(
    study: Study, server: str, wire: Wire
) -> None:
    for _ in range(2):
        record_trial(study)
    wire.loses_answers = True
    lease = take_lease(study)
    assert lease is not None
    relay = Relay(lease, write_note, stopping=Event())
    deadline = time.monotonic() + DELIVERY_SECONDS
    while undelivered(study) and time.monotonic() < deadline:
        try:
            relay.deliver()
        except TrackingUnavailableError:
            continue

    assert undelivered(study) == 0
    assert any("runs/create" in path for path in wire.lost)
    shown = everything(study, server)
    assert set(shown) == {study.name, "trial 0", "trial 1"}
    for number in (0, 1):
        assert_whole(shown[f"trial {number}"], number)


def test_a_server_that_answers_500_in_the_middle_gets_everything_once(
    study: Study, server: str, wire: Wire
) -> None:
    for _ in range(4):
        record_trial(study)
    chance = random.Random(7)
    wire.statuses = iter(lambda: chance.choice([None, None, None, 500, 503]), "never")
    lease = take_lease(study)
    assert lease is not None
    relay = Relay(lease, write_note, stopping=Event())
    deadline = time.monotonic() + DELIVERY_SECONDS
    while undelivered(study) and time.monotonic() < deadline:
        with suppress(TrackingUnavailableError):
            relay.deliver()
    assert undelivered(study) == 0
    for asked in ("runs/create", "runs/log-batch", "mlflow-artifacts/artifacts", "runs/update"):
        assert any(asked in path for _, path in wire.failed), asked

    wire.statuses = itertools.repeat(None)
    relay.sync_study()
    shown = everything(study, server)
    assert set(shown) == {study.name, *(f"trial {number}" for number in range(4))}
    for number in range(4):
        assert_whole(shown[f"trial {number}"], number)
    assert verify(study).differences == ()


def test_telling_all_again_changes_nothing(study: Study, server: str) -> None:
    record_trial(study)
    sync(study, write_note)
    before = everything(study, server)

    # As if every acknowledgement had been lost between MLflow's answer and our own record.
    with study.database.writing() as connection:
        connection.execute(update(outbox).values(delivered_at=None))
        connection.execute(update(trials).values(mlflow_run_id=None))
        connection.execute(update(studies).values(mlflow_run_id=None, mlflow_experiment_id=None))
    sync(study, write_note)

    assert undelivered(study) == 0
    assert everything(study, server) == before


def test_a_relay_outlasts_a_server_that_is_away_and_ends_on_request(
    study: Study, server: str, wire: Wire
) -> None:
    wire.cut = True
    record_trial(study)
    relay = start_relay(study)
    assert relay is not None
    try:
        assert start_relay(study) is None, "one relay a study"
        wait_until(lambda: last_error(study) is not None, DELIVERY_SECONDS)
        waiting = undelivered(study)
        record_trial(study)
        assert undelivered(study) == 2 * waiting - 1, "a server that is away costs no record"
        wire.cut = False
        wait_until(lambda: undelivered(study) == 0, DELIVERY_SECONDS)
        wait_until(lambda: last_error(study) is None, DELIVERY_SECONDS)
    finally:
        relay.terminate()
        code = relay.wait(DELIVERY_SECONDS)
    assert code == 0
    shown = everything(study, server)
    assert set(shown) == {study.name, "trial 0", "trial 1"}
    for number in (0, 1):
        assert_whole(shown[f"trial {number}"], number)
    with study.database.reading() as connection:
        recorded = set(connection.scalars(select(trials.c.mlflow_run_id)))
    assert recorded == {shown["trial 0"]["id"], shown["trial 1"]["id"]}
    assert take_lease(study) is not None, "a relay that was told to end gives its lease back"


def test_sync_leaves_the_rest_to_the_relay_that_this_process_started(
    study: Study, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has imported MLflow and what draws the plots, for which this process would need seconds."""
    monkeypatch.setattr("storage.tracking.process.END_PATIENCE", DELIVERY_SECONDS)
    record_trial(study)
    relay = start_relay(study)
    assert relay is not None

    def write_nothing(number: int | None) -> str:
        raise AssertionError("the relay writes the notes")

    try:
        wait_until(lambda: undelivered(study) == 0, DELIVERY_SECONDS)
        sync(study, write_nothing)
        assert relay.poll() == 0, "it has ended"
    finally:
        relay.kill()
        relay.wait(DELIVERY_SECONDS)
    shown = everything(study, server)
    assert_whole(shown["trial 0"], 0)
    assert shown[study.name]["status"][0] == "FINISHED"
    assert take_lease(study) is not None
