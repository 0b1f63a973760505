from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from search.work import slots
from search.work.slots import GPU_SLOTS, automatic_slots, work_in_slots
from search.work.stopping import StopRequest

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("cores", "gib", "threads", "expected"),
    [(8, 100.0, 1, 8), (8, 100.0, 3, 2), (2, 100.0, 4, 1), (8, 3.9, 1, 3), (8, 0.2, 1, 1)],
)
def test_slots_follow_from_cores_threads_and_memory(
    monkeypatch: pytest.MonkeyPatch, cores: int, gib: float, threads: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(slots, "_free_gib", lambda: gib)
    assert automatic_slots(CPU, threads) == expected


@pytest.mark.parametrize(("gib", "expected"), [(80.0, GPU_SLOTS), (2.5, 2), (0.1, 1)])
def test_slots_of_a_gpu_follow_from_its_memory(
    monkeypatch: pytest.MonkeyPatch, gib: float, expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(gib * 2**30), 2**37))
    assert automatic_slots(torch.device("cuda"), 1) == expected


def test_free_memory_is_read_from_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    assert 0 < slots._free_gib() <= total

    def missing(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert automatic_slots(CPU, 1) == len(os.sched_getaffinity(0))


def test_the_first_error_stops_all_and_is_raised_when_they_have_stopped() -> None:
    stop, ended = StopRequest(), []

    def work() -> None:
        if not ended:
            ended.append("first")
            raise ValueError("first")
        stop.wait(60)
        ended.append("other")
        raise ValueError("other")

    with pytest.raises(ValueError, match="first"):
        work_in_slots(3, work, stop)
    assert ended == ["first", "other", "other"]
    assert stop.asked
    assert stop.signal is None
