"""A real worker that others can see, and that a scheduler may ask twice to end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

STUDY = """
name: tiny
data: {{files: [{data}]}}
training: {{epochs: 5000, hidden: [8], batch_size: 16, device: cpu, checkpoint_seconds: 0}}
pruner: {{kind: none}}
limits: {{trials: 1}}
"""


def anitune(environment: dict[str, str], *arguments: str) -> str:
    answer = subprocess.run(
        [sys.executable, "-m", "search.cli.main", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.mark.slow
@pytest.mark.usefixtures("empty_home")
def test_a_worker_is_seen_by_people_and_monitors_and_may_be_asked_twice_to_end(
    tmp_path: Path, data_file: Path
) -> None:
    file, port = tmp_path / "study.yaml", free_port()
    file.write_text(STUDY.format(data=data_file))
    environment = {**os.environ, "ANITUNE_HOME": str(tmp_path / "home"), "CUDA_VISIBLE_DEVICES": "6"}
    anitune(environment, "study", "create", str(file))
    process = subprocess.Popen(
        [sys.executable, "-m", "search.cli.main", "worker", "tiny", "--metrics-port", str(port)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def trains() -> bool:
        assert process.poll() is None, process.communicate(timeout=60)
        try:
            lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
        except httpx.ConnectError:
            return False
        return any(line.startswith("anitune_epochs_total") and line.split()[1] != "0.0" for line in lines)

    deadline = time.monotonic() + 120
    while not trains():
        assert time.monotonic() < deadline, "it trains nothing"
        time.sleep(0.2)
    assert httpx.get(f"http://127.0.0.1:{port}/health").json()["well"]
    (seen,) = json.loads(anitune(environment, "workers", "--json"))
    assert (seen["host"], seen["pid"], seen["gpu"]) == (socket.gethostname(), process.pid, "6")
    assert [trial["number"] for trial in seen["trials"]] == [0]

    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    shown = json.loads(anitune(environment, "study", "show", "tiny", "--json"))
    assert shown["trials"]["interrupted"] == 1
    assert anitune(environment, "workers", "--json") == "[]\n"


@pytest.mark.slow
@pytest.mark.usefixtures("empty_home")
def test_a_worker_of_all_studies_is_seen_by_monitors(tmp_path: Path, data_file: Path) -> None:
    file, port = tmp_path / "study.yaml", free_port()
    file.write_text(STUDY.format(data=data_file).replace("epochs: 5000", "epochs: 2"))
    environment = {**os.environ, "ANITUNE_HOME": str(tmp_path / "home")}
    anitune(environment, "study", "create", str(file))
    process = subprocess.Popen(
        [sys.executable, "-m", "search.cli.main", "worker", "--metrics-port", str(port)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def found() -> str:
        assert process.poll() is None, process.communicate(timeout=60)
        try:
            return httpx.get(f"http://127.0.0.1:{port}/metrics").text
        except httpx.ConnectError:
            return ""

    deadline = time.monotonic() + 120
    while 'anitune_trials_total{state="complete"} 1.0' not in found():
        assert time.monotonic() < deadline, "no trial is complete"
        time.sleep(0.2)
    assert "anitune_epochs_total 2.0" in found()
    assert httpx.get(f"http://127.0.0.1:{port}/health").json()["well"]
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
