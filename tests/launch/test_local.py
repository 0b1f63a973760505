"""Pinned workers on this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest


def commands_with(word: str) -> list[str]:
    """Command lines of the processes of this machine that contain a word."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            found.append(file.read_text().replace("\0", " "))
    return [command for command in found if word in command]


@pytest.mark.slow
def test_two_pinned_workers_finish_a_study_and_end(make_place: Callable[..., Any]) -> None:
    place = make_place({**os.environ, "CUDA_VISIBLE_DEVICES": "4,7"}, trials=4, epochs=100)

    launcher = place.launch("--on", "local", "--gpus-per-node", "2")
    seen: dict[str | None, Any] = {}

    def both_train() -> bool:
        seen.update({worker.gpu: worker for worker in place.workers() if worker.trials})
        return len(seen) == 2

    place.until(both_train, launcher)
    _, said = launcher.communicate(timeout=300)

    assert launcher.returncode == 0, (said, place.logs())
    assert set(seen) == {"4", "7"}  # of the GPUs that we were given, one each
    assert {worker.study for worker in seen.values()} == {"tiny"}
    assert [trial.state for trial in place.trials()] == ["complete"] * 4
    assert place.workers() == []


@pytest.mark.slow
def test_ctrl_c_hands_the_trials_back(make_place: Callable[..., Any]) -> None:
    place = make_place(dict(os.environ), trials=2, epochs=2000)

    launcher = place.launch("--on", "local", "--gpus-per-node", "2")
    place.until(lambda: sum(len(worker.trials) for worker in place.workers()) == 2, launcher)
    os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does
    _, said = launcher.communicate(timeout=300)

    assert launcher.returncode == 130, said
    assert "continue with: anitune launch tiny --on local" in said
    assert [trial.state for trial in place.trials()] == ["interrupted"] * 2
    assert place.workers() == []
    assert place.logs().count("will continue from there") == 2


@pytest.mark.proof
def test_workers_outlive_a_launcher_that_is_killed(make_place: Callable[..., Any]) -> None:
    place = make_place(dict(os.environ), trials=1, epochs=150)

    launcher = place.launch("--on", "local")
    place.until(lambda: any(worker.trials for worker in place.workers()), launcher)
    launcher.kill()
    launcher.communicate(timeout=300)

    place.until(lambda: [trial.state for trial in place.trials()] == ["complete"])
    (folder,) = place.home.glob("launches/*")
    place.until(lambda: not commands_with(folder.name))  # nor does anything else of it stay


@pytest.mark.slow
def test_a_launch_in_the_background_outlives_its_terminal(make_place: Callable[..., Any]) -> None:
    place = make_place(dict(os.environ), trials=1, epochs=2000)

    starter = place.launch("--on", "local", "--detach")
    said, complained = starter.communicate(timeout=300)
    assert starter.returncode == 0, complained
    pid = int(said.split("stop it with: kill ")[1])
    try:
        place.until(lambda: any(worker.trials for worker in place.workers()))
    finally:
        os.kill(pid, signal.SIGTERM)
    place.until(lambda: place.workers() == [])

    assert [trial.state for trial in place.trials()] == ["interrupted"]
    (log,) = place.home.glob("launches/*/launch.log")
    place.until(lambda: "continue with: anitune launch tiny --on local" in log.read_text())
