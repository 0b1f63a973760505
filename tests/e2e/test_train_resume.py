"""A real training that is really killed goes on to the numbers of one that never was."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Everything on that has a state of its own: dropout, average, schedule, optimizer.
CONFIG = """
data: {{files: [{data}]}}
training:
  hidden: [32, 16]
  dropout: 0.1
  activation: gelu
  schedule: plateau
  ema_decay: 0.95
  learning_rate: 0.005
  batch_size: 8
  epochs: 40
  device: cpu
  checkpoint_seconds: 0
"""


class Training:
    """``anitune train`` as a process, in one folder."""

    def __init__(self, config: Path, out: Path, home: Path) -> None:
        self.checkpoint = out / "checkpoint.safetensors"
        self.out = out
        self._command = [sys.executable, "-m", "search.cli.main", "train", str(config), "--out", str(out)]
        self._environment = {**os.environ, "ANITUNE_HOME": str(home)}

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def end(self) -> None:
        """Let it run to its end."""
        process = self.start()
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said

    def interrupt(self, by: signal.Signals) -> tuple[int, str]:
        """Start it, and send the signal as soon as it has written a new checkpoint: exit code and stderr."""
        before = self._written_at()
        process = self.start()
        deadline = time.monotonic() + 120
        while self._written_at() == before:
            assert process.poll() is None, process.communicate(timeout=60)
            assert time.monotonic() < deadline, "no checkpoint is written"
            time.sleep(0.002)
        process.send_signal(by)
        _, said = process.communicate(timeout=60)
        assert not (self.out / "metrics.json").exists()  # it was not done yet
        return process.returncode, said

    def _written_at(self) -> int:
        return self.checkpoint.stat().st_mtime_ns if self.checkpoint.exists() else 0

    def history(self) -> list[dict[str, str]]:
        """The epochs without their times."""
        with (self.out / "history.csv").open() as file:
            return [
                {
                    name: value
                    for name, value in row.items()
                    if name not in ("train/epoch_seconds", "finished_at")
                }
                for row in csv.DictReader(file)
            ]

    def weights(self) -> bytes:
        return (self.out / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def place(data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the settings of the training."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "config.yaml").write_text(CONFIG.format(data=data_file))
    return folder


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Training:
    training = Training(place / "config.yaml", place / "undisturbed", place / "home")
    training.end()
    return training


@pytest.mark.slow
def test_a_training_that_was_killed_ends_with_the_same_bits(place: Path, undisturbed: Training) -> None:
    killed = Training(place / "config.yaml", place / "killed", place / "home")
    for _ in range(2):
        code, said = killed.interrupt(signal.SIGKILL)
        assert (code, said) == (-signal.SIGKILL, "")
    killed.end()
    assert len(killed.history()) == 40
    assert killed.history() == undisturbed.history()
    assert killed.weights() == undisturbed.weights()


@pytest.mark.slow
def test_a_training_that_is_told_to_end_says_how_to_go_on(place: Path, undisturbed: Training) -> None:
    stopped = Training(place / "config.yaml", place / "stopped", place / "home")
    code, said = stopped.interrupt(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert "Traceback" not in said
    assert f"continue with: anitune train {place / 'config.yaml'} --out {stopped.out}" in said
    stopped.end()
    assert stopped.history() == undisturbed.history()
    assert stopped.weights() == undisturbed.weights()
