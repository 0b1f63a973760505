"""A study of error and cost with a limit of parameters, on the shipped sample, by real processes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from search.cli.main import app
from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE

# MLflow uses what is deprecated elsewhere; our own warnings stay errors.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")

LIMIT = 60_000
STUDY = f"""
name: two
objectives: [val_mae, parameters]
constraints: {{parameters: {{at_most: {LIMIT}}}}}
training: {{epochs: 2, device: cpu, checkpoint_seconds: 0, schedule: cosine}}
space:
  layers: {{low: 1, high: 2}}
  width: {{low: 8, high: 64, step: 8}}
  activation: celu
  batch_size: 256
  dropout: 0.0
  weight_decay: 0.0
sampler: {{kind: tpe, startup_trials: 2}}
limits: {{trials: 4}}
"""


class Home:
    """A home folder, and real processes that work there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder / "home", folder / "study.yaml"
        self.file.write_text(STUDY)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "search.cli.main", *arguments],
            env={**os.environ, "ANITUNE_HOME": str(self.folder), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def train(self, *arguments: str) -> str:
        """Standard output of a command that trains, in a process of its own as for people."""
        process = self.start(*arguments)
        out, said = process.communicate(timeout=600)
        assert process.returncode == 0, said
        return out

    def run(self, *arguments: str, code: int = 0) -> str:
        """Standard output of a command that trains nothing, or its error."""
        places = dict.fromkeys((STORAGE_VARIABLE, TRACKING_VARIABLE))
        answer = CliRunner(env={**places, "ANITUNE_HOME": str(self.folder)}).invoke(app, list(arguments))
        assert answer.exit_code == code, answer.output
        return answer.stdout if code == 0 else answer.stderr

    def checkpoint(self, number: int) -> Path:
        return self.folder / f"trials/two/{number:05d}/attempt-1/checkpoint.safetensors"


@pytest.mark.slow
@pytest.mark.usefixtures("empty_home")
def test_a_study_of_error_and_parameters_from_its_file_to_its_front(tmp_path: Path) -> None:
    home = Home(tmp_path)

    # A limit that nothing meets creates nothing.
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(STUDY.replace(f"at_most: {LIMIT}", "at_most: 100"))
    said = home.run("study", "create", str(wrong), code=2)
    assert "constraints.parameters.at_most is 100, but the smallest network of the space has" in said
    assert "Traceback" not in said
    assert "No studies yet" in home.run("study", "list")

    home.run("study", "create", str(home.file))
    said = home.run("study", "enqueue", "two", "--set", "hidden=64,64", code=2)
    assert "the network has at least 115,460 parameters, but constraints.parameters.at_most of" in said
    home.run("study", "enqueue", "two", "--set", "hidden=8")

    # A worker is killed in its second trial, and another one takes that over.
    process = home.start("worker", "two", "--pack", "1")
    deadline = time.monotonic() + 240
    while not home.checkpoint(1).exists():
        assert process.poll() is None, process.communicate(timeout=60)
        assert time.monotonic() < deadline, "not within 240 s"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    with closing(sqlite3.connect(home.folder / "anitune.db")) as connection:
        connection.execute("UPDATE anitune_attempts SET lease_until = 0")  # nobody waits for a minute
        connection.commit()
    printed = home.train("study", "run", str(home.file), "--pack", "1")
    assert "Pareto front of val MAE (kcal/mol) and parameters:" in printed

    shown: dict[str, Any] = json.loads(home.run("study", "show", "two", "--json"))
    assert shown["objectives"] == ["val_mae", "parameters"]
    assert shown["trials"]["complete"] == 4
    rows = {row["trial"]: row for row in shown["rows"]}
    assert rows[1]["attempt"] == 2
    points = {n: (row["val_mae_kcalmol"], row["metrics"]["parameters"]) for n, row in rows.items()}
    assert points[0][1] == 12_356  # the enqueued one: 4 elements, 384-8-1
    assert all(parameters <= LIMIT for _, parameters in points.values())
    beaten = {
        n
        for n, (error, parameters) in points.items()
        if any(points[m][0] <= error and points[m][1] <= parameters for m in points if m != n)
    }
    assert set(shown["front"]) == set(points) - beaten
    assert shown["knee"] in shown["front"]

    with closing(sqlite3.connect(home.folder / "anitune.db")) as connection:
        values = connection.execute(
            "SELECT number, objective, value FROM trial_values JOIN trials USING (trial_id)"
        ).fetchall()
    assert {(n, objective): value for n, objective, value in values} == {
        (n, objective): value for n, point in points.items() for objective, value in enumerate(point)
    }
    home.run("study", "verify", "two")
    home.train("reproduce", "two", "1")

    # Its report shows the front, and a promotion takes what costs no more than the knee.
    home.run("report", "two", "--out", str(tmp_path / "report.html"))
    assert f"its knee is trial {shown['knee']}" in (tmp_path / "report.html").read_text()
    said = home.run("promote", "two", "--at-most-parameters", "100", code=1)
    assert "no complete trial has at most 100 parameters: the smallest network has 12,356" in said
