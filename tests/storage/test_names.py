"""No name of a study or an artifact leads out of its folder, whoever has written it into the records."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import select, update

from storage.database import Database
from storage.deletion import delete_study
from storage.errors import ArtifactNameError, SettingsError, StudyNotFoundError, TrackingRefusedError
from storage.garbage import find_garbage, remove
from storage.records.tables import artifacts, outbox, studies
from storage.settings import Settings
from storage.studies import Budget, Study, create_study, open_study
from storage.tracking.lease import take_lease
from storage.tracking.mlflow_runs import open_runs
from storage.tracking.relay import Relay, retry_rejected
from storage.trials.attempts import Attempt
from storage.trials.queue import WorkerInfo, claim_trial

# MLflow uses what is deprecated elsewhere; our own warnings stay errors.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")

STUDY_NAMES = (
    "",
    ".",
    "..",
    "../x",
    "a/../../x",
    "/etc",
    "a/b",
    "a\\b",
    "x\0y",
    "x\n",
    "%2e%2e",
    "%2e%2e%2fx",
    "~root",
    "-rf",
    "a" * 101,
    "a" * 100_000,
    "naïve",
    "a b",
    "$(id)",
)
ARTIFACT_NAMES = (
    "",
    ".",
    "..",
    "../x",
    "plots/../../x",
    "/etc/passwd",
    "plots//loss.png",
    "plots/",
    "plots\\loss.png",
    "x\0y",
    "x\n",
    "%2e%2e/x",
    "plots/%2e%2e/%2e%2e/x",
    "..%2fx",
    ".bashrc",
    "-rf",
    "a" * 201,
    "a/" * 10_000 + "b",
    "file:x",
)


@pytest.mark.parametrize("name", STUDY_NAMES)
def test_a_study_with_such_a_name_is_neither_made_nor_opened(database: Database, name: str) -> None:
    with pytest.raises(SettingsError, match="is not a valid name of a study"):
        create_study(database, name, {}, Budget(trials=1))
    with pytest.raises(StudyNotFoundError, match="there is no study"):
        open_study(database, name)


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "a..b", "9" * 100])
def test_a_study_with_a_name_of_letters_and_digits_has_a_folder(database: Database, name: str) -> None:
    study = create_study(database, name, {}, Budget(trials=1))
    home = database.settings.home
    assert database.settings.trial_folder(study.name, 0).resolve().is_relative_to(home / "trials" / name)


def test_a_name_that_somebody_wrote_into_the_records_opens_nothing(
    database: Database, make_study: Callable[..., Study]
) -> None:
    study = make_study()
    with database.writing() as connection:
        connection.execute(update(studies).values(name="../../widths"))
    with pytest.raises(StudyNotFoundError):
        open_study(database, "../../widths")
    with pytest.raises(StudyNotFoundError):
        open_study(database, study.name)


@pytest.fixture
def attempt(database: Database, make_study: Callable[..., Study], worker: WorkerInfo) -> Attempt:
    claim = claim_trial(database, study := make_study(), worker)
    assert claim is not None
    attempt = Attempt(database, study, claim)
    attempt.record_config({}, {}, planned_epochs=1)
    return attempt


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "made-by-worker"
    file.write_bytes(b"a picture")
    return file


@pytest.mark.parametrize("name", ARTIFACT_NAMES)
def test_an_artifact_with_such_a_name_is_not_recorded(
    database: Database, attempt: Attempt, file: Path, name: str
) -> None:
    with pytest.raises(ArtifactNameError, match="is not a valid name of an artifact") as error:
        attempt.record_artifacts({name: file})
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)
    with database.reading() as connection:
        assert connection.execute(select(artifacts)).all() == []


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_one_that_somebody_wrote_into_the_outbox_is_rejected_and_leaves_nothing_outside(
    database: Database,
    settings: Settings,
    attempt: Attempt,
    file: Path,
    mlflow_template: Path,
    tmp_path: Path,
) -> None:
    shutil.copy(mlflow_template, settings.home / "mlflow.db")
    attempt.record_artifacts({"plots/loss.png": file})
    attempt.finish("complete", 1.0)
    lease = take_lease(attempt.study)
    assert lease is not None
    relay = Relay(lease, lambda number: "a note", Event())
    temporary = Path(os.environ.get("TMPDIR", "/tmp"))
    for name in ("../../escaped-from-anitune", str(temporary / "escaped-from-anitune"), "a/%2e%2e/b"):
        with database.writing() as connection:
            row = connection.execute(select(outbox).where(outbox.c.kind == "artifact")).one()
            payload = {**row.payload, "path": name}
            connection.execute(update(outbox).where(outbox.c.id == row.id).values(payload=payload))
        retry_rejected(attempt.study)
        relay.deliver()
        with database.reading() as connection:
            query = select(outbox.c.rejected).where(outbox.c.kind == "artifact")
            assert "is not a valid name of an artifact" in connection.execute(query).scalar_one()
        with pytest.raises(TrackingRefusedError, match="is not a valid name of an artifact"):
            open_runs(settings).fetch("0" * 32, name, tmp_path)
    left = [*temporary.glob("escaped-from-anitune*"), *Path("/").glob("escaped-from-anitune*")]
    assert left == []
    assert not (settings.home / "mlartifacts" / "escaped-from-anitune").exists()


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_bytes_that_were_changed_are_not_delivered(
    database: Database, settings: Settings, attempt: Attempt, file: Path, mlflow_template: Path
) -> None:
    shutil.copy(mlflow_template, settings.home / "mlflow.db")
    attempt.record_artifacts({"model.safetensors": file})
    (blob,) = (path for path in settings.artifacts.rglob("*") if path.is_file())
    blob.chmod(0o644)
    blob.write_bytes(b"a p1cture")
    lease = take_lease(attempt.study)
    assert lease is not None
    Relay(lease, lambda number: "a note", Event()).deliver()
    with database.reading() as connection:
        query = select(outbox.c.rejected).where(outbox.c.kind == "artifact")
        assert "damaged, its content has the digest" in connection.execute(query).scalar_one()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """What must still be there at the end."""
    precious = tmp_path / "elsewhere" / "00000" / "precious"
    precious.parent.mkdir(parents=True)
    precious.write_text("of a person")
    return tmp_path / "elsewhere"


def test_garbage_is_not_looked_for_where_links_lead(
    database: Database, make_study: Callable[..., Study], elsewhere: Path
) -> None:
    make_study()
    home = database.settings.home
    for link in (home / "trials" / "linked", home / "trials" / "widths" / "00007", home / "artifacts" / "ab"):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(elsewhere)
    (home / "trials" / "notes" / "of a person").mkdir(parents=True)
    assert find_garbage(database, "checkpoint") == []
    assert list(remove(database, find_garbage(database, "checkpoint"))) == []
    assert (elsewhere / "00000" / "precious").exists()


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_deleting_a_study_deletes_nothing_that_a_link_leads_to(
    database: Database, make_study: Callable[..., Study], elsewhere: Path
) -> None:
    study = make_study()
    folder = database.settings.trial_folder(study.name, 0)
    folder.parent.mkdir(parents=True)
    folder.symlink_to(elsewhere)
    delete_study(database, study)
    assert (elsewhere / "00000" / "precious").exists()
    assert not folder.is_symlink()
