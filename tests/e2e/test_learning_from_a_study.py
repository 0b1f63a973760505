"""A real study that learns from another one, whose worker is killed and whose teacher is deleted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from search.cli.main import app
from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE

STUDY = """
name: {name}
data: {{files: [{data}]}}
training: {{epochs: {epochs}, device: cpu, checkpoint_seconds: 0}}
space:
  hidden: {{choices: [[4], [8], [8, 4]]}}
  activation: {{choices: [celu, silu]}}
  batch_size: 16
  dropout: 0.0
  weight_decay: 0.0
pruner: {{kind: none}}
limits: {{trials: 3}}
"""
END = "learn_from: [water]\nfinalists: {seeds: 2, most: 2}\n"


class Home:
    """A home folder, with real processes that train there, and commands that look at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = {
            "ANITUNE_HOME": str(folder / "home"),
            "OMP_NUM_THREADS": "1",
            "ANITUNE_LEASE_SECONDS": "3",
        }

    def _process(self, file: Path) -> tuple[list[str], dict[str, str]]:
        command = [sys.executable, "-m", "search.cli.main", "study", "run", str(file), "--pack", "1"]
        return command, {**os.environ, **self._environment}

    def train(self, file: Path) -> str:
        command, environment = self._process(file)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def train_and_kill(self, file: Path, checkpoint: Path) -> None:
        """Train until there is a checkpoint, and kill the process."""
        command, environment = self._process(file)
        with subprocess.Popen(command, env=environment) as process:
            try:
                deadline = time.monotonic() + 120
                while not checkpoint.exists():
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            finally:
                process.kill()

    def run(self, *arguments: str) -> str:
        places = dict.fromkeys((STORAGE_VARIABLE, TRACKING_VARIABLE))
        answer = CliRunner(env={**places, **self._environment}).invoke(app, list(arguments))
        assert answer.exit_code == 0, answer.output
        return answer.stdout

    def trials(self, name: str) -> dict[int, dict[str, Any]]:
        shown = json.loads(self.run("study", "show", name, "--json"))
        return {trial["trial"]: trial for trial in shown["rows"]}


@pytest.mark.slow
@pytest.mark.usefixtures("empty_home")
def test_a_killed_study_goes_on_without_the_study_that_it_learned_from(
    tmp_path: Path, data_file: Path
) -> None:
    home = Home(tmp_path)
    (tmp_path / "water.yaml").write_text(STUDY.format(name="water", data=data_file, epochs=3))
    home.train(tmp_path / "water.yaml")
    best = min(home.trials("water").values(), key=lambda trial: float(trial["val_mae_kcalmol"]))

    file = tmp_path / "methanol.yaml"
    file.write_text(STUDY.format(name="methanol", data=data_file, epochs=60) + END)
    home.train_and_kill(file, tmp_path / "home/trials/methanol/00000/attempt-1/checkpoint.safetensors")

    home.run("study", "delete", "water", "--yes")
    printed = home.train(file)
    found = json.loads(home.run("study", "best", "methanol", "--json"))
    assert f" {found['val_mae_kcalmol']:.3f} kcal/mol, mean over 2 seeds" in printed
    assert f"(trial {found['trial']})" in printed
    assert f" {found['val_mae_kcalmol']:.3f} kcal/mol (validation" in home.run("study", "show", "methanol")
    first = home.trials("methanol")[0]
    assert (first["state"], first["attempt"]) == ("complete", 2)
    assert first["parameters"] == {**best["parameters"], "epochs": 60, "seed": first["parameters"]["seed"]}
    shown = home.run("study", "show", "methanol")
    assert "learns from  water: 3 of its 3 trials (copy " in shown
    home.run("study", "verify", "methanol")
    for number in (0, max(home.trials("methanol"))):
        assert "reproduced, bit for bit" in home.run("reproduce", "methanol", str(number))
    report = tmp_path / "report.md"
    home.run("report", "methanol", "--out", str(report))
    assert "It learns from water: 3 of its 3 trials" in report.read_text()
