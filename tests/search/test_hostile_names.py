"""Names that a person, or somebody else, writes into files and commands do not lead out of their folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from search.cli.main import app
from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE

NAMES = ("../x", "/tmp/x", "..", "%2e%2e", "%2e%2e%2fx", "a/b", "x" * 101, "x" * 5000, "x\\0y", ".x", "$(id)")
COMMANDS = (
    ("study", "show"),
    ("study", "best"),
    ("study", "verify"),
    ("study", "repair"),
    ("study", "pause"),
    ("study", "stop"),
    ("study", "archive"),
    ("study", "delete", "--yes"),
    ("study", "extend", "--trials", "1"),
    ("study", "enqueue", "--set", "dropout=0"),
    ("sync",),
    ("worker",),
    ("launch", "--on", "local"),
)

Anitune = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "around" / "home"


@pytest.fixture
def anitune(home: Path) -> Anitune:
    places = dict.fromkeys((STORAGE_VARIABLE, TRACKING_VARIABLE))

    def run(*arguments: str) -> Result:
        return CliRunner(env={**places, "ANITUNE_HOME": str(home)}).invoke(app, list(arguments))

    return run


@pytest.mark.parametrize("name", NAMES)
def test_a_study_file_with_such_a_name_is_one_line(anitune: Anitune, home: Path, name: str) -> None:
    file = home.parent / "study.yaml"
    file.parent.mkdir()
    file.write_text(f'name: "{name}"\nlimits: {{trials: 1}}\n')
    for command in ("create", "run"):
        answer = anitune("study", command, str(file))
        assert answer.exit_code == 2, answer.output
        said = "line 1: a text contains the character \\0" if "\\0" in name else "name (line 1): str"
        assert said in answer.stderr
        assert answer.stderr.count("\n") == 1
    assert [path.name for path in home.parent.iterdir()] == ["study.yaml"]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_with_such_a_name_finds_no_study_and_writes_nothing(
    anitune: Anitune, home: Path, command: tuple[str, ...]
) -> None:
    for name in ("../x", "/tmp/x", "%2e%2e%2fx", "x" * 5000):
        answer = anitune(*command, "--", name)
        assert answer.exit_code == 2, answer.output
        assert "there is no study" in answer.stderr
        assert "Traceback" not in answer.output
    assert [path.name for path in home.parent.iterdir()] == ["home"]
    assert {path.name for path in home.iterdir()} <= {"anitune.db", "anitune.db.lock"}


@pytest.mark.parametrize("name", ["...yaml", "..yaml"])
def test_a_training_has_a_folder_of_its_own(anitune: Anitune, home: Path, name: str) -> None:
    file = home.parent / name
    file.parent.mkdir()
    file.write_text("{training: {epochs: 1}}")
    answer = anitune("train", str(file))
    assert answer.exit_code == 2
    assert "--out" in answer.stderr
    assert not home.exists()
