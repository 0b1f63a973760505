"""Workers of one PostgreSQL in homes that see nothing of each other: files and checkpoints reach them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import func, select

from dashboards.optuna_images import TrialImages
from storage.blobs.place import ARTIFACTS_MARKER, open_blobs, resolve_artifact_location
from storage.blobs.store import BlobStore
from storage.database import Database, open_database
from storage.deletion import delete_study
from storage.errors import BlobMissingError, FolderTakenError, LeaseLostError, SettingsError
from storage.garbage import find_garbage, remove
from storage.ownership import ownership_marker, write_marker
from storage.records.tables import blobs, checkpoints, metrics
from storage.settings import Settings
from storage.studies import Budget, Study, create_study, open_study
from storage.tracking.outbox import MetricRow
from storage.trials.attempts import Attempt
from storage.trials.checkpoints import SavedCheckpoint
from storage.trials.queue import WorkerInfo, claim_trial
from tests.leases import let_leases_run_out

OpenHome = Callable[..., Database]


@pytest.fixture
def plain(postgresql_url: str, tmp_path: Path) -> Settings:
    """Of the first home, which keeps its artifacts to itself."""
    return Settings(tmp_path / "home-1", postgresql_url, f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture(params=["folder", "database"])
def settings(request: pytest.FixtureRequest, plain: Settings, tmp_path: Path) -> Settings:
    return replace(plain, artifacts_in="database" if request.param == "database" else tmp_path / "shared")


@pytest.fixture
def open_home(settings: Settings) -> Iterator[OpenHome]:
    """Opens the database as a worker of that home does."""
    with ExitStack() as stack:

        def open_it(name: str, **changed: object) -> Database:
            home = settings.home.with_name(name)
            database = stack.enter_context(open_database(replace(settings, home=home, **changed)))  # type: ignore[arg-type]
            resolve_artifact_location(database)
            return database

        yield open_it


@pytest.fixture
def one(open_home: OpenHome) -> Database:
    return open_home("home-1")


@pytest.fixture
def two(open_home: OpenHome) -> Database:
    return open_home("home-2")


@pytest.fixture
def study(one: Database) -> Study:
    return create_study(one, "widths", {}, Budget(trials=3))


def begin(database: Database, worker: WorkerInfo) -> Attempt:
    study = open_study(database, "widths")
    claim = claim_trial(database, study, worker)
    assert claim is not None
    return Attempt(database, study, claim)


def saved(folder: Path, epoch: int) -> SavedCheckpoint:
    folder.mkdir(exist_ok=True)
    (folder / "checkpoint").write_bytes(b"state after epoch %d" % epoch)
    return SavedCheckpoint(folder / "checkpoint", epoch)


def loss(*epochs: int) -> list[MetricRow]:
    return [MetricRow("val/loss", epoch, 0.5, 1_000 * epoch) for epoch in epochs]


def kept(database: Database) -> list[tuple[int, int, bytes]]:
    """Attempt, epoch and content of the checkpoints that are kept."""
    with database.reading() as connection:
        rows = connection.execute(select(checkpoints)).all()
    store = open_blobs(database)
    return [(row.attempt, row.epoch, b"".join(store.read(row.digest))) for row in rows]


def test_a_checkpoint_is_kept_with_its_metrics_replaces_the_older_and_goes_with_the_trial(
    one: Database, study: Study, worker: WorkerInfo, tmp_path: Path
) -> None:
    attempt = begin(one, worker)
    attempt.record_metrics(loss(1), saved(tmp_path, 1))
    assert kept(one) == [(1, 1, b"state after epoch 1")]
    attempt.rung(3, 1.0, loss(2, 3), lambda trial: False, saved(tmp_path, 3))
    assert kept(one) == [(1, 3, b"state after epoch 3")]
    attempt.record_metrics([], saved(tmp_path, 3))  # told again
    assert kept(one) == [(1, 3, b"state after epoch 3")]
    assert len(open_blobs(one).stored()) == 1
    assert find_garbage(one, "checkpoint") == []

    attempt.finish("complete", value=1.0)
    assert kept(one) == []
    assert open_blobs(one).stored() == []


def test_another_machine_fetches_the_checkpoint_unless_its_own_goes_as_far(
    one: Database, two: Database, study: Study, worker: WorkerInfo, tmp_path: Path
) -> None:
    first = begin(one, worker)
    first.record_metrics(loss(1, 2), saved(tmp_path, 2))
    let_leases_run_out(one, first.claim.token)
    second = begin(two, replace(worker, name="w2"))
    assert second.claim.attempt == 2

    target = tmp_path / "attempt-2" / "checkpoint.safetensors"
    assert second.fetch_checkpoint(target, after=2) is None
    assert second.fetch_checkpoint(target, after=3) is None
    assert not target.exists()
    assert second.fetch_checkpoint(target, after=1) == 2
    assert target.read_bytes() == b"state after epoch 2"
    assert list(target.parent.iterdir()) == [target]


def test_a_worker_that_wakes_up_replaces_neither_checkpoint_nor_metrics(
    one: Database, two: Database, study: Study, worker: WorkerInfo, tmp_path: Path
) -> None:
    zombie = begin(one, worker)
    zombie.record_metrics(loss(1), saved(tmp_path / "a", 1))
    let_leases_run_out(one, zombie.claim.token)
    taker = begin(two, replace(worker, name="w2"))
    taker.record_metrics(loss(2), saved(tmp_path / "b", 2))

    for write in (
        lambda: zombie.record_metrics(loss(2, 3), saved(tmp_path / "a", 3)),
        lambda: zombie.rung(3, 1.0, loss(2, 3), lambda trial: False, saved(tmp_path / "a", 3)),
    ):
        with pytest.raises(LeaseLostError):
            write()
    assert kept(two) == [(2, 2, b"state after epoch 2")]
    with two.reading() as connection:
        assert connection.execute(select(func.max(metrics.c.step))).scalar_one() == 2
    # What it had put before it was refused is garbage, and nothing else is.
    garbage = find_garbage(two, "checkpoint")
    assert [(each.kind, each.bytes) for each in garbage] == [("artifact", len(b"state after epoch 3"))]
    assert list(remove(two, garbage)) == garbage
    assert kept(two) == [(2, 2, b"state after epoch 2")]


def test_a_lost_checkpoint_costs_no_trial(
    one: Database,
    two: Database,
    study: Study,
    worker: WorkerInfo,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = begin(one, worker)
    first.record_metrics(loss(1), saved(tmp_path, 1))
    let_leases_run_out(one, first.claim.token)
    (blob,) = open_blobs(one).stored()
    open_blobs(one).delete(blob.name)
    second = begin(two, replace(worker, name="w2"))
    assert second.fetch_checkpoint(tmp_path / "target", after=0) is None
    assert "its checkpoint of epoch 1 is lost" in caplog.text


def test_files_reach_every_home_and_its_optuna_dashboard(
    one: Database, two: Database, study: Study, worker: WorkerInfo, tmp_path: Path
) -> None:
    plot = tmp_path / "loss.png"
    plot.write_bytes(b"a plot")
    attempt = begin(one, worker)
    attempt.record_artifacts({"plots/loss.png": plot})
    attempt.finish("complete", value=1.0)

    (image,) = one.settings.optuna_artifacts.iterdir()
    images = TrialImages(two)
    with images.open_reader(image.name) as shown:
        assert shown.read() == b"a plot"
    with pytest.raises(Exception, match="not found"):
        images.open_reader("01-1-0-0123456789abcdef")
    (blob,) = open_blobs(two).stored()
    assert open_blobs(two).path(blob.name).read_bytes() == b"a plot"


def test_files_are_kept_once_the_database_is_back(
    one: Database,
    study: Study,
    worker: WorkerInfo,
    tmp_path: Path,
    database_away: Callable[[Database], AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempt = begin(one, worker)
    (tmp_path / "model").write_bytes(b"weights")
    kind = type(open_blobs(one))
    put = kind.put

    def put_while_it_is_away(store: BlobStore, file: Path) -> str:
        monkeypatch.undo()
        with database_away(one):
            return put(store, file)

    monkeypatch.setattr(kind, "put", put_while_it_is_away)
    attempt.record_artifacts({"model": tmp_path / "model"})
    (blob,) = open_blobs(one).stored()
    assert open_blobs(one).path(blob.name).read_bytes() == b"weights"


def test_copies_of_what_is_gone_go_too(
    one: Database, two: Database, study: Study, worker: WorkerInfo, tmp_path: Path
) -> None:
    (tmp_path / "model").write_bytes(b"weights")
    attempt = begin(one, worker)
    attempt.record_artifacts({"model": tmp_path / "model"})
    (blob,) = open_blobs(two).stored()
    open_blobs(two).path(blob.name)
    attempt.finish("complete", value=1.0)
    delete_study(one, study)
    with one.reading() as connection:
        assert connection.execute(select(func.count()).select_from(blobs)).scalar_one() == 0
    assert open_blobs(one).stored() == []
    expected = ["copy"] if two.settings.artifacts_in == "database" else []
    garbage = find_garbage(two, "checkpoint")
    assert [each.kind for each in garbage] == expected
    assert list(remove(two, garbage)) == garbage
    assert find_garbage(two, "checkpoint") == []


def test_whoever_looks_elsewhere_is_told_where(
    one: Database, plain: Settings, settings: Settings, tmp_path: Path
) -> None:
    said = "ANITUNE_ARTIFACTS=database" if settings.artifacts_in == "database" else f"{tmp_path}/shared"
    with open_database(plain) as wrong:
        for use in (open_blobs, resolve_artifact_location):
            with pytest.raises(SettingsError, match=said) as error:
                use(wrong)
            assert "\n" not in str(error.value)
        with pytest.raises(SettingsError):
            find_garbage(wrong, "checkpoint")
    with (
        open_database(replace(settings, artifacts_in=tmp_path / "not mounted")) as wrong,
        pytest.raises(SettingsError, match="ANITUNE_ARTIFACTS"),
    ):
        resolve_artifact_location(wrong)


def test_the_first_worker_brings_what_its_home_has(
    plain: Settings, settings: Settings, worker: WorkerInfo, tmp_path: Path
) -> None:
    (tmp_path / "model").write_bytes(b"weights")
    with open_database(plain) as before:
        create_study(before, "widths", {}, Budget())
        begin(before, worker).record_artifacts({"model": tmp_path / "model"})
    with open_database(replace(settings, home=tmp_path / "home-2")) as other:
        with pytest.raises(BlobMissingError, match="1 of the 1 files of its trials are not in"):
            resolve_artifact_location(other)
        assert open_blobs(other).stored() == []
    with open_database(settings) as first:
        resolve_artifact_location(first)
    with open_database(replace(settings, home=tmp_path / "home-2")) as other:
        resolve_artifact_location(other)
        (blob,) = open_blobs(other).stored()
        assert open_blobs(other).path(blob.name).read_bytes() == b"weights"


def test_a_folder_of_another_database_is_refused(plain: Settings, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / ARTIFACTS_MARKER).write_text("0123\n")
    with open_database(replace(plain, artifacts_in=shared)) as database:
        for use in (resolve_artifact_location, open_blobs, partial(find_garbage, checkpoint="checkpoint")):
            with pytest.raises(FolderTakenError, match="holds the artifacts of another database"):
                use(database)


def test_a_folder_whose_marker_was_written_before_a_crash_is_ours(plain: Settings, tmp_path: Path) -> None:
    with open_database(replace(plain, artifacts_in=tmp_path / "shared")) as database:
        with database.reading() as connection:
            write_marker(tmp_path / "shared" / ARTIFACTS_MARKER, ownership_marker(connection))
        resolve_artifact_location(database)
        assert open_blobs(database).stored() == []


def test_a_file_that_is_lent_is_whole_and_leaves_no_copy(
    one: Database, two: Database, study: Study, tmp_path: Path
) -> None:
    (tmp_path / "weights").write_bytes(b"weights")
    digest = open_blobs(one).put(tmp_path / "weights")
    copies = two.settings.artifact_copies
    with open_blobs(two).lend(digest) as file:
        assert file.read_bytes() == b"weights"
    assert [path for path in copies.rglob("*") if path.is_file()] == []
    with pytest.raises(BlobMissingError), open_blobs(two).lend("0" * 64):
        pass
