from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.study import StudyConfig, study_from_values
from search.work import service as service_module
from search.work.service import Service
from search.work.stopping import StopRequest
from search.work.worker import SilentWatcher, TrialNews
from storage.database import Database
from storage.errors import DatabaseUnreachableError
from storage.ownership import STUDY_MARKER, write_marker
from storage.studies import Budget, Study, StudyProgress, create_study
from storage.trials.queue import next_study
from storage.trials.views import trial_rows
from trainer.config import TaskConfig, dump_config


class Course(SilentWatcher):
    """The trials that ended, as study and number, in their order; may act at the end of one."""

    def __init__(self, at_end: Callable[[str, int], None] = lambda study, number: None) -> None:
        self.ends: list[tuple[str, int]] = []
        self._at_end = at_end

    def ended(self, news: TrialNews, progress: StudyProgress) -> None:
        assert news.state == "complete"
        self.ends.append((news.study, news.number))
        self._at_end(news.study, news.number)


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "POLL_SECONDS", 0.05)


@pytest.fixture
def make(database: Database, data_file: Path) -> Callable[..., Study]:
    """Begins a study of two trials of one epoch each."""

    def make_study(name: str, priority: int = 0, file: Path = data_file, **changes: Any) -> Study:
        values = {
            "name": name,
            "data": {"files": [str(file)]},
            "training": {"epochs": 1, "hidden": [8], "device": "cpu", "batch_size": 32},
            "sampler": {"kind": "random"},
            "pruner": {"kind": "none"},
        }
        config: StudyConfig = study_from_values(values | changes, "test")
        return create_study(database, name, dump_config(config), Budget(trials=2), priority)

    return make_study


def serve(
    database: Database, course: Course, idle_timeout: float | None = 0.0, stop: StopRequest | None = None
) -> None:
    Service(
        database, course, stop or StopRequest(), start_relay=lambda study: None, idle_timeout=idle_timeout
    ).serve()


def test_studies_are_served_by_priority_then_age(database: Database, make: Callable[..., Study]) -> None:
    make("first"), make("second"), make("urgent", priority=1), make("last", priority=-1)
    course = Course()
    serve(database, course)
    assert course.ends == [(name, n) for name in ("urgent", "first", "second", "last") for n in (0, 1)]
    assert next_study(database) is None


def test_a_study_of_higher_priority_is_served_after_the_trial_in_hand(
    database: Database, make: Callable[..., Study]
) -> None:
    make("early")

    def come_later(study: str, number: int) -> None:
        if (study, number) == ("early", 0):
            make("urgent", priority=1)

    course = Course(come_later)
    serve(database, course)
    assert course.ends == [("early", 0), ("urgent", 0), ("urgent", 1), ("early", 1)]


def test_a_study_that_is_created_later_is_picked_up(database: Database, make: Callable[..., Study]) -> None:
    stop = StopRequest()

    def stop_at_the_end(study: str, number: int) -> None:
        if number == 1:
            stop.ask(signal.SIGTERM)

    course = Course(stop_at_the_end)
    creating = threading.Timer(0.5, lambda: make("later"))
    creating.start()
    serve(database, course, idle_timeout=None, stop=stop)
    creating.join(60)
    assert not creating.is_alive(), "the study is not made"
    assert course.ends == [("later", 0), ("later", 1)]


def test_the_worker_leaves_when_there_was_nothing_for_long(database: Database) -> None:
    begun = time.monotonic()
    serve(database, Course(), idle_timeout=0.4)
    assert 0.4 <= time.monotonic() - begun < 10


def test_a_study_that_cannot_be_trained_here_does_not_keep_the_others_waiting(
    database: Database, make: Callable[..., Study], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = make("broken", priority=1, file=tmp_path / "nosuch.h5")
    make("sound")
    course = Course()
    serve(database, course)
    assert course.ends == [("sound", 0), ("sound", 1)]
    assert trial_rows(database, broken) == []
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith("broken: cannot be trained here: ")
    assert "nosuch.h5" in said


def fail_once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Let a database be away when a function is called first."""
    function, failures = getattr(owner, name), iter([DatabaseUnreachableError()])

    def called(*arguments: Any) -> Any:
        for failure in failures:
            raise failure
        return function(*arguments)

    monkeypatch.setattr(owner, name, called)


def test_a_study_begins_once_the_database_is_back(
    database: Database, make: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    make("first")
    fail_once(monkeypatch, service_module, "open_study")
    fail_once(monkeypatch, Study, "set_facts")
    course = Course()
    serve(database, course)
    assert course.ends == [("first", 0), ("first", 1)]


def test_a_study_whose_folder_is_of_another_database_does_not_keep_the_others_waiting(
    database: Database, make: Callable[..., Study], caplog: pytest.LogCaptureFixture
) -> None:
    taken = make("taken", priority=1)
    write_marker(database.settings.study_folder("taken") / STUDY_MARKER, "of another database")
    make("sound")
    course = Course()
    serve(database, course)
    assert course.ends == [("sound", 0), ("sound", 1)]
    assert trial_rows(database, taken) == []
    assert "trials/taken: its trials belong to another database" in caplog.text


def test_the_data_of_two_studies_is_read_once_where_it_is_the_same(
    database: Database, make: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    prepare_task = service_module.prepare_task

    def prepare(config: TaskConfig, *arguments: Any) -> Any:
        read.append(config.split.seed)
        return prepare_task(config, *arguments)

    monkeypatch.setattr(service_module, "prepare_task", prepare)
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        make(name, split={"seed": seed})
    serve(database, Course())
    assert read == [0, 1]


SEEDS = {
    "finalists": {"seeds": 2, "most": 2},
    "space": {"learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}},
}


def test_finalists_get_their_seeds(database: Database, make: Callable[..., Study]) -> None:
    study = make("seeds", **SEEDS)
    course = Course()
    serve(database, course)
    assert course.ends == [("seeds", n) for n in range(4)]
    assert sorted(t.replicate_of for t in trial_rows(database, study)[2:]) == [0, 1]
    assert next_study(database) is None


def test_finalists_get_their_seeds_though_the_last_worker_is_gone(
    database: Database, make: Callable[..., Study]
) -> None:
    study, stop = make("seeds", **SEEDS), StopRequest()

    def leave_after_the_last(study: str, number: int) -> None:
        if number == 1:
            stop.ask(signal.SIGTERM)

    serve(database, Course(leave_after_the_last), stop=stop)
    assert len(trial_rows(database, study)) == 2
    course = Course()
    serve(database, course)
    assert course.ends == [("seeds", 2), ("seeds", 3)]
