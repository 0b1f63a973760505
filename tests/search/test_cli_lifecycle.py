"""The commands for the life of a study."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from search.cli import work
from search.cli.main import app
from search.work.worker import Worker
from storage.database import Database, open_database
from storage.errors import DatabaseUnreachableError
from storage.ownership import own_study_folder
from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE, Settings, embedded
from storage.studies import Study
from storage.trials.queue import next_study
from storage.workers import WorkerHeartbeat

STUDY = """
name: tiny
data: {{files: [{data}]}}
training: {{epochs: 3, hidden: [8], device: cpu}}
limits: {{trials: 3}}
reference: rows.yaml
"""
ROWS = "name: rows\ntraining: {hidden: [8]}\nrows: [{label: first}]\n"

Anitune = Callable[..., Result]


@pytest.fixture
def anitune(tmp_path: Path, data_file: Path, make_home: Callable[[Path], Settings]) -> Anitune:
    """Runs a command in this process, in a home where there are a study and its rows."""
    make_home(tmp_path / "home")
    (tmp_path / "study.yaml").write_text(STUDY.format(data=data_file))
    (tmp_path / "rows.yaml").write_text(ROWS)
    places = dict.fromkeys((STORAGE_VARIABLE, TRACKING_VARIABLE))

    def run(*arguments: str, **options: Any) -> Result:
        runner = CliRunner(env={**places, "ANITUNE_HOME": str(tmp_path / "home")})
        return runner.invoke(app, list(arguments), **options)

    assert run("study", "create", str(tmp_path / "study.yaml")).exit_code == 0
    return run


@pytest.fixture
def database(anitune: Anitune, tmp_path: Path) -> Iterator[Database]:
    with open_database(embedded(tmp_path / "home")) as opened:
        yield opened


def states(anitune: Anitune, *arguments: str) -> dict[str, str]:
    listed = json.loads(anitune("study", "list", "--json", *arguments).stdout)
    return {study["name"]: study["state"] for study in listed}


def test_the_states_of_a_study_and_its_rows(anitune: Anitune) -> None:
    for command, state in (("pause", "paused"), ("resume", "open"), ("stop", "stopped"), ("resume", "open")):
        assert anitune("study", command, "tiny").exit_code == 0
        assert states(anitune) == {"tiny-rows": state, "tiny": state}
    assert "state        waiting for workers" in anitune("study", "show", "tiny").stdout
    assert anitune("study", "archive", "tiny").exit_code == 0
    assert states(anitune) == {}
    assert states(anitune, "--archived") == {"tiny-rows": "archived", "tiny": "archived"}
    refused = anitune("study", "resume", "tiny")
    assert refused.exit_code == 2
    assert refused.stderr == "anitune: study 'tiny' is archived: anitune study archive --undo tiny\n"
    assert anitune("study", "archive", "--undo", "tiny").exit_code == 0
    assert states(anitune) == {"tiny-rows": "open", "tiny": "open"}


@pytest.mark.parametrize("command", ["stop", "archive"])
def test_no_worker_serves_a_study_that_is_closed(anitune: Anitune, command: str) -> None:
    anitune("study", command, "tiny")
    answer = anitune("worker", "tiny")
    assert answer.exit_code == 2
    assert f"is {command}" in answer.stderr  # stopped, archived
    assert "anitune study" in answer.stderr


def test_extend(anitune: Anitune) -> None:
    answer = anitune("study", "extend", "tiny", "--trials", "4")
    assert answer.stdout == "tiny: the limit is now 7 trials\n"
    assert "no limit of epochs" in anitune("study", "extend", "tiny", "--epochs", "4").stderr
    assert anitune("study", "extend", "tiny").exit_code == 2
    rows = anitune("study", "extend", "tiny-rows", "--trials", "1")
    assert rows.exit_code == 2
    assert "has one trial per row or grid point, 1 in all" in rows.stderr


def test_a_study_file_undoes_no_extension_unless_it_was_edited(anitune: Anitune, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"

    def limit() -> int:
        assert anitune("study", "create", str(file)).exit_code == 0
        return int(json.loads(anitune("study", "show", "tiny", "--json").stdout)["limits"]["trials"])

    anitune("study", "extend", "tiny", "--trials", "4")
    assert limit() == 7
    file.write_text(file.read_text().replace("limits: {trials: 3}", "limits: {trials: 5}"))
    assert limit() == 5


def test_enqueue(anitune: Anitune, tmp_path: Path) -> None:
    enqueued = tmp_path / "wish.yaml"
    enqueued.write_text("learning_rate: 1e-3\nactivation: silu\n")
    answer = anitune("study", "enqueue", "tiny", str(enqueued), "--set", "activation=celu")
    assert answer.stdout == "tiny: enqueued activation celu, learning_rate 0.001\n"
    enqueued.write_text("learning_rate: 1e-3\nactivation: silly\n")
    refused = anitune("study", "enqueue", "tiny", str(enqueued))
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"anitune: {enqueued}: activation (line 2): ")
    assert anitune("study", "enqueue", "tiny", "--set", "activation").exit_code == 2
    # One width is a list of one: it is refused for what it is, not for its missing brackets.
    width = anitune("study", "enqueue", "tiny", "--set", "hidden=20")
    assert "width_1: is 8 in all trials of study 'tiny' (got 20)" in width.stderr
    deep = anitune("study", "enqueue", "tiny", "--set", f"hidden={'[' * 10_000}")
    assert deep.exit_code == 2
    assert len(deep.stderr.splitlines()) == 1


def test_gc_says_what_it_deletes_and_how_much(anitune: Anitune, tmp_path: Path, database: Database) -> None:
    assert anitune("gc").stdout == "0 B freed\n"
    folder = tmp_path / "home" / "trials" / "gone" / "00000"
    own_study_folder(database, "gone")
    folder.mkdir()
    (folder / "model").write_bytes(b"x" * 2048)
    dry = anitune("gc", "--dry-run").stdout.splitlines()
    assert dry[0].split() == ["would", "delete", "trial", "2", "KiB", str(folder)]
    assert dry[1] == "2 KiB can be freed"
    assert folder.exists()
    assert anitune("gc").stdout.splitlines()[1] == "2 KiB freed"
    assert not folder.exists()


def test_delete_asks(anitune: Anitune) -> None:
    refused = anitune("study", "delete", "tiny", input="n\n")
    assert refused.exit_code == 1
    assert "Delete all of this permanently?" in refused.stdout
    assert states(anitune).keys() == {"tiny-rows", "tiny"}
    answer = anitune("study", "delete", "tiny", "--yes")
    assert answer.stdout == "tiny: deleted\ntiny-rows: deleted\n"
    assert states(anitune) == {}
    assert anitune("study", "delete", "tiny", "--yes").exit_code == 2


def test_a_worker_of_all_studies_leaves_when_there_is_nothing(anitune: Anitune) -> None:
    anitune("study", "pause", "tiny")
    answer = anitune("worker", "--idle-timeout", "0", "--pack", "1")
    assert (answer.exit_code, answer.stdout) == (0, "")
    assert anitune("worker", "tiny", "--idle-timeout", "0").exit_code == 2


def test_a_worker_starts_once_the_database_is_back(anitune: Anitune, monkeypatch: pytest.MonkeyPatch) -> None:
    away = [
        (work, "study_state"),
        (WorkerHeartbeat, "__enter__"),
        (Study, "set_facts"),
        (WorkerHeartbeat, "set_structures"),
    ]
    failed = []

    def fail_once(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if name not in failed:
                failed.append(name)
                raise DatabaseUnreachableError
            return function(*arguments)

        return call

    for owner, name in away:
        monkeypatch.setattr(owner, name, fail_once(name, getattr(owner, name)))
    # All that comes after these: its trials.
    monkeypatch.setattr(Worker, "work", lambda self: 0)
    answer = anitune("worker", "tiny", "--pack", "1")
    assert answer.exit_code == 0, answer.stderr
    assert failed == [name for _, name in away]


def test_the_priority_of_a_study_file_may_change(
    anitune: Anitune, tmp_path: Path, database: Database
) -> None:
    assert next_study(database) == "tiny-rows"
    file = tmp_path / "study.yaml"
    other = tmp_path / "other.yaml"
    other.write_text(file.read_text().replace("tiny", "other").replace("reference: rows.yaml", ""))
    for priority, first in ((1, "other"), (-1, "tiny-rows")):
        named = tmp_path / "named.yaml"
        named.write_text(f"{other.read_text()}priority: {priority}\n")
        assert anitune("study", "create", str(named)).exit_code == 0
        assert next_study(database) == first
