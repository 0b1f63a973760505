from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "torchani", "optuna", "mlflow", "sqlalchemy", "h5py", "matplotlib")
ANITUNE = [sys.executable, "-m", "search.cli.main"]


def anitune(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ANITUNE, *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["study"],
        ["study", "run"],
        ["worker"],
        ["data"],
    ],
)
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['anitune', *{command}, '--help']\n"
        "from search.cli.main import main\n"
        "try:\n    main()\n"
        f"finally:\n    print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0
    assert "Usage: anitune" in answer.stdout
    assert answer.stderr.strip() == "[]"


def test_help_takes_less_than_a_second() -> None:
    # Processor time, because a busy machine makes the command wait; and the best of some runs.
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert anitune("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(seconds() < 1.0 for _ in range(5))


def test_nothing_given_is_a_usage_error() -> None:
    assert anitune().returncode == 2
    assert anitune("study", "run").returncode == 2
    assert "No such command" in anitune("studdy").stderr


def test_a_fault_is_one_line_and_a_traceback_only_on_request(tmp_path: Path) -> None:
    plain = anitune("study", "run", str(tmp_path / "nosuch.yaml"))
    assert plain.returncode == 2
    assert plain.stderr == f"anitune: {tmp_path}/nosuch.yaml: cannot be read: No such file or directory\n"
    assert plain.stdout == ""
    debug = anitune("--debug", "study", "run", str(tmp_path / "nosuch.yaml"))
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


def test_options_of_places_win_over_the_environment(tmp_path: Path) -> None:
    answer = anitune(
        "--storage",
        f"sqlite:///{tmp_path}/mine.db",
        "study",
        "list",
        "--json",
        ANITUNE_STORAGE_URL=f"sqlite:///{tmp_path}/other.db",
        ANITUNE_HOME=str(tmp_path),
    )
    assert answer.stdout == "[]\n"
    assert (tmp_path / "mine.db").exists()
    assert not (tmp_path / "other.db").exists()
