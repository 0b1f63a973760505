from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from search.work.machine import free_gib, usable_cores

GIB = 2**30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of 64 GiB, of which 48 are free, and a job's group within that of its user."""
    write(tmp_path / "proc/meminfo", f"MemTotal: {64 * 2**20} kB\nMemAvailable: {48 * 2**20} kB\n")
    write(tmp_path / "proc/self/cgroup", "0::/user/job\n")
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def limit(root: Path, group: str, gib: int, used: int, cache: int) -> None:
    folder = root / "sys/fs/cgroup" / group
    write(folder / "memory.max", f"{gib * GIB}\n")
    write(folder / "memory.current", f"{used * GIB}\n")
    write(folder / "memory.stat", f"anon {(used - cache) * GIB}\ninactive_file {cache * GIB}\nslab 0\n")


def test_without_limits_it_is_what_the_machine_has(root: Path) -> None:
    assert free_gib(root) == 48
    assert usable_cores(root) == len(os.sched_getaffinity(0))


def test_a_job_has_what_its_group_leaves(root: Path) -> None:
    limit(root, "user/job", gib=16, used=10, cache=3)
    assert free_gib(root) == 9


def test_the_groups_around_it_count_too(root: Path) -> None:
    write(root / "sys/fs/cgroup/user/job/memory.max", "max\n")
    limit(root, "user", gib=20, used=18, cache=0)
    assert free_gib(root) == 2


def test_a_share_of_the_time_is_so_many_cores(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    write(root / "sys/fs/cgroup/user/job/cpu.max", "max 100000\n")
    write(root / "sys/fs/cgroup/user/cpu.max", "250000 100000\n")
    assert usable_cores(root) == 3


def test_in_a_container_the_group_is_the_top(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/\n")
    write(root / "sys/fs/cgroup/memory.max", "max\n")
    limit(root, "", gib=4, used=1, cache=0)
    assert free_gib(root) == 3


def test_nothing_known_is_no_limit(tmp_path: Path) -> None:
    assert free_gib(tmp_path) == math.inf


def test_this_machine_can_be_asked() -> None:
    assert 0 < free_gib() < math.inf
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
