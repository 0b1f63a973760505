"""A real study that is stopped by real signals goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_stopped_study_goes_on_where_it_was(tmp_path: Path, data_file: Path) -> None:
    file, home = tmp_path / "study.yaml", tmp_path / "home"
    file.write_text(STUDY.format(data=data_file, epochs=EPOCHS))
    environment = {**os.environ, "ANITUNE_HOME": str(home), "OMP_NUM_THREADS": "1"}

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "search.cli.main", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def show() -> dict[str, Any]:
        answer, _ = start("study", "show", "tiny", "--json").communicate(timeout=60)
        shown: dict[str, Any] = json.loads(answer)
        return shown

    # Ctrl-C in the first trial.
    process = start("study", "run", str(file))
    until((home / "trials/tiny/00000/checkpoint.safetensors").exists, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"go on with: anitune study run {file}" in said
    assert "Traceback" not in said
    first = show()
    assert first["trials"]["interrupted"] == 1
    reached = first["rows"][0]["epochs"]
    assert 0 < reached < EPOCHS

    # A worker takes it over, and is told to end, as by Slurm, in the second one.
    process = start("worker", "tiny")
    until((home / "trials/tiny/00001/checkpoint.safetensors").exists, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "go on with: anitune worker tiny" in said
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
