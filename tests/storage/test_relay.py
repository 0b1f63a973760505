"""The relay against a real MLflow tracking store in SQLite, of what workers really record."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from sqlalchemy import select, update

from storage.audit import verify
from storage.blobs.folder import FolderBlobs
from storage.database import Database, open_database
from storage.errors import (
    BlobWriteError,
    DatabaseUnreachableError,
    RelayLeaseLostError,
    TrackingUnavailableError,
)
from storage.records.tables import outbox, studies, trials
from storage.repair import repair
from storage.settings import Settings
from storage.studies import Budget, Study, create_study, open_study
from storage.tracking.lease import (
    LEASE_SECONDS,
    RELAY_PATIENCE,
    RelayLease,
    is_relay_running,
    last_error,
    take_lease,
)
from storage.tracking.mlflow_runs import KEY_TAG
from storage.tracking.outbox import MetricRow
from storage.tracking.process import SyncResult, run_relay, sync
from storage.tracking.relay import Relay, undelivered
from storage.trials.attempts import Attempt
from storage.trials.finalize import TrialResult
from storage.trials.queue import WorkerInfo, claim_trial
from tests.mlflow_artifacts import artifact

# MLflow uses what is deprecated elsewhere; our own warnings stay errors.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")

STUDY = "quickstart"
EPOCH_MS = 1_700_000_000_000  # milliseconds since 1970: the worker measured then, not now

ARCHITECTURE = "384-128-64-1 silu"
PARAMS = {"activation": "silu", "hidden": [128, 64], "learning_rate": 1e-3, "patience": None}
WORKER = WorkerInfo(name="w1", host="h", pid=1, device="cpu", versions={"torch": "2.13.0"})

COMPLETE = TrialResult(
    "complete",
    value=1.25,
    summary={"val/mae_kcalmol": 1.25, "val/mae_kcalmol_heavy_2": 1.5, "parameters": 197636.0},
)
PRUNED = TrialResult("pruned", value=9.0, reason="behind the others", summary={"val/mae_kcalmol": 9.0})
FAILED = TrialResult("failed", reason="loss became NaN")


@pytest.fixture
def settings(tmp_path: Path, make_home: Callable[[Path], Settings]) -> Settings:
    return make_home(tmp_path)


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    with open_database(settings) as db:
        yield db


class Recorder:
    """Records as a worker does, without training anything."""

    def __init__(self, db: Database) -> None:
        self.study = create_study(db, STUDY, {"name": STUDY, "seed": 7}, Budget(trials=100))
        self.study.set_facts({"data": "5f3a"})
        self.attempts: list[Attempt] = []

    @property
    def db(self) -> Database:
        return self.study.database

    def start(self) -> Attempt:
        claim = claim_trial(self.db, self.study, WORKER)
        assert claim is not None
        attempt = Attempt(self.db, self.study, claim)
        attempt.record_config({"hidden": [128, 64]}, PARAMS, planned_epochs=3, tags={"arch": ARCHITECTURE})
        return attempt

    def train(self, attempt: Attempt, epochs: range) -> None:
        attempt.record_metrics(
            [MetricRow("val/mae_kcalmol", e, 100.0 / e, EPOCH_MS + 1000 * e) for e in epochs]
        )

    def attach(self, attempt: Attempt, path: str, content: bytes) -> None:
        file = self.db.settings.home / "made-by-worker"
        file.write_bytes(content)
        attempt.record_artifacts({path: file})

    def whole_trial(self, result: TrialResult = COMPLETE) -> None:
        attempt = self.start()
        self.train(attempt, range(1, 4))
        self.attach(attempt, "plots/loss.png", b"picture of trial %d" % attempt.claim.number)
        end(attempt, result)

    def run_id(self, number: int | None) -> str | None:
        with self.db.reading() as connection:
            if number is None:
                return connection.scalar(select(studies.c.mlflow_run_id))
            return connection.scalar(select(trials.c.mlflow_run_id).where(trials.c.number == number))

    def undelivered(self) -> int:
        return undelivered(self.study)

    def rejected(self) -> dict[int | None, str]:
        with self.db.reading() as connection:
            rows = connection.execute(
                select(outbox.c.number, outbox.c.rejected).where(outbox.c.rejected != "")
            )
            return {row.number: row.rejected for row in rows}

    def forget_acknowledgements(self) -> None:
        """As if the relay had been killed each time between MLflow's answer and our own record."""
        with self.db.writing() as connection:
            connection.execute(update(outbox).values(delivered_at=None))
            connection.execute(update(trials).values(mlflow_run_id=None))
            connection.execute(update(studies).values(mlflow_run_id=None, mlflow_experiment_id=None))


def end(attempt: Attempt, result: TrialResult) -> None:
    attempt.finish(result.state, result.value, result.reason, result.summary, result.tags)


@pytest.fixture
def recorder(db: Database) -> Recorder:
    return Recorder(db)


def write_note(number: int | None) -> str:
    return "**the study**" if number is None else f"**trial {number}**"


@pytest.fixture
def lease(recorder: Recorder) -> RelayLease:
    lease = take_lease(recorder.study)
    assert lease is not None
    return lease


@pytest.fixture
def relay(lease: RelayLease) -> Relay:
    return Relay(lease, write_note, stopping=Event())


class Shown:
    """What a person finds in MLflow."""

    def __init__(self, settings: Settings) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(settings.tracking_uri)

    def runs(self) -> dict[str, Any]:
        experiment = self.client.get_experiment_by_name(STUDY)
        found = self.client.search_runs([experiment.experiment_id])
        runs = {run.info.run_name: run for run in found}
        assert len(runs) == len(found), "a run is there twice"
        return runs

    def make_double(self, run: Any) -> Any:
        """A second run that stands for the same trial."""
        tags = {KEY_TAG: run.data.tags[KEY_TAG]}
        return self.client.create_run(run.info.experiment_id, tags=tags, run_name=run.info.run_name)

    def history(self, run: Any, key: str) -> list[tuple[int, float, int]]:
        points = self.client.get_metric_history(run.info.run_id, key)
        return sorted((point.step, point.value, point.timestamp) for point in points)

    def artifacts(self, run: Any, folder: str | None = None) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for entry in self.client.list_artifacts(run.info.run_id, folder):
            if entry.is_dir:
                found |= self.artifacts(run, entry.path)
            else:
                found[entry.path] = artifact(self.client, run.info.run_id, entry.path)
        return found

    def everything(self) -> dict[str, Any]:
        """All that can be seen, to be compared before and after."""
        return {
            name: (
                run.to_dictionary(),
                {key: self.history(run, key) for key in run.data.metrics},
                self.artifacts(run),
            )
            for name, run in self.runs().items()
        }


@pytest.fixture
def shown(settings: Settings) -> Shown:
    return Shown(settings)


def test_a_trial_is_a_nested_run_with_all_that_happened(
    recorder: Recorder, relay: Relay, shown: Shown
) -> None:
    began = time.time()
    recorder.whole_trial()
    relay.deliver()

    study, trial = shown.runs()[STUDY], shown.runs()["trial 0"]
    assert trial.data.tags["mlflow.parentRunId"] == study.info.run_id
    assert trial.data.params == {
        "activation": "silu",
        "hidden": "[128, 64]",
        "learning_rate": "0.001",
        "patience": "null",
    }
    expected = {
        "arch": ARCHITECTURE,
        "optuna.state": "COMPLETE",
        "data": "5f3a",
        "device": "cpu",
        "version.torch": "2.13.0",
        "mlflow.note.content": "**trial 0**",
    }
    assert {key: trial.data.tags.get(key) for key in expected} == expected
    assert shown.history(trial, "val/mae_kcalmol") == [
        (1, 100.0, EPOCH_MS + 1000),
        (2, 50.0, EPOCH_MS + 2000),
        (3, 100.0 / 3, EPOCH_MS + 3000),
    ]
    assert shown.artifacts(trial) == {"plots/loss.png": b"picture of trial 0"}
    assert trial.info.status == "FINISHED"
    assert b'"seed": 7' in shown.artifacts(study)["study.json"]
    assert study.data.tags["data"] == "5f3a"
    assert recorder.run_id(0) == trial.info.run_id
    assert recorder.run_id(None) == study.info.run_id
    assert recorder.undelivered() == 0
    assert 1000 * began - 1 < trial.info.start_time <= trial.info.end_time < 1000 * time.time() + 1


def test_a_run_begins_and_ends_when_the_trial_did_not_when_it_was_delivered(
    recorder: Recorder, relay: Relay, shown: Shown
) -> None:
    recorder.whole_trial()
    with recorder.db.writing() as connection:  # it lay in the outbox for a day
        connection.execute(update(outbox).values(created_at=outbox.c.created_at - 86400))
    relay.deliver()
    run = shown.runs()["trial 0"]
    assert run.info.end_time < 1000 * (time.time() - 86000)
    assert run.info.start_time < 1000 * (time.time() - 86000)


def test_the_status_of_a_run_says_what_happened(recorder: Recorder, relay: Relay, shown: Shown) -> None:
    for result in (COMPLETE, PRUNED, FAILED):
        recorder.whole_trial(result)
    relay.deliver()

    complete, pruned, failed = (shown.runs()[f"trial {number}"] for number in range(3))
    assert [run.info.status for run in (complete, pruned, failed)] == ["FINISHED", "KILLED", "FAILED"]
    assert [run.data.tags["optuna.state"] for run in (complete, pruned, failed)] == [
        "COMPLETE",
        "PRUNED",
        "FAIL",
    ]
    assert pruned.data.tags["pruned"] == "true"
    assert failed.data.tags["fail_reason"] == "loss became NaN"
    assert "mlflow.runColor" not in complete.data.tags
    assert pruned.data.tags["mlflow.runColor"] != failed.data.tags["mlflow.runColor"]


def test_only_a_complete_trial_has_final_accuracies(recorder: Recorder, relay: Relay, shown: Shown) -> None:
    recorder.whole_trial(COMPLETE)
    recorder.whole_trial(PRUNED)
    relay.deliver()

    final = {key: value for key, value in shown.runs()["trial 0"].data.metrics.items() if "final/" in key}
    assert final == {"final/val_mae_kcalmol": 1.25, "final/val_mae_kcalmol_heavy_2": 1.5}
    assert not [key for key in shown.runs()["trial 1"].data.metrics if "final/" in key]
    assert shown.runs()["trial 0"].data.metrics["cost/parameters"] == 197636.0


def test_a_trial_that_failed_before_it_had_a_configuration_is_shown(
    recorder: Recorder, relay: Relay, shown: Shown
) -> None:
    claim = claim_trial(recorder.db, recorder.study, WORKER)
    assert claim is not None
    end(Attempt(recorder.db, recorder.study, claim), FAILED)
    relay.deliver()
    run = shown.runs()["trial 0"]
    assert (run.info.status, run.data.params) == ("FAILED", {})


def test_the_studys_run_is_running_until_its_last_trial_ended(
    recorder: Recorder, relay: Relay, shown: Shown
) -> None:
    recorder.whole_trial()
    last = recorder.start()
    relay.deliver()
    assert shown.runs()[STUDY].info.status == "RUNNING"

    end(last, COMPLETE)
    relay.deliver()
    relay.sync_study()
    study, trial = shown.runs()[STUDY], shown.runs()["trial 1"]
    assert study.info.status == "FINISHED"
    assert study.info.end_time == pytest.approx(trial.info.end_time, abs=50)
    assert study.data.tags["mlflow.note.content"] == "**the study**"


def test_trials_on_the_front_of_several_objectives_are_marked(db: Database, shown: Shown) -> None:
    study = create_study(db, STUDY, {"objectives": ["val_mae", "parameters"]}, Budget(trials=10))

    def whole_trial(value: float, parameters: float) -> None:
        claim = claim_trial(db, study, WORKER)
        assert claim is not None
        attempt = Attempt(db, study, claim)
        attempt.record_config({"hidden": [8]}, PARAMS, planned_epochs=3)
        end(attempt, TrialResult("complete", value=value, summary={"parameters": parameters}))

    def tags() -> dict[str, str]:
        runs = shown.runs().items()
        return {name: run.data.tags.get("front", "") for name, run in runs if name != STUDY}

    lease = take_lease(study)
    assert lease is not None
    relay = Relay(lease, write_note, stopping=Event())
    for value, parameters in ((1.0, 1e5), (3.0, 1e4), (3.5, 5e4), (20.0, 1e3)):
        whole_trial(value, parameters)
    relay.deliver()
    relay.sync_study()
    assert tags() == {"trial 0": "front", "trial 1": "knee", "trial 2": "", "trial 3": "front"}

    # A run that somebody has deleted does not keep the others from their tags.
    shown.client.delete_run(shown.runs()["trial 0"].info.run_id)
    # One that is better than two of them; a relay that takes over finds what the first has marked.
    whole_trial(0.9, 9e3)
    later = Relay(lease, write_note, stopping=Event())
    later.deliver()
    later.sync_study()
    assert tags() == {"trial 1": "", "trial 2": "", "trial 3": "front", "trial 4": "knee"}
    assert shown.runs()[STUDY].info.status == "FINISHED"
    (view,) = (
        value
        for key, value in shown.client.get_experiment_by_name(STUDY).tags.items()
        if key.startswith("mlflow.sharedViewState")
    )
    assert "tags.`front`" in json.loads(json.loads(view)["state"])["selectedColumns"]


def test_the_studys_run_holds_its_files_as_they_are_at_the_end(
    recorder: Recorder, lease: RelayLease, shown: Shown
) -> None:
    drawn: list[bytes] = []

    def write_files() -> dict[str, bytes]:
        drawn.append(b"plot %d" % len(drawn))
        return {"plots/history.png": drawn[-1], "leaderboard.csv": b"rank,trial"}

    relay = Relay(lease, write_note, Event(), write_files)
    recorder.whole_trial()
    last = recorder.start()
    relay.deliver()
    assert drawn == [], "what takes seconds to draw is not drawn at each trial's end"

    end(last, COMPLETE)
    relay.deliver()
    relay.sync_study()
    relay.sync_study()
    held = shown.artifacts(shown.runs()[STUDY])
    assert held["plots/history.png"] == b"plot 0"
    assert held["leaderboard.csv"] == b"rank,trial"
    assert len(drawn) == 1, "nothing has changed since"


def test_a_trial_shows_while_it_runs_also_in_another_attempt(
    recorder: Recorder, relay: Relay, shown: Shown
) -> None:
    first = recorder.start()
    recorder.train(first, range(1, 3))
    relay.deliver()
    first.hand_back("told to stop")
    second = recorder.start()
    recorder.train(second, range(2, 5))
    relay.deliver()

    run = shown.runs()["trial 0"]
    assert (run.info.status, run.data.tags["attempt"]) == ("RUNNING", "2")
    assert [step for step, *_ in shown.history(run, "val/mae_kcalmol")] == [1, 2, 3, 4]


def test_telling_all_again_changes_nothing(recorder: Recorder, relay: Relay, shown: Shown) -> None:
    recorder.whole_trial(COMPLETE)
    recorder.whole_trial(PRUNED)
    relay.deliver()
    before = shown.everything()

    recorder.forget_acknowledgements()
    relay.deliver()

    assert recorder.undelivered() == 0
    assert shown.everything() == before
    assert recorder.run_id(0) == before["trial 0"][0]["info"]["run_id"]


def test_of_two_runs_made_for_one_trial_the_lower_id_stays(
    recorder: Recorder, relay: Relay, shown: Shown
) -> None:
    recorder.start()
    relay.deliver()
    first = shown.runs()["trial 0"]
    # The answer to the create was lost, and a slow server made a second one.
    second = shown.make_double(first)

    recorder.forget_acknowledgements()
    relay.deliver()

    assert shown.runs()["trial 0"].info.run_id == min(first.info.run_id, second.info.run_id)
    assert recorder.run_id(0) == min(first.info.run_id, second.info.run_id)


def test_a_run_that_a_slow_server_made_late_is_gone_when_the_trial_ends(
    recorder: Recorder, relay: Relay, shown: Shown
) -> None:
    attempt = recorder.start()
    relay.deliver()
    kept = shown.runs()["trial 0"]
    shown.make_double(kept)

    end(attempt, COMPLETE)
    relay.deliver()

    assert shown.runs()["trial 0"].info.run_id == kept.info.run_id


def test_studies_of_one_name_from_two_homes_share_an_experiment_but_no_run(
    recorder: Recorder, relay: Relay, settings: Settings, tmp_path: Path
) -> None:
    recorder.whole_trial()
    relay.deliver()
    home = tmp_path / "other"
    elsewhere = Settings(home, f"sqlite:///{home / 'anitune.db'}", settings.tracking_uri)
    with open_database(elsewhere) as other_db:
        other = Recorder(other_db)
        other.whole_trial()
        sync(other.study, write_note)
        assert other.run_id(0) not in (None, recorder.run_id(0))


def test_a_run_deleted_in_mlflow_stops_its_own_queue_only_and_goes_on_when_restored(
    recorder: Recorder, relay: Relay, lease: RelayLease, shown: Shown
) -> None:
    attempts = [recorder.start(), recorder.start()]
    relay.deliver()
    deleted = recorder.run_id(0)
    shown.client.delete_run(deleted)
    for attempt in attempts:
        recorder.train(attempt, range(1, 4))
        end(attempt, COMPLETE)
    relay.deliver()

    assert shown.runs()["trial 1"].info.status == "FINISHED"
    assert set(recorder.rejected()) == {0}
    assert "deleted" in recorder.rejected()[0]
    assert recorder.undelivered() == 2
    assert relay.deliver() == 0  # not tried again and again
    lease.release()

    shown.client.restore_run(deleted)
    result = sync(recorder.study, write_note)
    assert (result.delivered, result.rejected) == (2, 0)
    assert shown.runs()["trial 0"].info.status == "FINISHED"
    assert len(shown.history(shown.runs()["trial 0"], "val/mae_kcalmol")) == 3


def test_an_artifact_whose_bytes_are_gone_is_named_and_stops_its_own_queue_only(
    recorder: Recorder, relay: Relay, shown: Shown
) -> None:
    recorder.attach(recorder.start(), "model.safetensors", b"weights of 0")
    recorder.whole_trial()
    (lost,) = (
        path
        for path in recorder.db.settings.artifacts.rglob("*")
        if path.is_file() and path.read_bytes() == b"weights of 0"
    )
    lost.unlink()
    relay.deliver()

    assert f"{lost}: no such blob" in recorder.rejected()[0]
    assert shown.runs()["trial 1"].info.status == "FINISHED"


def test_files_before_one_whose_bytes_are_gone_arrive(recorder: Recorder, relay: Relay, shown: Shown) -> None:
    attempt = recorder.start()
    for path in ("config.json", "plots/loss.png", "plots/parity.png"):
        recorder.attach(attempt, path, path.encode())
    gone = hashlib.sha256(b"plots/loss.png").hexdigest()
    (recorder.db.settings.artifacts / gone[:2] / gone).unlink()
    relay.deliver()
    assert shown.artifacts(shown.runs()["trial 0"]) == {"config.json": b"config.json"}
    assert gone in recorder.rejected()[0]


def test_a_deleted_experiment_is_named_with_the_way_to_bring_it_back(
    recorder: Recorder, relay: Relay, shown: Shown
) -> None:
    ours = recorder.study.database.settings.mlflow_artifacts / STUDY
    experiment = shown.client.create_experiment(STUDY, ours.as_uri())
    shown.client.delete_experiment(experiment)
    recorder.whole_trial()
    waiting = recorder.undelivered()
    relay.deliver()

    (reason,) = recorder.rejected().values()
    assert f"mlflow experiments restore --experiment-id {experiment}" in reason
    assert recorder.undelivered() == waiting

    relay.lease.release()
    command, again, repair_ = re.findall("`([^`]*)`", reason)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, env={**os.environ, "PATH": path}, timeout=120)
    assert (again, repair_) == (f"anitune sync {STUDY}", f"anitune study repair {STUDY}")
    assert sync(recorder.study, write_note) == SyncResult(delivered=waiting, rejected=0)
    assert shown.client.get_experiment(experiment).lifecycle_stage == "active"


def test_a_repair_frees_the_name_that_a_deleted_experiment_keeps(
    recorder: Recorder, relay: Relay, shown: Shown
) -> None:
    deleted = shown.client.create_experiment(STUDY)
    shown.client.delete_experiment(deleted)
    recorder.whole_trial()
    relay.deliver()
    relay.lease.release()

    result = repair(recorder.study, write_note)
    assert result.left == {}
    assert f"MLflow reserves its name for a deleted experiment, {deleted}" in "".join(
        map(str, result.repaired)
    )
    assert recorder.undelivered() == 0
    assert shown.client.get_experiment_by_name(STUDY).experiment_id != deleted
    assert shown.client.get_experiment(deleted).lifecycle_stage == "deleted"
    assert verify(recorder.study).differences == ()


@pytest.mark.parametrize("command", [sync, repair])
def test_a_relay_to_another_address_is_taken_over_at_once(
    recorder: Recorder, relay: Relay, lease: RelayLease, command: Callable[..., object]
) -> None:
    recorder.whole_trial()
    with lease.writing(host="elsewhere", pid=1, address="http://localhost:5000"):
        pass
    lease.record_error("MLflow: no such scheme")
    began = time.monotonic()
    command(recorder.study, write_note)
    assert time.monotonic() - began < RELAY_PATIENCE
    assert recorder.undelivered() == 0
    with pytest.raises(RelayLeaseLostError):
        lease.renew()


def test_more_metrics_than_one_request_takes_all_arrive(
    recorder: Recorder, relay: Relay, shown: Shown
) -> None:
    attempt = recorder.start()
    for first in range(1, 2401, 300):
        recorder.train(attempt, range(first, first + 300))
    relay.deliver()
    assert len(shown.history(shown.runs()["trial 0"], "val/mae_kcalmol")) == 2400


def test_a_metric_that_is_no_number_arrives_as_such(recorder: Recorder, relay: Relay, shown: Shown) -> None:
    recorder.start().record_metrics([MetricRow("val/loss", 1, math.nan, EPOCH_MS)])
    relay.deliver()
    ((step, value, _),) = shown.history(shown.runs()["trial 0"], "val/loss")
    assert (step, math.isnan(value)) == (1, True)


def test_a_relay_that_was_replaced_records_nothing(
    recorder: Recorder, relay: Relay, lease: RelayLease
) -> None:
    recorder.whole_trial()
    with lease.writing(lease_until=0.0):  # it was stopped for long
        pass
    assert take_lease(recorder.study) is not None

    before = recorder.undelivered()
    with pytest.raises(RelayLeaseLostError):
        relay.deliver()
    assert recorder.undelivered() == before
    assert recorder.run_id(None) is None


def test_a_relay_asked_to_stop_keeps_what_it_has_not_delivered(recorder: Recorder, lease: RelayLease) -> None:
    recorder.whole_trial()
    stopping = Event()
    relay = Relay(lease, write_note, stopping)
    stopping.set()
    before = recorder.undelivered()
    assert relay.deliver() == 0
    assert recorder.undelivered() == before


def test_sync_counts_what_it_delivered(recorder: Recorder, shown: Shown) -> None:
    recorder.whole_trial()
    waiting = recorder.undelivered()
    assert sync(recorder.study, write_note) == SyncResult(delivered=waiting, rejected=0)
    assert sync(recorder.study, write_note) == SyncResult(delivered=0, rejected=0)
    assert shown.runs()[STUDY].info.status == "FINISHED"


def test_sync_brings_the_study_up_to_date_also_where_a_relay_runs(
    recorder: Recorder, relay: Relay, shown: Shown
) -> None:
    attempt = recorder.start()
    relay.deliver()  # tells of the study, and does so not again for some seconds
    end(attempt, COMPLETE)
    relay.deliver()
    assert is_relay_running(recorder.study)
    assert shown.runs()[STUDY].info.status == "RUNNING"

    assert sync(recorder.study, write_note) == SyncResult(delivered=0, rejected=0)
    assert shown.runs()[STUDY].info.status == "FINISHED"


def test_a_server_that_is_away_loses_nothing_and_its_password_is_not_reported(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, shown: Shown
) -> None:
    monkeypatch.setattr("storage.tracking.process.SYNC_TRIES", 1)
    away = Settings(settings.home, settings.storage_url, "http://someone:geheim@127.0.0.1:9")
    with open_database(away) as db:
        recorder = Recorder(db)
        recorder.whole_trial()
        waiting = recorder.undelivered()
        with pytest.raises(TrackingUnavailableError, match="refused") as caught:
            sync(recorder.study, write_note)
        assert "geheim" not in "".join(traceback.format_exception(caught.value))
        assert recorder.undelivered() == waiting
        assert recorder.rejected() == {}
    with open_database(settings) as db:
        assert sync(open_study(db, STUDY), write_note) == SyncResult(delivered=waiting, rejected=0)
    assert shown.runs()["trial 0"].info.status == "FINISHED"


def test_records_in_postgresql_are_delivered_alike(
    settings: Settings, postgresql_url: str, shown: Shown
) -> None:
    with open_database(replace(settings, storage_url=postgresql_url)) as db:
        recorder = Recorder(db)
        for result in (COMPLETE, PRUNED):
            recorder.whole_trial(result)
        waiting = recorder.undelivered()
        assert sync(recorder.study, write_note) == SyncResult(delivered=waiting, rejected=0)
        runs = shown.runs()
        assert recorder.run_id(1) == runs["trial 1"].info.run_id
    assert [runs[f"trial {number}"].info.status for number in (0, 1)] == ["FINISHED", "KILLED"]


def test_a_relay_stays_while_a_worker_holds_a_trial_and_then_ends_by_itself(
    recorder: Recorder, shown: Shown
) -> None:
    claim = claim_trial(recorder.db, recorder.study, WORKER, lease_seconds=2.0)
    assert claim is not None
    leased_until = time.monotonic() + 1.9
    run_relay(recorder.study, write_note, idle_seconds=0.1)
    assert time.monotonic() > leased_until
    assert recorder.undelivered() == 0
    assert take_lease(recorder.study) is not None
    assert STUDY in shown.runs()


def away_at_first(monkeypatch: pytest.MonkeyPatch, database: Database) -> set[tuple[Any, ...]]:
    """Whoever asks the database in the relay finds it away the first time; answers from where that was."""
    met: set[tuple[Any, ...]] = set()

    def failing(ask: Callable[[], AbstractContextManager[Any]]) -> Callable[[], AbstractContextManager[Any]]:
        def asked() -> AbstractContextManager[Any]:
            frames = traceback.extract_stack()
            place = tuple((f.filename, f.lineno) for f in frames if "storage/tracking" in f.filename)
            if place not in met:
                met.add(place)
                raise DatabaseUnreachableError("it is started anew")
            return ask()

        return asked

    for name in ("reading", "writing"):
        monkeypatch.setattr(database, name, failing(getattr(database, name)))
    return met


def test_a_relay_outlasts_a_database_that_is_away_whenever_it_is_asked(
    recorder: Recorder, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.whole_trial()
    monkeypatch.setattr("storage.tracking.process.LONGEST_WAIT_SECONDS", 0.01)
    with monkeypatch.context() as patched:
        met = away_at_first(patched, recorder.db)
        run_relay(recorder.study, write_note, idle_seconds=0.1)
    assert len(met) > 20
    assert recorder.undelivered() == 0
    assert [run.info.status for run in shown.runs().values()] == ["FINISHED", "FINISHED"]


def test_a_disk_without_space_delays_one_runs_files_and_is_named(
    recorder: Recorder, lease: RelayLease, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.whole_trial()
    recorder.whole_trial()
    lend = FolderBlobs.lend
    full = hashlib.sha256(b"picture of trial 0").hexdigest()
    said: list[str | None] = []

    def no_space(store: FolderBlobs, digest: str) -> AbstractContextManager[Path]:
        if digest == full and not said:
            raise BlobWriteError(f"{digest}: cannot be written: No space left on device")
        return lend(store, digest)

    def record_error(message: str | None) -> None:
        said.append(message)
        assert shown.runs()["trial 1"].info.status == "FINISHED"

    monkeypatch.setattr(FolderBlobs, "lend", no_space)
    monkeypatch.setattr("storage.tracking.process.take_lease", lambda study: lease)
    monkeypatch.setattr(lease, "record_error", record_error)
    run_relay(recorder.study, write_note, idle_seconds=0.1)
    assert recorder.undelivered() == 0
    assert shown.artifacts(shown.runs()["trial 0"]) == {"plots/loss.png": b"picture of trial 0"}
    (trouble, over) = said
    assert "No space left on device" in str(trouble)
    assert over is None


def refuse_for_ever(relay: Relay, runs: set[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server fail, as it may for a reason of its own, whenever it is told of these runs."""
    log = relay._runs.log

    def failing(run: str, *args: Any, **kwargs: Any) -> None:
        if run in runs:
            raise TrackingUnavailableError("MLflow: INTERNAL_ERROR")
        log(run, *args, **kwargs)

    monkeypatch.setattr(relay._runs, "log", failing)


def test_runs_that_the_server_cannot_cope_with_hold_up_no_others(
    recorder: Recorder, relay: Relay, lease: RelayLease, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = [recorder.start() for _ in range(6)]
    relay.deliver()
    bad = {recorder.run_id(number) for number in range(4)}
    for attempt in attempts:
        recorder.train(attempt, range(1, 4))
        end(attempt, COMPLETE)
    with monkeypatch.context() as patched:
        refuse_for_ever(relay, bad, patched)
        for _ in range(2):
            with pytest.raises(TrackingUnavailableError) as caught:
                relay.deliver()
    assert str(caught.value) == "trial 0, trial 1, trial 2 and others: MLflow: INTERNAL_ERROR"
    assert [shown.runs()[f"trial {number}"].info.status for number in (4, 5)] == ["FINISHED", "FINISHED"]
    differences = verify(recorder.study).differences
    assert {each.number for each in differences if "not delivered" in each.text} == {0, 1, 2, 3}

    relay.deliver()
    assert recorder.undelivered() == 0
    assert [step for step, *_ in shown.history(shown.runs()["trial 0"], "val/mae_kcalmol")] == [1, 2, 3]


class Stopped:
    """Lets a relay be stopped in the call of MLflow that it is about to make, and another one take over."""

    def __init__(self, relay: Relay, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.successor: Relay | None = None
        self._relay = relay
        self._call = getattr(relay._runs, call)
        monkeypatch.setattr(relay._runs, call, self._wake_late)

    def _wake_late(self, *args: Any, **kwargs: Any) -> None:
        if self.successor is None:
            expire(self._relay.lease)
            lease = take_lease(self._relay.study)
            assert lease is not None
            self.successor = Relay(lease, write_note, Event())
            self.successor.deliver()
            self.successor.sync_study()
        self._call(*args, **kwargs)


def expire(lease: RelayLease) -> None:
    with lease.writing(lease_until=0.0):
        pass


def test_what_a_relay_says_of_a_trial_after_another_took_over_is_put_right(
    recorder: Recorder, relay: Relay, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.start().hand_back("told to stop")
    relay.deliver()
    last = recorder.start()
    recorder.train(last, range(1, 4))
    end(last, COMPLETE)
    with recorder.db.writing() as connection:  # its start is told again, as after an answer that was lost
        connection.execute(update(outbox).where(outbox.c.number == 0).values(delivered_at=None))
    stopped = Stopped(relay, "set_status", monkeypatch)
    with pytest.raises(RelayLeaseLostError):
        relay.deliver()
    assert shown.runs()["trial 0"].info.status == "RUNNING", "no lease can prevent that"
    assert recorder.undelivered() > 0

    assert stopped.successor is not None
    stopped.successor.deliver()
    run = shown.runs()["trial 0"]
    assert (run.info.status, run.data.tags["optuna.state"]) == ("FINISHED", "COMPLETE")
    assert run.data.tags["attempt"] == "2"
    assert verify(recorder.study).differences == ()


def test_what_a_relay_says_of_the_study_after_another_took_over_is_put_right(
    recorder: Recorder, relay: Relay, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = recorder.start()
    relay.deliver()
    relay._study_changed = True
    stopped = Stopped(relay, "set_status", monkeypatch)
    wake_late = relay._runs.set_status

    def end_meanwhile(*args: Any) -> None:
        if stopped.successor is None:
            end(attempt, COMPLETE)
        wake_late(*args)

    monkeypatch.setattr(relay._runs, "set_status", end_meanwhile)
    relay.sync_study()
    assert shown.runs()[STUDY].info.status == "FINISHED"
    assert verify(recorder.study).differences == ()


def test_a_relay_that_was_stopped_for_long_makes_sure_of_its_lease_before_it_speaks(
    recorder: Recorder, relay: Relay, lease: RelayLease, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = recorder.start()
    relay.deliver()
    recorder.train(attempt, range(1, 4))
    rows = relay._rows

    def read_and_sleep(number: int | None) -> Any:
        read = rows(number)
        expire(lease)
        assert take_lease(recorder.study) is not None
        lease.renewed -= 2 * LEASE_SECONDS
        return read

    monkeypatch.setattr(relay, "_rows", read_and_sleep)
    with pytest.raises(RelayLeaseLostError):
        relay.deliver()
    assert shown.history(shown.runs()["trial 0"], "val/mae_kcalmol") == []


def test_a_relay_that_was_replaced_starts_another_if_none_says_again_what_it_said_too_late(
    recorder: Recorder, lease: RelayLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.whole_trial()
    expire(lease)
    assert take_lease(recorder.study) is not None
    started: list[Study] = []
    monkeypatch.setattr("storage.tracking.process.take_lease", lambda study: lease)
    monkeypatch.setattr("storage.tracking.process.start_relay", started.append)
    run_relay(recorder.study, write_note, idle_seconds=0.1)
    assert started == [recorder.study]


def test_a_relay_gives_up_a_server_that_stays_away_only_when_nobody_works(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.tracking.process.LONGEST_WAIT_SECONDS", 0.1)
    monkeypatch.setattr("storage.tracking.process.GIVE_UP_SECONDS", 0.0)
    with open_database(replace(settings, tracking_uri="http://127.0.0.1:9")) as db:
        recorder = Recorder(db)
        assert claim_trial(db, recorder.study, WORKER, lease_seconds=2.0) is not None
        leased_until = time.monotonic() + 1.9
        run_relay(recorder.study, write_note)
        assert time.monotonic() > leased_until
        assert "refused" in str(last_error(recorder.study))
        assert recorder.undelivered() > 0
        assert take_lease(recorder.study) is not None
