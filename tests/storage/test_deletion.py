from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import func, select

from storage.database import Database, open_database
from storage.deletion import delete_study
from storage.errors import LeaseLostError, RelayLeaseLostError, StudyNotFoundError, StudyStateError
from storage.lifecycle import change_state
from storage.ownership import own_study_folder
from storage.records.tables import identity, metadata, studies
from storage.settings import Settings
from storage.studies import Budget, Study, create_study, list_studies, open_study
from storage.tracking.lease import take_lease
from storage.tracking.mlflow_runs import MlflowRuns
from storage.tracking.outbox import MetricRow
from storage.tracking.relay import Relay
from storage.trials.attempts import Attempt
from storage.trials.queue import WorkerInfo, claim_trial

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")

MakeStudy = Callable[..., Study]


def train(database: Database, study: Study, worker: WorkerInfo, plot: bytes) -> Attempt:
    """A trial with a bit of everything, in hand."""
    claim = claim_trial(database, study, worker)
    assert claim is not None
    attempt = Attempt(database, study, claim)
    attempt.record_config({"hidden": [8]}, {"layers": 1}, planned_epochs=2)
    attempt.rung(1, 2.0, [MetricRow("val/loss", 1, 0.5, 1_000)], lambda trial: False)
    folder = database.settings.trial_folder(study.name, claim.number)
    folder.mkdir(parents=True)
    (folder / "loss.png").write_bytes(plot)
    attempt.record_artifacts({"plots/loss.png": folder / "loss.png"})
    return attempt


def rows(database: Database) -> dict[str, int]:
    with database.reading() as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in metadata.sorted_tables
            if table is not identity
        }


def files(settings: Settings) -> set[str]:
    folders = (settings.artifacts, settings.optuna_artifacts, settings.home / "trials")
    return {str(path) for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_a_study_is_gone_from_all_places_and_the_others_are_not(
    database: Database, settings: Settings, make_study: MakeStudy, worker: WorkerInfo
) -> None:
    other = make_study("other")
    train(database, other, worker, b"the same").finish("complete", value=1.0)
    before = rows(database), files(settings)
    study = make_study("doomed")
    train(database, study, worker, b"the same").finish("complete", value=1.0)
    train(database, study, worker, b"another").finish("pruned", value=2.0)

    delete_study(database, study)
    assert (rows(database), files(settings)) == before
    assert [summary.study_name for summary in database.optuna.get_all_studies()] == ["other"]
    with pytest.raises(StudyNotFoundError):
        open_study(database, "doomed")
    again = make_study("doomed")
    assert again.optuna.get_trials() == []


def test_files_of_another_database_stay(
    database: Database, settings: Settings, make_study: MakeStudy, worker: WorkerInfo
) -> None:
    study = make_study()
    own_study_folder(database, study.name)
    train(database, study, worker, b"the same").finish("complete", value=1.0)
    before = files(settings)
    other = replace(settings, storage_url=f"sqlite:///{settings.home / 'other.db'}")
    with open_database(other) as opened:
        same = create_study(opened, study.name, {}, Budget())
        claim = claim_trial(opened, same, worker)
        assert claim is not None
        attempt = Attempt(opened, same, claim)
        plot = settings.trial_folder(study.name, 0) / "loss.png"
        attempt.record_artifacts({"plots/loss.png": plot})
        attempt.finish("complete", value=1.0)
        delete_study(opened, same)
        assert list_studies(opened) == []
    assert files(settings) == before


def test_a_study_that_is_worked_on_must_be_stopped_first(
    database: Database, make_study: MakeStudy, worker: WorkerInfo
) -> None:
    study = make_study()
    attempt = train(database, study, worker, b"plot")
    with pytest.raises(StudyStateError, match="worked on by w1: first `anitune study stop widths`"):
        delete_study(database, study)
    assert claim_trial(database, study, worker) is not None  # nothing has changed

    change_state(database, study, "stopped", of=("open",))
    with pytest.raises(StudyStateError, match="w1 are still working"):
        delete_study(database, study, patience=0.0)
    assert [summary.name for summary in list_studies(database)] == ["widths"]
    attempt.renew()


def test_a_deletion_waits_until_the_trials_of_a_stopped_study_are_handed_back(
    database: Database, make_study: MakeStudy, worker: WorkerInfo
) -> None:
    study = make_study()
    attempt = train(database, study, worker, b"plot")
    change_state(database, study, "stopped", of=("open",))
    handing_back = threading.Timer(0.3, lambda: attempt.hand_back("the study was stopped"))
    handing_back.start()
    delete_study(database, study)
    handing_back.join(60)
    assert not handing_back.is_alive(), "the trial is not handed back"
    assert list_studies(database) == []
    with pytest.raises(LeaseLostError, match="deleted"):
        attempt.record_metrics([MetricRow("val/loss", 2, 0.5, 1_000)])


def test_a_deletion_that_did_not_come_to_its_end_is_done_again(
    database: Database, make_study: MakeStudy, worker: WorkerInfo
) -> None:
    study = make_study()
    train(database, study, worker, b"plot").finish("complete", value=1.0)
    database.optuna.delete_study(study.optuna_study_id)
    shutil.rmtree(database.settings.home / "trials")
    delete_study(database, study)
    assert set(rows(database).values()) == {0}


def deliver(study: Study) -> Relay:
    lease = take_lease(study)
    assert lease is not None
    relay = Relay(lease, lambda number: "note", Event())
    while relay.deliver():
        pass
    return relay


def test_mlflow_forgets_the_study_and_its_name_is_free(
    database: Database,
    settings: Settings,
    make_study: MakeStudy,
    worker: WorkerInfo,
    mlflow_template: Path,
) -> None:
    settings.home.mkdir(exist_ok=True)
    shutil.copy(mlflow_template, settings.home / "mlflow.db")
    study = make_study()
    train(database, study, worker, b"plot").finish("complete", value=1.0)
    relay = deliver(study)
    runs = MlflowRuns(settings.tracking_uri, settings.home / "mlartifacts")
    client = runs._client
    experiment = client.get_experiment_by_name("widths")
    assert len(client.search_runs([experiment.experiment_id])) == 2

    delete_study(database, study)
    assert client.get_experiment_by_name("widths") is None
    assert client.get_experiment(experiment.experiment_id).lifecycle_stage == "deleted"
    assert not (settings.home / "mlartifacts" / "widths").exists()
    with pytest.raises(RelayLeaseLostError):
        relay.lease.renew()
    deliver(make_study())
    assert client.get_experiment_by_name("widths").lifecycle_stage == "active"


def test_what_others_have_in_the_experiment_stays(
    database: Database, settings: Settings, make_study: MakeStudy, mlflow_template: Path
) -> None:
    settings.home.mkdir(exist_ok=True)
    shutil.copy(mlflow_template, settings.home / "mlflow.db")
    study = make_study()
    deliver(study)
    client = MlflowRuns(settings.tracking_uri, settings.home / "mlartifacts")._client
    experiment = client.get_experiment_by_name("widths").experiment_id
    theirs = client.create_run(experiment).info.run_id
    with database.reading() as connection:
        ours = connection.execute(select(studies.c.mlflow_run_id)).scalar_one()

    delete_study(database, study)
    assert [run.info.run_id for run in client.search_runs([experiment])] == [theirs]
    assert client.get_run(ours).info.lifecycle_stage == "deleted"
