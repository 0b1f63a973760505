"""Two workers on one GPU share its memory: each plans with what the other will not take."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from select import select

import pytest
import torch

from search.study import study_from_values
from search.work import card_memory, sizing
from search.work.card_memory import CardMemory, shared_memory_of
from search.work.sizing import (
    announce_concurrent_trials,
    choose_concurrent_trials,
    concurrent_trials_by_memory,
)
from trainer.config import TrainConfig
from trainer.errors import MemoryTakenError
from trainer.task import Task

GPU = torch.device("cuda", 0)
GIB = 2**30

Make = Callable[..., CardMemory]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """The memory of a card as another worker of this machine has it."""

    def memory(card: str = "GPU-1", taken: Callable[[], int] = lambda: 0) -> CardMemory:
        return CardMemory(lambda: card, taken, tmp_path / "cards")

    return memory


def announce(memory: CardMemory, planned: int) -> None:
    with memory.planning():
        memory.announce(planned)


def others(memory: CardMemory) -> int:
    with memory.planning() as found:
        return found


def test_what_others_have_announced_and_not_taken_is_theirs(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card_memory, "UPDATED_SECONDS", 0.01)
    taken = [1]
    with make() as mine, make(taken=lambda: taken[0]) as theirs, make() as third, make("GPU-2") as elsewhere:
        announce(theirs, 10)
        announce(elsewhere, 100)
        assert others(mine) == 9
        assert others(theirs) == 0
        announce(third, 5)
        assert others(mine) == 14
        taken[0] = 8  # it has begun to train
        deadline = time.monotonic() + 20
        while others(mine) != 7:
            assert time.monotonic() < deadline, "what was taken still counts as announced"
        taken[0] = 12  # more than it said
        while others(mine) != 5:
            assert time.monotonic() < deadline, "more than was announced still counts"
        theirs.announce(30)
        assert others(mine) == 23
    with make() as later:
        assert others(later) == 0


KILLED = """
import sys, time
from pathlib import Path
from search.work.card_memory import CardMemory
memory = CardMemory(lambda: "GPU-1", lambda: 0, Path(sys.argv[1]))
with memory.planning():
    memory.announce(1000)
    print("announced", flush=True)
    time.sleep(0.5)
time.sleep(60)
"""


def test_a_worker_that_was_killed_leaves_nothing_behind(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "cards"
    with (
        subprocess.Popen([sys.executable, "-c", KILLED, folder], stdout=subprocess.PIPE) as worker,
        make() as mine,
    ):
        assert worker.stdout is not None
        assert select([worker.stdout], [], [], 60)[0], "the worker announces nothing"
        assert worker.stdout.readline() == b"announced\n"
        assert others(mine) == 1000  # it waited for the other one to have planned
        worker.send_signal(signal.SIGKILL)
        worker.wait(60)
        assert others(mine) == 0
        assert list(folder.glob("*/*.plan")) == []


def test_one_plans_after_the_other(make: Make) -> None:
    room, concurrent_trials = 100, []

    def plan() -> None:
        with make() as memory:
            with memory.planning() as found:
                mine = min(60, room - found)
                time.sleep(0.05)
                memory.announce(mine)
            concurrent_trials.append(mine)
            planned.wait(60)

    planned = threading.Barrier(3, timeout=60)
    threads = [threading.Thread(target=plan) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a worker still plans"
    assert sorted(concurrent_trials) == [0, 40, 60]


def test_a_folder_that_cannot_be_used_disturbs_no_worker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "anitune")
    (tmp_path / "cards").write_text("a file")
    with CardMemory(lambda: "GPU-1", lambda: 0, tmp_path / "cards") as memory:
        announce(memory, 10)
        assert others(memory) == 0
    assert any("is not known" in message for message in caplog.messages)
    assert any("cannot be announced" in message for message in caplog.messages)


def test_the_cpu_is_not_shared_so(tmp_path: Path) -> None:
    with shared_memory_of(torch.device("cpu"), tmp_path) as memory:
        assert memory is None
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A GPU of 100 GiB, all of which is free; the shares that a process was limited to."""
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 * GIB, 100 * GIB))
    monkeypatch.setattr(sizing, "release_memory", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * GIB)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share)
    )
    monkeypatch.setattr(sizing, "training_gib", lambda task, config, device: 10.0)
    monkeypatch.setattr(sizing, "measure_sizes", lambda *_: {1: 8.0, 2: 4.0, 4: 2.0, 8: 1.0})
    return shares


def test_a_second_worker_plans_with_what_the_first_one_leaves(
    make: Make, card: list[float], task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "anitune")
    # The trainings themselves stay on the CPU here.
    study = study_from_values({"name": "tiny", "training": {"device": "cpu"}}, "test")
    with make() as first, make() as second, make() as third:
        assert choose_concurrent_trials(study, task, GPU, 100, first) == 8
        assert others(second) == 82 * GIB
        announce_concurrent_trials(study, task, GPU, 2, second)
        assert "2 trials at once may not fit: 18 GiB free, 10 for a trial; other workers will take 82" in (
            caplog.text
        )
        assert card == [1.0, pytest.approx(0.2)]
        assert others(third) == (82 + 22) * GIB
        # It takes no trial, which would fail for want of what others have.
        with pytest.raises(MemoryTakenError, match="other processes use the rest of its memory"):
            choose_concurrent_trials(study, task, GPU, 100, third)
        assert card[-1] == 0.0


def test_a_promotion_takes_its_part_too(
    make: Make, card: list[float], task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_device = sizing.find_device
    devices = iter([GPU])
    monkeypatch.setattr(sizing, "find_device", lambda name: next(devices, None) or find_device(name))
    monkeypatch.setattr(torch.cuda, "_exchange_device", lambda index: 0)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", lambda index: 0)
    configs = [TrainConfig(hidden=(8,), device="cpu", seed=seed) for seed in range(4)]
    with make() as mine, make() as theirs:
        announce(theirs, 75 * GIB)
        assert concurrent_trials_by_memory(task, configs, mine) == 2
        assert others(theirs) == 22 * GIB
