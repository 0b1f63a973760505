"""What is deleted is what our own records name in our folders, whatever MLflow, a row or a link says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from sqlalchemy import select, update

from storage.blobs.folder import FolderBlobs
from storage.confined import child, descendant, remove_child
from storage.database import Database, open_database
from storage.deletion import delete_study
from storage.errors import OutsideFolderError
from storage.garbage import find_garbage, remove
from storage.records.tables import artifacts, checkpoints, studies, trials
from storage.settings import Settings
from storage.studies import Budget, Study, create_study, open_study
from storage.tracking.lease import take_lease
from storage.tracking.mlflow_runs import open_runs
from storage.tracking.relay import Relay
from storage.trials.attempts import Attempt
from storage.trials.queue import WorkerInfo, claim_trial

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")

WORKER = WorkerInfo("w1", "here", 1, "cpu", {})


@pytest.fixture
def database(tmp_path: Path, make_home: Callable[[Path], Settings]) -> Iterator[Database]:
    """A home on SQLite, with a file of a person beside it."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis").write_text("years of work")
    with open_database(make_home(tmp_path / "home")) as opened:
        yield opened


@pytest.fixture
def finished(database: Database) -> Callable[[str], Study]:
    """Makes a study of a name with one trial that has ended, of which MLflow knows all."""

    def make(name: str) -> Study:
        study = create_study(database, name, {}, Budget())
        claim = claim_trial(database, study, WORKER)
        assert claim is not None
        attempt = Attempt(database, study, claim)
        attempt.record_config({"hidden": [8]}, {"layers": 1}, planned_epochs=1)
        plot = database.settings.trial_folder(name, claim.number) / "loss.png"
        plot.parent.mkdir(parents=True)
        plot.write_bytes(name.encode())
        attempt.record_artifacts({"plots/loss.png": plot})
        attempt.finish("complete", value=1.0)
        lease = take_lease(study)
        assert lease is not None
        relay = Relay(lease, lambda number: "note", Event())
        while relay.deliver():
            pass
        lease.release()
        return study

    return make


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder, but for databases, locks and logs."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith((".db", ".db-wal", ".db-shm", ".lock"))
    }


def rename(database: Database, study: Study, name: str) -> None:
    """Rename the experiment of a study, as anybody can who reaches MLflow's page."""
    with database.reading() as connection:
        query = select(studies.c.mlflow_experiment_id).where(studies.c.id == study.id)
        experiment = connection.execute(query).scalar_one()
    open_runs(database.settings).ask(lambda client: client.rename_experiment(experiment, name))


@pytest.mark.parametrize("name", ["..", ".", "../../precious", "other", "{tmp}/precious"])
def test_an_experiment_that_was_renamed_takes_nothing_else_with_it(
    database: Database, finished: Callable[[str], Study], tmp_path: Path, name: str
) -> None:
    other = finished("other")
    before = files(tmp_path)
    doomed = finished("doomed")
    if name == "other":  # the names change places
        rename(database, other, "aside")
    rename(database, doomed, name.format(tmp=tmp_path))
    delete_study(database, doomed)
    assert files(tmp_path) == before
    assert (database.settings.home / "anitune.db").exists()
    assert (database.settings.home / "mlflow.db").exists()
    assert open_study(database, "other").optuna.get_trials()[0].value == 1.0


def test_runs_of_others_keep_their_files_in_the_folder_of_the_study(
    database: Database, finished: Callable[[str], Study]
) -> None:
    study = finished("doomed")
    folder = database.settings.mlflow_artifacts / "doomed"
    theirs = folder / ("a" * 32) / "artifacts" / "notes.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("of another database")
    delete_study(database, study)
    assert files(folder) == {f"{'a' * 32}/artifacts/notes.txt": b"of another database"}


@pytest.mark.parametrize("place", ["trials/doomed", "promotions/doomed", "mlartifacts/doomed", "run"])
def test_deletion_follows_no_link(
    database: Database, finished: Callable[[str], Study], tmp_path: Path, place: str
) -> None:
    study = finished("doomed")
    with database.reading() as connection:
        run = connection.execute(select(trials.c.mlflow_run_id)).scalar_one()
    link = database.settings.home / (f"mlartifacts/doomed/{run}" if place == "run" else place)
    if link.exists():
        link.rename(tmp_path / "aside")
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "precious")
    with database.writing() as connection:  # as if that were a run
        connection.execute(update(trials).values(mlflow_run_id="thesis" if place != "run" else run))
    delete_study(database, study)
    assert (tmp_path / "precious" / "thesis").read_text() == "years of work"


@pytest.mark.parametrize("digest", ["../../precious/thesis", "{tmp}/precious/thesis", "..", ".keep", "ab"])
def test_a_digest_in_the_records_deletes_no_other_file(
    database: Database, finished: Callable[[str], Study], tmp_path: Path, digest: str
) -> None:
    study = finished("doomed")
    kept = database.settings.artifacts
    (kept / ".keep").write_text("")
    (kept / "ab").mkdir(exist_ok=True)
    (kept / "ab" / "of a person").write_text("")
    values: dict[str, Any] = {"digest": digest.format(tmp=tmp_path)}
    with database.writing() as connection:
        connection.execute(update(artifacts).values(values))
        row = {"study_id": study.id, "number": 0, "attempt": 1, "epoch": 1, "size": 1, **values}
        connection.execute(checkpoints.insert().values(row))
    delete_study(database, study)
    assert (tmp_path / "precious" / "thesis").exists()
    assert (kept / ".keep").exists()
    assert (kept / "ab" / "of a person").exists()


def test_garbage_is_not_collected_through_links(
    database: Database, finished: Callable[[str], Study], tmp_path: Path
) -> None:
    finished("study")
    home, precious = database.settings.home, tmp_path / "precious"
    (precious / "checkpoint").write_text("of another home")
    (precious / ("ab" * 32)).write_text("of another home")
    partial = precious / f".{'ab' * 32}.0.partial"
    partial.write_text("of another home")
    old = time.time() - 1e6
    os.utime(partial, (old, old))
    (home / "trials" / "study" / "00000" / "attempt-1").symlink_to(precious)
    (home / "artifacts" / "ab").symlink_to(precious)
    before = files(precious)
    list(remove(database, find_garbage(database, "checkpoint")))
    FolderBlobs(home / "artifacts").delete("ab" * 32)
    assert files(precious) == before


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/b", "a/", "../x", "/etc", "./a", "a\0b"])
def test_such_a_name_is_no_child(tmp_path: Path, name: str) -> None:
    for refused in (child, remove_child):
        with pytest.raises(OutsideFolderError):
            refused(tmp_path, name)


def test_a_link_is_no_child_and_is_removed_alone(tmp_path: Path) -> None:
    outside, store = tmp_path / "outside", tmp_path / "store"
    for folder in (outside, store / "real"):
        folder.mkdir(parents=True)
        (folder / "file").write_text("")
    (store / "link").symlink_to(outside)
    (store / "real" / "link").symlink_to(outside)
    assert descendant(store, "real/file").exists()
    for path in ("link", "link/file", "real/link/file", "real/../real"):
        with pytest.raises(OutsideFolderError):
            descendant(store, path)
    for name in ("link", "real", "gone"):
        remove_child(store, name)
    assert list(store.iterdir()) == []
    assert (outside / "file").exists()
