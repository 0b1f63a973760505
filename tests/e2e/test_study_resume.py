"""A real study that is stopped by real signals goes on where it was."""

from __future__ import annotations

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from search.cli.main import app
from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE

EPOCHS = 150
STUDY = """
name: tiny
data: {{files: [{data}]}}
training: {{epochs: {epochs}, hidden: [8], batch_size: 16, device: cpu, checkpoint_seconds: 0}}
pruner: {{kind: none}}
limits: {{trials: 2}}
"""


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for what the process must bring about."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate(timeout=60)
        assert time.monotonic() < deadline, "not within 120 s"
        time.sleep(0.02)


class Place:
    """A study file and a home folder, and real processes that work there."""

    def __init__(self, folder: Path, study: str) -> None:
        folder.mkdir(exist_ok=True)
        self.file, self.home = folder / "study.yaml", folder / "home"
        self.file.write_text(study)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "search.cli.main", *arguments],
            env={**os.environ, "ANITUNE_HOME": str(self.home), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def show(self) -> dict[str, Any]:
        places = dict.fromkeys((STORAGE_VARIABLE, TRACKING_VARIABLE))
        runner = CliRunner(env={**places, "ANITUNE_HOME": str(self.home)})
        shown: dict[str, Any] = json.loads(runner.invoke(app, ["study", "show", "tiny", "--json"]).stdout)
        return shown

    def checkpoint(self, number: int) -> Path:
        """The checkpoint of the last attempt that has one."""
        trial = self.home / f"trials/tiny/{number:05d}"
        attempts = [1, *(int(folder.name.removeprefix("attempt-")) for folder in trial.glob("attempt-*"))]
        return trial / f"attempt-{max(attempts)}" / "checkpoint.safetensors"

    def history(self, number: int) -> list[dict[str, str]]:
        with self.checkpoint(number).with_name("history.csv").open() as file:
            return list(csv.DictReader(file))

    def results(self, number: int) -> tuple[bytes, list[dict[str, str]]]:
        """The weights of a trial, and its epochs without their times."""
        rows = self.history(number)
        for row in rows:
            del row["train/epoch_seconds"], row["finished_at"]
        return self.checkpoint(number).with_name("model.safetensors").read_bytes(), rows


@pytest.mark.slow
@pytest.mark.usefixtures("empty_home")
def test_a_stopped_study_goes_on_where_it_was(tmp_path: Path, data_file: Path) -> None:
    place = Place(tmp_path, STUDY.format(data=data_file, epochs=EPOCHS))
    file, start, show = place.file, place.start, place.show

    # Ctrl-C in the first trial.
    process = start("study", "run", str(file), "--pack", "1")
    until(lambda: place.checkpoint(0).exists(), process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"continue with: anitune study run {file}" in said
    assert "Traceback" not in said
    first = show()
    assert first["trials"]["interrupted"] == 1
    reached = first["rows"][0]["epochs"]
    assert 0 < reached < EPOCHS

    # A worker takes it over, and is told to end, as by Slurm, in the second one.
    process = start("worker", "tiny", "--pack", "1")
    until(lambda: place.checkpoint(1).exists(), process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "continue with: anitune worker tiny" in said
    second = show()
    assert second["rows"][0]["state"] == "complete"
    assert second["rows"][0]["attempt"] == 2
    assert second["rows"][1]["state"] == "interrupted"

    process = start("study", "run", str(file))
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "anitune dashboards --study tiny" in out
    done = show()
    assert done["trials"]["complete"] == 2
    assert done["epochs"] == 2 * EPOCHS  # none was trained twice
    assert [row["parameters"] for row in done["rows"]] == [row["parameters"] for row in second["rows"]]


@pytest.mark.proof
def test_two_trials_of_a_worker_that_was_killed_end_with_the_bits_of_each_alone(
    tmp_path: Path, data_file: Path
) -> None:
    study = STUDY.format(data=data_file, epochs=EPOCHS).replace("hidden: [8]", "dropout: 0.1")
    study += "sampler: {kind: random}\n"  # proposes by the number of a trial alone
    place = Place(tmp_path / "killed", study)

    def start_both(*arguments: str) -> subprocess.Popen[str]:
        before = {n: written_at(place.checkpoint(n)) for n in (0, 1)}
        process = place.start(*arguments, "--pack", "2")
        until(lambda: all(written_at(place.checkpoint(n)) > before[n] for n in (0, 1)), process)
        return process

    process = start_both("study", "run", str(place.file))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    killed_at = time.time()
    assert place.show()["trials"]["running"] == 2

    # Nobody waits for the minute after which a silent worker has lost its trials.
    with closing(sqlite3.connect(place.home / "anitune.db")) as connection:
        connection.execute("UPDATE anitune_attempts SET lease_until = 0")
        connection.commit()
    process = start_both("worker", "tiny")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "tiny: 2 trials at once" in said
    assert said.count("will continue from there") == 2
    stopped = place.show()
    assert stopped["trials"]["interrupted"] == 2
    assert [row["attempt"] for row in stopped["rows"]] == [2, 2]

    process = place.start("worker", "tiny", "--pack", "2")
    _, said = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert place.show()["trials"]["complete"] == 2

    alone = Place(tmp_path / "alone", study)
    process = alone.start("study", "run", str(alone.file), "--pack", "1")
    _, said = process.communicate(timeout=180)
    assert process.returncode == 0, said
    for number in (0, 1):
        times = [float(row["finished_at"]) for row in place.history(number)]
        assert len(times) == EPOCHS
        assert times[0] < killed_at < times[-1]  # it went on from its checkpoint
        assert place.results(number) == alone.results(number)


def written_at(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0
