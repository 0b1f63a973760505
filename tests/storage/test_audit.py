"""Each store is damaged by hand in each way that an audit names: it is listed, repaired, and gone."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial
from sqlalchemy import delete, select, update

from storage.audit import verify
from storage.blobs.folder import FolderBlobs
from storage.database import Database, open_database
from storage.errors import LeaseLostError, RelayBusyError
from storage.garbage import find_garbage, remove
from storage.optuna_private import RESULTS, TRIALS
from storage.records.tables import artifacts, attempts, now, outbox, studies, trials
from storage.repair import repair
from storage.settings import Settings
from storage.studies import Budget, Study, create_study
from storage.tracking.lease import take_lease
from storage.tracking.mlflow_runs import KEY_TAG
from storage.tracking.outbox import MetricRow
from storage.tracking.process import sync
from storage.trials import optuna_rows
from storage.trials.attempts import Attempt
from storage.trials.paused import RungResult
from storage.trials.queue import WorkerInfo, claim_trial

# MLflow uses what is deprecated elsewhere; our own warnings stay errors.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")

STUDY = "wide_widths"  # the underscore means something else in MLflow's queries
EPOCH_MS = 1_700_000_000_000
COMPLETE, PRUNED, FAILED, RUNNING = range(4)


def write_note(number: int | None) -> str:
    return f"about {number}"


@dataclass(frozen=True)
class Place:
    """A study of which MLflow knows all: a complete trial, a pruned, a failed and a running one."""

    study: Study
    client: Any
    running: Attempt

    @property
    def db(self) -> Database:
        return self.study.database

    def mlflow(self, statement: str, number: int = COMPLETE) -> None:
        """A statement on MLflow's own database, about the run of a trial."""
        with closing(sqlite3.connect(self.db.settings.home / "mlflow.db")) as connection:
            connection.execute(statement, {"run": self.run(number)})
            connection.commit()

    def run(self, number: int | None = COMPLETE) -> str:
        query = select(studies.c.mlflow_run_id)
        if number is not None:
            query = select(trials.c.mlflow_run_id).where(trials.c.number == number)
        with self.db.reading() as connection:
            return str(connection.scalar(query))

    def experiment(self) -> str:
        return str(self.client.get_run(self.run()).info.experiment_id)

    def another_run(self, number: int) -> None:
        key, _, _ = self.client.get_run(self.run()).data.tags[KEY_TAG].rpartition("/")
        self.client.create_run(self.experiment(), tags={KEY_TAG: f"{key}/{number}"})

    def artifact(self) -> Path:
        (file,) = (self.db.settings.home / "mlartifacts").rglob(f"{self.run()}/**/loss.png")
        return file

    def blob(self) -> Path:
        with self.db.reading() as connection:
            digest = connection.scalar(select(artifacts.c.digest).where(artifacts.c.number == COMPLETE))
        return FolderBlobs(self.db.settings.artifacts).path(str(digest))

    def optuna(self, number: int, state: TrialState) -> None:
        with self.db.writing() as connection:
            found = optuna_rows.all_trials(connection, self.study.optuna_study_id)
            optuna_rows.set_state(connection, found[number].id, state)

    def sql(self, statement: Any) -> None:
        with self.db.writing() as connection:
            connection.execute(statement)


@contextmanager
def make_place(settings: Settings) -> Iterator[Place]:
    from mlflow import MlflowClient

    with open_database(settings) as db:
        study = create_study(db, STUDY, {"seed": 7}, Budget(trials=10))
        for state in ("complete", "pruned"):
            attempt = begin(study)
            file = settings.home / "made-by-worker"
            file.write_text(f"picture of trial {attempt.claim.number}")
            attempt.record_artifacts({"plots/loss.png": file})
            attempt.finish(state, 2.5, summary={"val/mae_kcalmol": 2.5, "parameters": 7.0})
        begin(study).finish("failed", reason="the loss is not finite")
        running = begin(study)
        sync(study, write_note)
        yield Place(study, MlflowClient(settings.tracking_uri), running)


@pytest.fixture
def place(tmp_path: Path, make_home: Callable[[Path], Settings]) -> Iterator[Place]:
    with make_place(make_home(tmp_path)) as place:
        yield place


@pytest.fixture(scope="module")
def damaged_place(
    tmp_path_factory: pytest.TempPathFactory, make_home: Callable[[Path], Settings]
) -> Iterator[Place]:
    """One that all damages are done to, since each is repaired."""
    with make_place(make_home(tmp_path_factory.mktemp("home"))) as place:
        yield place


def begin(study: Study) -> Attempt:
    claim = claim_trial(study.database, study, WorkerInfo("w1", "h", 1, "cpu", {}), lease_seconds=1e6)
    assert claim is not None
    attempt = Attempt(study.database, study, claim)
    attempt.record_config({"hidden": [8]}, {"hidden": [8], "activation": "silu"}, planned_epochs=3)
    values = [5.0, float("nan"), float("inf")]
    attempt.record_metrics(
        [MetricRow("val/loss", step, value, EPOCH_MS + step) for step, value in enumerate(values, start=1)]
    )
    return attempt


def listed(place: Place) -> list[str]:
    return [str(difference) for difference in verify(place.study).differences]


def test_stores_that_agree_are_counted(place: Place) -> None:
    audit = verify(place.study)
    assert audit.differences == ()
    assert audit.trials == {"complete": 1, "pruned": 1, "failed": 1, "running": 1}
    # Three epochs of each; of a complete trial its final error and its cost, of a pruned one its cost.
    assert (audit.budget, audit.runs, audit.metrics, audit.artifacts) == (10, 4, 4 * 3 + 2 + 1, 2)
    assert audit.changing == 0
    assert repair(place.study, write_note).repaired == ()


def pause(attempt: Attempt, step: int) -> None:
    attempt.rung(step, 2.0, (), decide=lambda trial: True)
    attempt.pause(2.0, "others were better", {"parameters": 7.0}, most=10)


def test_a_paused_trial_is_said_to_be_paused_until_it_goes_on(place: Place) -> None:
    pause(place.running, step=3)
    assert sync(place.study, write_note)
    run = place.client.get_run(place.run(RUNNING))
    assert (run.info.status, run.data.tags["optuna.state"]) == ("SCHEDULED", "PAUSED")
    audit = verify(place.study)
    assert audit.differences == ()
    assert audit.trials == {"complete": 1, "pruned": 1, "failed": 1, "paused": 1}

    place.client.update_run(place.run(RUNNING), status="FINISHED")
    place.optuna(RUNNING, TrialState.PRUNED)
    assert listed(place) == [
        "trial 3: it is PRUNED in Optuna, RUNNING in the record",
        "trial 3: its run is FINISHED in MLflow, SCHEDULED in the record",
    ]
    repair(place.study, write_note)
    assert listed(place) == []

    def the_paused_one(results: Sequence[RungResult], may_begin: bool) -> int | None:
        return next((result.number for result in results if result.paused), None)

    worker = WorkerInfo("w2", "h", 2, "cpu", {})
    claim = claim_trial(place.db, place.study, worker, promotion=the_paused_one)
    assert claim is not None
    assert (claim.number, claim.attempt) == (RUNNING, 2)
    with pytest.raises(LeaseLostError):  # the worker that paused it has no part in it any more
        place.running.record_metrics([MetricRow("val/loss", 4, 1.0, EPOCH_MS)])
    sync(place.study, write_note)
    run = place.client.get_run(place.run(RUNNING))
    assert (run.info.status, run.data.tags["optuna.state"]) == ("RUNNING", "RUNNING")
    assert listed(place) == []
    attempt = Attempt(place.db, place.study, claim)
    assert attempt.rung(3, 2.0, (), decide=lambda trial: True) is False, "it has passed this rung"
    attempt.finish("complete", 1.5)
    sync(place.study, write_note)
    assert place.client.get_run(place.run(RUNNING)).info.status == "FINISHED"
    assert listed(place) == []


def test_files_of_before_a_pause_are_not_missed_when_all_is_redelivered(place: Place) -> None:
    file = place.db.settings.home / "made-by-worker"
    for content in ("before the pause", "of the whole training"):
        file.write_text(content)
        place.running.record_artifacts({"plots/loss.png": file})
        sync(place.study, write_note)
    place.running.finish("complete", 1.5)
    sync(place.study, write_note)
    garbage = find_garbage(place.db, "checkpoint")
    assert [each.kind for each in garbage] == ["artifact"]
    assert len(list(remove(place.db, garbage))) == 1
    place.client.set_tag(place.run(RUNNING), "optuna.state", "FAIL")
    repair(place.study, write_note)
    assert listed(place) == []
    assert place.client.get_run(place.run(RUNNING)).info.status == "FINISHED"


Damage = Callable[[Place], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "metric lost": (
        lambda p: p.mlflow("DELETE FROM metrics WHERE run_uuid = :run AND key = 'val/loss' AND step = 1"),
        "trial 0: MLflow does not have its val/loss at step 1",
    ),
    "metric changed": (
        lambda p: p.mlflow("UPDATE metrics SET value = 4 WHERE run_uuid = :run AND value = 5"),
        "trial 0: its val/loss at step 1 is 4.0 in MLflow, 5.0 in the record",
    ),
    "metric twice": (
        lambda p: p.client.log_metric(p.run(), "val/loss", 4.0, step=1),
        "trial 0: MLflow has its val/loss at step 1 2 times",
    ),
    "metric of nobody": (
        lambda p: p.client.log_metric(p.run(), "val/other", 4.0, step=9),
        "trial 0: its val/other at step 9 is 4.0 in MLflow, None in the record",
    ),
    "final metric lost": (
        lambda p: p.mlflow("DELETE FROM metrics WHERE run_uuid = :run AND key = 'final/val_mae_kcalmol'"),
        "trial 0: MLflow does not have its final/val_mae_kcalmol at step 0",
    ),
    "parameter lost": (
        lambda p: p.mlflow("DELETE FROM params WHERE run_uuid = :run AND key = 'hidden'"),
        "trial 0: MLflow does not have its parameter hidden",
    ),
    "parameter changed": (
        lambda p: p.mlflow("UPDATE params SET value = '[9]' WHERE run_uuid = :run AND key = 'hidden'"),
        "trial 0: its parameter hidden is [9] in MLflow, [8] in the record",
    ),
    "parameter of nobody": (
        lambda p: p.client.log_param(p.run(), "mine", 1),
        "trial 0: its parameter mine is 1 in MLflow, None in the record",
    ),
    "status of an ended trial": (
        lambda p: p.client.set_terminated(p.run(PRUNED), "FINISHED"),
        "trial 1: its run is FINISHED in MLflow, KILLED in the record",
    ),
    "status of a running trial": (
        lambda p: p.client.set_terminated(p.run(RUNNING), "FINISHED"),
        "trial 3: its run is FINISHED in MLflow, RUNNING in the record",
    ),
    "status of the study": (
        lambda p: p.client.set_terminated(p.run(None), "FAILED"),
        "study: its run is FAILED in MLflow, RUNNING in the record",
    ),
    "tag": (
        lambda p: p.client.set_tag(p.run(FAILED), "optuna.state", "COMPLETE"),
        "trial 2: its tag optuna.state is COMPLETE in MLflow, FAIL in the record",
    ),
    "run deleted": (
        lambda p: p.client.delete_run(p.run()),
        "trial 0: its run was deleted in MLflow",
    ),
    "run gone": (
        lambda p: p.client._tracking_client.store._hard_delete_run(p.run()),
        "trial 0: MLflow does not have its run",
    ),
    "run twice": (lambda p: p.another_run(PRUNED), "trial 1: MLflow has another run of it, "),
    "run of nobody": (lambda p: p.another_run(99), "trial 99: MLflow has run "),
    "run of the study deleted": (
        lambda p: p.client.delete_run(p.run(None)),
        "study: its run was deleted in MLflow",
    ),
    "run of the study gone": (
        lambda p: p.client._tracking_client.store._hard_delete_run(p.run(None)),
        "study: MLflow does not have its run",
    ),
    "experiment deleted": (
        lambda p: p.client.delete_experiment(p.experiment()),
        "study: its experiment was deleted in MLflow",
    ),
    "artifact lost": (
        lambda p: p.artifact().unlink(),
        "trial 0: MLflow does not have its artifact plots/loss.png",
    ),
    "artifact changed": (
        lambda p: p.artifact().write_text("another picture"),
        "trial 0: its artifact plots/loss.png has another content in MLflow",
    ),
    "file lost here": (lambda p: p.blob().unlink(), "trial 0: its file plots/loss.png is lost here: "),
    "file damaged here": (
        lambda p: (p.blob().chmod(0o644), p.blob().write_text("rubbish")),
        "trial 0: its file plots/loss.png is lost here: ",
    ),
    "not told to Optuna": (
        lambda p: (p.optuna(COMPLETE, TrialState.RUNNING), p.sql(update(trials).values(told=False))),
        "trial 0: it is RUNNING in Optuna, COMPLETE in the record",
    ),
    "failed in the dashboard": (
        lambda p: p.optuna(COMPLETE, TrialState.FAIL),
        "trial 0: it is FAIL in Optuna, COMPLETE in the record",
    ),
    "completed in the dashboard": (
        lambda p: p.db.optuna.set_trial_state_values(
            p.running.claim.optuna_trial_id, TrialState.COMPLETE, [0.1]
        ),
        "trial 3: it is COMPLETE in Optuna, RUNNING in the record",
    ),
    "value changed in Optuna": (
        lambda p: p.sql(update(RESULTS).values(value=0.5)),
        "trial 0: its value is 0.5 in Optuna, 2.5 in the record",
    ),
    "trial of nobody in Optuna": (
        lambda p: p.study.optuna.add_trial(create_trial(value=0.0)),
        "trial 4: Optuna has it as COMPLETE, the record does not have it",
    ),
    "worker silent": (
        lambda p: p.sql(update(attempts).where(attempts.c.ended_at.is_(None)).values(lease_until=now() - 1)),
        "trial 3: it is running, but the lease of its worker has expired",
    ),
    "not delivered": (
        lambda p: p.sql(update(outbox).where(outbox.c.number == COMPLETE).values(delivered_at=None)),
        "trial 0: 4 messages are not delivered to MLflow yet",
    ),
    "refused": (
        lambda p: p.sql(
            update(outbox).where(outbox.c.number == COMPLETE).values(delivered_at=None, rejected="no room")
        ),
        "trial 0: 4 messages are not delivered to MLflow yet, which refused: no room",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_damaged_is_listed_repaired_and_gone(damaged_place: Place, damage: str) -> None:
    place = damaged_place
    act, expected = DAMAGES[damage]
    act(place)
    found = listed(place)
    assert any(line.startswith(expected) for line in found), found

    result = repair(place.study, write_note)
    assert result.left == {}
    assert any(str(difference).startswith(expected) for difference in result.repaired)
    assert listed(place) == []


def test_one_damage_is_one_line(place: Place) -> None:
    for damage in ("metric lost", "parameter lost", "artifact lost", "failed in the dashboard", "run twice"):
        DAMAGES[damage][0](place)
    assert [line[:7] for line in listed(place)] == ["trial 0"] * 4 + ["trial 1"]


def test_all_of_mlflow_lost_is_delivered_again(place: Place) -> None:
    for table in ("metrics", "latest_metrics", "params", "tags", "runs", "experiment_tags"):
        place.mlflow(f"DELETE FROM {table} WHERE :run != ''")
    place.mlflow("DELETE FROM experiments WHERE experiment_id != 0 AND :run != ''")
    shutil.rmtree(place.db.settings.home / "mlartifacts")
    assert listed(place) == ["study: MLflow does not know its experiment, 1"]

    assert repair(place.study, write_note).left == {}
    assert listed(place) == []


def test_a_value_of_the_record_is_one_again_after_several_repairs(place: Place) -> None:
    for _ in range(2):
        DAMAGES["metric lost"][0](place)
        repair(place.study, write_note)
    points = place.client.get_metric_history(place.run(), "val/loss")
    assert [(point.step, point.timestamp) for point in points] == [(n, EPOCH_MS + n) for n in (1, 2, 3)]


def test_what_cannot_be_repaired_is_said_with_the_reason(place: Place) -> None:
    place.artifact().unlink()
    place.blob().unlink()
    trial = place.running.claim.optuna_trial_id
    place.sql(delete(TRIALS).where(TRIALS.c.trial_id == trial))
    place.sql(update(studies).values(budget_trials=3))

    left = repair(place.study, write_note).left
    texts = {str(difference): reason for difference, reason in left.items()}
    assert (
        texts.pop("study: 4 trials have started, but 3 were requested: started trials cannot be undone") == ""
    )
    assert texts.pop("trial 3: Optuna does not have it, and it cannot be added") == ""
    (reason,) = (texts[text] for text in texts if "lost here" in text)
    assert "loss.png" in reason
    assert any("no such blob" in text for text in texts if "not delivered" in text)


def test_a_worker_that_goes_on_writes_nothing_after_a_repair_ended_its_attempt(place: Place) -> None:
    from storage.errors import LeaseLostError

    DAMAGES["worker silent"][0](place)
    repair(place.study, write_note)
    with pytest.raises(LeaseLostError):
        place.running.record_metrics([MetricRow("val/loss", 4, 1.0, EPOCH_MS)])
    audit = verify(place.study)
    assert (audit.differences, audit.trials["waiting"]) == ((), 1)


def test_what_a_relay_delivers_meanwhile_is_not_compared(place: Place) -> None:
    DAMAGES["metric lost"][0](place)
    place.sql(update(outbox).where(outbox.c.number == COMPLETE).values(delivered_at=now() + 60))
    audit = verify(place.study)
    assert (audit.differences, audit.changing, audit.runs) == ((), 1, 3)


def test_nothing_is_repaired_beside_a_relay(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.tracking.lease.RELAY_PATIENCE", 0.0)
    DAMAGES["metric changed"][0](place)
    lease = take_lease(place.study)
    assert lease is not None
    before = listed(place)
    with pytest.raises(RelayBusyError, match=r"delivering it to MLflow, process \d+ on .*; stop its workers"):
        repair(place.study, write_note)
    assert listed(place) == before
    lease.release()
    assert repair(place.study, write_note).left == {}


def test_histories_that_one_answer_does_not_hold_are_read_whole(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.tracking.mlflow_runs._ROWS_IN_BULK", 4)
    assert listed(place) == []


def test_records_in_postgresql_are_compared_and_repaired_alike(
    tmp_path: Path, postgresql_url_with_tables: str, make_home: Callable[[Path], Settings]
) -> None:
    settings = replace(make_home(tmp_path), storage_url=postgresql_url_with_tables)
    damages = (
        "metric lost",
        "parameter changed",
        "failed in the dashboard",
        "completed in the dashboard",
        "trial of nobody in Optuna",
        "worker silent",
        "refused",  # for good, since a parameter was changed
    )
    with make_place(settings) as place:
        assert verify(place.study).differences == ()
        for damage in damages:
            DAMAGES[damage][0](place)
        found = listed(place)
        for damage in damages[1:]:
            assert any(line.startswith(DAMAGES[damage][1]) for line in found), found
        assert not any(
            "MLflow does not have" in line for line in found
        )  # it may be among what is not delivered
        assert repair(place.study, write_note).left == {}
        assert listed(place) == []


def test_a_study_that_mlflow_does_not_know_yet_says_so(database: Database) -> None:
    study = create_study(database, "new", {}, Budget())
    found = [str(difference) for difference in verify(study).differences]
    assert found == ["study: 1 messages are not delivered to MLflow yet"]
