"""A whole study by real processes on an emulated card, on which everything goes wrong that can."""

from __future__ import annotations

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

from tools.emulated_cuda.build import find_compiler

ROOT = Path(__file__).parents[2]
EPOCHS = 27
STUDY = """
name: card
data: {{files: [{data}]}}
training:
  epochs: {epochs}
  batch_size: 16
  device: auto
  checkpoint_seconds: 0
space:
  layers: {{low: 1, high: 2}}
  width: {{choices: [8, 16]}}
  learning_rate: {{low: 0.0001, high: 0.03, log: true}}
sampler: {{kind: random}}
pruner: {{kind: asha, min_epochs: 3, reduction_factor: 3}}
limits: {{trials: 6}}
"""


class Home:
    """A home folder, and processes that work there with an emulated card or without."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "home"

    def start(self, *arguments: str, card: bool = True, fails: str = "") -> subprocess.Popen[str]:
        module = "tools.emulated_cuda" if card else "search.cli.main"
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "ANITUNE_HOME": str(self.folder),
                "OMP_NUM_THREADS": "1",
                "EMULATED_CUDA_FAIL": fails,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **how: Any) -> tuple[int, str, str]:
        process = self.start(*arguments, **how)
        out, said = process.communicate(timeout=300)
        return process.returncode, out, said

    def show(self) -> dict[str, Any]:
        code, out, said = self.run("study", "show", "card", "--json", card=False)
        assert code == 0, said
        shown: dict[str, Any] = json.loads(out)
        return shown

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.folder / "anitune.db", timeout=60)) as connection:
            rows = connection.execute(statement).fetchall()
            connection.commit()
        return rows

    def checkpoints(self) -> list[Path]:
        return list(self.folder.glob("trials/card/*/attempt-*/checkpoint.safetensors"))


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait for what the process must bring about."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate(timeout=60)
        assert time.monotonic() < deadline, "the process did not do what is waited for within 120 s"
        time.sleep(0.02)


@pytest.mark.proof
@pytest.mark.skipif(find_compiler() is None, reason="the emulated card needs a C++ compiler")
def test_a_study_on_a_card_survives_its_failures(tmp_path: Path, data_file: Path) -> None:
    home, file = Home(tmp_path), tmp_path / "study.yaml"
    file.write_text(STUDY.format(data=data_file, epochs=EPOCHS))

    # The card's memory does not suffice for the first graph of three trials side by side; fewer go on. Then
    # the worker is killed.
    process = home.start("study", "run", str(file), "--pack", "3", fails="graph_instantiation:1")
    until(home.checkpoints, process)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert "out of memory on cuda:0 with" in said
    # Nobody waits for the minute after which a silent worker has lost its trials.
    home.query("UPDATE anitune_attempts SET lease_until = 0 WHERE ended_at IS NULL")
    taken_over = {
        number for (number,) in home.query("SELECT number FROM anitune_trials WHERE state = 'running'")
    }
    assert taken_over

    # The next worker's card fails: it hands all back, names the card, and ends.
    code, _, said = home.run("worker", "card", "--pack", "2", fails="ecc@replay:60")
    assert code == 1, said
    assert "cuda:0 emulated" in said
    assert "uncorrectable ECC error" in said
    assert "Traceback" not in said
    shown = home.show()
    assert shown["trials"]["running"] == shown["trials"]["failed"] == 0
    assert shown["trials"]["interrupted"] > 0

    # A worker without a card goes on with the trial that was handed back, and stops in its middle.
    started = time.time_ns()
    process = home.start("worker", "card", "--pack", "1", card=False)
    until(lambda: any(path.stat().st_mtime_ns > started for path in home.checkpoints()), process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (0, 143), said

    code, out, said = home.run("worker", "card", "--pack", "2")
    assert code == 0, said
    shown = home.show()
    trials = shown["trials"]
    assert trials["complete"] + trials["pruned"] == 6, trials
    assert trials["complete"] > 0
    assert trials["pruned"] > 0
    # No epoch was trained twice, but for that which an attempt was killed in.
    assert shown["epochs"] == sum(row["epochs"] for row in shown["rows"])
    devices = {
        json.loads(worker)["device"].partition(":")[0]
        for (worker,) in home.query("SELECT worker FROM anitune_attempts WHERE epochs > 0")
    }
    assert devices == {"cuda", "cpu"}

    code, _, said = home.run("sync", "card", card=False)
    assert code == 0, said
    code, out, said = home.run("study", "verify", "card", card=False)
    assert code == 0, (out, said)
