from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import update

from storage.blobs.folder import FolderBlobs
from storage.database import Database, open_database
from storage.errors import SettingsError
from storage.garbage import UNFINISHED_SECONDS, find_garbage, remove
from storage.records.tables import artifacts, outbox
from storage.settings import Settings
from storage.studies import Study
from storage.trials.attempts import Attempt
from storage.trials.queue import WorkerInfo, claim_trial

CHECKPOINT = "checkpoint"


@pytest.fixture
def study(make_study: Callable[..., Study]) -> Study:
    return make_study()


@pytest.fixture
def blobs(settings: Settings) -> FolderBlobs:
    return FolderBlobs(settings.artifacts)


def begin(database: Database, study: Study, worker: WorkerInfo) -> Attempt:
    claim = claim_trial(database, study, worker)
    assert claim is not None
    return Attempt(database, study, claim)


def write(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def collect(database: Database) -> list[tuple[str, str, int]]:
    """Delete all garbage; what it was."""
    found = find_garbage(database, CHECKPOINT)
    gone = list(remove(database, found))
    assert gone == found
    assert not any(each.path.exists() for each in gone)
    return [(each.kind, each.path.name, each.bytes) for each in gone]


def test_a_blob_goes_when_no_row_names_it_and_mlflow_has_it(
    database: Database, study: Study, worker: WorkerInfo, blobs: FolderBlobs, tmp_path: Path
) -> None:
    attempt = begin(database, study, worker)
    attempt.record_artifacts({"log.txt": write(tmp_path, "first", b"first")})
    attempt.record_artifacts({"log.txt": write(tmp_path, "last", b"last")})
    stray = blobs.put(write(tmp_path, "stray", b"a stray"))
    assert collect(database) == [("artifact", stray, 7)]

    with database.writing() as connection:
        connection.execute(update(outbox).values(delivered_at=1.0))
    ((kind, first, size),) = collect(database)
    assert (kind, size) == ("artifact", 5)
    assert not blobs.holds(first)
    with database.reading() as connection:
        (row,) = connection.execute(artifacts.select()).all()
    assert blobs.path(row.digest).read_bytes() == b"last"


def test_a_blob_that_gets_its_row_before_it_is_deleted_stays(
    database: Database, study: Study, worker: WorkerInfo, blobs: FolderBlobs, tmp_path: Path
) -> None:
    file = write(tmp_path, "plot.png", b"plot")
    digest = blobs.put(file)
    found = find_garbage(database, CHECKPOINT)
    assert [each.path.name for each in found] == [digest]
    begin(database, study, worker).record_artifacts({"plot.png": file})
    assert list(remove(database, found)) == []
    assert blobs.holds(digest)


def test_a_blob_that_is_deleted_just_before_its_row_is_written_is_stored_again(
    database: Database,
    study: Study,
    worker: WorkerInfo,
    blobs: FolderBlobs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempt = begin(database, study, worker)
    put = FolderBlobs.put
    deleted = []

    def put_and_lose(store: FolderBlobs, file: Path) -> str:
        digest = put(store, file)
        if not deleted:
            deleted.extend(collect(database))
        return digest

    monkeypatch.setattr(FolderBlobs, "put", put_and_lose)
    attempt.record_artifacts({"plot.png": write(tmp_path, "plot.png", b"plot")})
    ((_, digest, _),) = deleted
    assert blobs.path(digest).read_bytes() == b"plot"
    assert collect(database) == []


def test_of_a_trial_the_checkpoint_is_needed_until_it_ends(
    database: Database, study: Study, worker: WorkerInfo, settings: Settings
) -> None:
    ended, interrupted = begin(database, study, worker), begin(database, study, worker)
    for number in (0, 1):
        write(settings.attempt_folder("widths", number, 1), CHECKPOINT, b"weights")
        write(settings.attempt_folder("widths", number, 1), "model", b"model")
    interrupted.hand_back("stopped")
    assert collect(database) == []
    ended.finish("complete", value=1.0)
    assert collect(database) == [("checkpoint", CHECKPOINT, 7)]
    assert (settings.attempt_folder("widths", 0, 1) / "model").exists()
    assert (settings.attempt_folder("widths", 1, 1) / CHECKPOINT).exists()


def test_the_folder_of_a_trial_that_is_not_recorded_goes(
    database: Database, study: Study, settings: Settings
) -> None:
    write(settings.trial_folder("widths", 7) / "plots", "loss.png", b"plot")
    write(settings.trial_folder("other", 0), CHECKPOINT, b"weights")
    assert sorted(collect(database)) == [("trial", "00000", 7), ("trial", "00007", 4)]


def test_images_of_the_dashboard_go_with_their_rows_and_uploads_stay(
    database: Database, study: Study, worker: WorkerInfo, settings: Settings, tmp_path: Path
) -> None:
    attempt = begin(database, study, worker)
    attempt.record_artifacts({"plots/loss.png": write(tmp_path, "loss.png", b"plot")})
    attempt.finish("complete", value=1.0)
    write(settings.optuna_artifacts, "01-99-0-0123456789abcdef", b"old")
    write(settings.optuna_artifacts, "3f0c-uploaded-by-a-person", b"mine")
    assert collect(database) == [("image", "01-99-0-0123456789abcdef", 3)]
    assert len(list(settings.optuna_artifacts.iterdir())) == 2


def test_what_a_killed_process_left_half_copied_goes_after_a_day(
    database: Database, settings: Settings
) -> None:
    old = write(settings.artifacts, ".incoming-old", b"half")
    write(settings.artifacts, ".incoming-new", b"half")
    yesterday = time.time() - UNFINISHED_SECONDS - 1
    os.utime(old, (yesterday, yesterday))
    assert collect(database) == [("artifact", ".incoming-old", 4)]


def test_files_that_may_belong_to_another_database_are_left_alone(
    database: Database, settings: Settings
) -> None:
    other = f"sqlite:///{settings.home / 'other.db'}"
    settings.home.mkdir(exist_ok=True)
    (settings.home / "anitune.db").touch()
    with (
        open_database(Settings(settings.home, other, settings.tracking_uri)) as opened,
        pytest.raises(SettingsError, match=r"anitune\.db"),
    ):
        find_garbage(opened, CHECKPOINT)
