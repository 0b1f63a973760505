from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from storage.blobs.folder import FolderBlobs
from storage.database import Database, open_database
from storage.errors import FolderTakenError
from storage.files import partial_name
from storage.garbage import UNFINISHED_SECONDS, find_garbage, remove
from storage.ownership import own_study_folder
from storage.records.tables import artifacts, outbox
from storage.settings import Settings
from storage.studies import Budget, Study, create_study
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
    for name in ("widths", "other"):
        own_study_folder(database, name)
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


@pytest.mark.parametrize("place", ["trials/widths/00000/attempt-1", "promotions/widths", "optuna-artifacts"])
def test_so_does_what_it_left_of_a_file_that_was_to_appear_whole(
    database: Database, settings: Settings, study: Study, worker: WorkerInfo, place: str
) -> None:
    begin(database, study, worker)
    old = write(settings.home / place, ".x.0123.partial", b"half")
    partial_name(old.with_name("x")).write_bytes(b"half")
    yesterday = time.time() - UNFINISHED_SECONDS - 1
    os.utime(old, (yesterday, yesterday))
    assert collect(database) == [("partial", ".x.0123.partial", 4)]


@pytest.fixture
def forgotten(settings: Settings) -> Iterator[Database]:
    """Another database, opened in the same home folder."""
    other = replace(settings, storage_url=f"sqlite:///{settings.home / 'other.db'}")
    with open_database(other) as opened:
        yield opened


@pytest.mark.parametrize("marked", [True, False])
def test_files_of_another_database_are_left_alone(
    database: Database,
    study: Study,
    worker: WorkerInfo,
    forgotten: Database,
    settings: Settings,
    marked: bool,
) -> None:
    if marked:
        own_study_folder(database, "widths")
        assert claim_trial(forgotten, create_study(forgotten, "widths", {}, Budget()), worker)
    attempt = begin(database, study, worker)
    write(settings.attempt_folder("widths", 0, 1), CHECKPOINT, b"weights")
    attempt.finish("complete", value=1.0)
    with pytest.raises(FolderTakenError, match=r"trials/widths: .* than .*other\.db") as error:
        find_garbage(forgotten, CHECKPOINT)
    assert "\n" not in str(error.value)
    assert collect(database) == [("checkpoint", CHECKPOINT, 7)]


def test_studies_of_two_databases_share_no_folder(
    database: Database, study: Study, worker: WorkerInfo, forgotten: Database, settings: Settings
) -> None:
    own_study_folder(database, "widths")
    own_study_folder(database, "widths")
    with pytest.raises(FolderTakenError, match="another database"):
        own_study_folder(forgotten, "widths")
    own_study_folder(forgotten, "heights")


def test_a_folder_of_an_older_program_is_the_database_s_that_has_its_trials(
    database: Database, study: Study, worker: WorkerInfo, forgotten: Database, settings: Settings
) -> None:
    begin(database, study, worker)
    write(settings.attempt_folder("widths", 0, 1), CHECKPOINT, b"weights")
    with pytest.raises(FolderTakenError, match="another database"):
        own_study_folder(forgotten, "widths")
    assert collect(database) == []
    own_study_folder(database, "widths")
    assert collect(database) == []
