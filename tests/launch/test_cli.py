from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from search.cli.workers import workers_table
from storage.workers import LiveWorker, TrialInHand

STUDY = "name: tiny\ndata: {{files: [{data}]}}\nlimits: {{trials: 2}}\n"


def anitune(*arguments: str, home: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys\n{before}\nfrom search.cli.main import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "ANITUNE_HOME": str(home)},
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, data_file: Path) -> Path:
    """With a study on SQLite."""
    folder = tmp_path_factory.mktemp("launch")
    file = folder / "study.yaml"
    file.write_text(STUDY.format(data=data_file))
    made = anitune("study", "create", str(file), home=folder / "home")
    assert made.returncode == 0, made.stderr
    return folder / "home"


def test_without_parsl_there_is_one_line(home: Path) -> None:
    answer = anitune("launch", "tiny", "--on", "local", home=home, before="sys.modules['parsl'] = None")
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[1:] == [
        "anitune: Launching needs one more package: pip install 'anitune[launch]'"
    ]


def test_several_workers_need_postgresql(home: Path) -> None:
    answer = anitune("launch", "tiny", "--on", "local", "--gpus-per-node", "2", home=home)
    assert answer.returncode == 2
    assert answer.stderr.startswith("anitune: several workers need PostgreSQL: start one with `anitune up`")
    assert len(answer.stderr.splitlines()) == 1


def test_what_is_not_there_is_one_line(home: Path) -> None:
    answer = anitune("launch", "large", "--on", "local", home=home)
    assert (answer.returncode, len(answer.stderr.splitlines())) == (2, 1)
    assert "there is no study 'large'" in answer.stderr
    answer = anitune("launch", "tiny", "--on", "local", "--file", "nosuch.yaml", home=home)
    assert (answer.returncode, len(answer.stderr.splitlines())) == (2, 1)
    assert "nosuch.yaml: cannot be read" in answer.stderr
    answer = anitune("launch", "tiny", "--on", "moon", home=home)
    assert answer.returncode == 2
    assert "give local, slurm, kubernetes (got 'moon')" in answer.stderr


def test_no_worker_is_said_and_is_an_empty_list(home: Path) -> None:
    assert anitune("workers", "--json", home=home).stdout == "[]\n"
    assert anitune("workers", home=home).stdout.startswith("No workers are running")


def test_workers_are_a_table() -> None:
    trials = (TrialInHand("tiny", 3, 1, 5, 30), TrialInHand("tiny", 4, 1, 0, None))
    busy = LiveWorker("w1", "alpha", 1, "cuda:0 H100", "5", "tiny", 0.0, 1.0, 2.2, trials, 12345.6)
    idle = LiveWorker("w2", "beta", 2, "cpu", None, None, 0.0, 1.0, 0.0, (), None)
    console = Console(width=132, record=True, file=None, quiet=False)
    with console.capture() as shown:
        console.print(workers_table([busy, idle]))
    lines = [line.split() for line in shown.get().splitlines()]
    assert ["w1", "alpha", "cuda:0", "H100", "5", "tiny", "3", "5/30", "12,346", "2", "s", "ago"] in lines
    assert ["4", "0/?"] in lines
    assert ["w2", "beta", "cpu", "any", "none", "0", "s", "ago"] in lines
