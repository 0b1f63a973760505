"""Workers as real processes: one that ends is replaced, until nothing is left to train."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from sqlalchemy import ColumnElement, select

from storage.records.tables import attempts
from storage.studies import Study

FULL_AT = 4_096
"""Bytes that a file may have on the full disk: less than a checkpoint has."""

MET_FULL_DISK = "checkpoint.safetensors: cannot be written: File too large"
"""What a worker says whose checkpoint found no room."""


class Fleet:
    """So many workers of a study.

    Attributes
    ----------
    ends : how often workers ended with which exit code; that of a signal is negative
    last_words : of workers that gave up
    full_disks : checkpoints that found no room
    """

    def __init__(self, study: Study, count: int, logs: Path, environment: dict[str, str]) -> None:
        self.ends: Counter[int] = Counter()
        self.last_words: list[str] = []
        self.full_disks = 0
        self._study = study
        self._count = count
        self._logs = logs
        self._environment = environment
        self._started = 0
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._hurt: set[int] = set()
        self._disk_is_full: set[int] = set()
        self._spared = 0
        self._said_by: dict[int, Path] = {}
        logs.mkdir()

    def fill(self) -> None:
        """Replace workers that have ended."""
        self.reap()
        while len(self._workers) < self._count:
            self._started += 1
            log = self._logs / f"worker-{self._started:03d}.log"
            with log.open("wb") as output:
                worker = subprocess.Popen(
                    [sys.executable, "-m", "search.cli.main", "worker", self._study.name, "--pack", "1"],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **self._environment},
                )
            self._workers[worker.pid] = worker
            self._said_by[worker.pid] = log

    def reap(self) -> None:
        """Count the workers that have ended."""
        for pid, worker in list(self._workers.items()):
            if worker.poll() is not None:
                self.ends[worker.returncode] += 1
                said = self._said_by[pid].read_text(errors="replace")
                if worker.returncode == 1:
                    self.last_words += said.splitlines()[-1:]
                if pid in self._disk_is_full:
                    met = MET_FULL_DISK in said
                    self.full_disks += met
                    self._spared += not met
                del self._workers[pid]
                self._hurt.discard(pid)
                self._disk_is_full.discard(pid)

    @property
    def size(self) -> int:
        """Workers that live."""
        return len(self._workers)

    def training(self, *where: ColumnElement[bool]) -> set[int]:
        """Workers whose trials nobody has taken over."""
        held = select(attempts.c.worker).where(
            attempts.c.study_id == self._study.id, attempts.c.ended_at.is_(None), *where
        )
        with self._study.database.reading() as connection:
            return {worker["pid"] for worker in connection.scalars(held)}

    def choose(self, chance: random.Random) -> int | None:
        """A worker that trains and was left alone so far; None if there is none now.

        None whose trial was hurt before it got on: a trial whose workers die in a row before they finish an
        epoch is rightly given up.
        """
        got_on = self.training((attempts.c.attempt == 1) | (attempts.c.epochs > 0))
        pids = sorted(got_on & self._workers.keys() - self._hurt)
        return chance.choice(pids) if pids else None

    def send(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a worker, if it lives."""
        if number == signal.SIGCONT:
            self._hurt.discard(pid)
        else:
            self._hurt.add(pid)
        if pid in self._workers:
            self._workers[pid].send_signal(number)

    def fill_disk(self, pid: int) -> None:
        """Let a worker write no file of more than a few bytes from now on."""
        self._hurt.add(pid)
        self._disk_is_full.add(pid)
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (FULL_AT, resource.RLIM_INFINITY))

    def take_spared(self) -> int:
        """How many workers, since last asked, ended before a checkpoint of theirs met the full disk."""
        spared, self._spared = self._spared, 0
        return spared

    def end(self) -> None:
        """Kill those that are left."""
        for worker in self._workers.values():
            worker.kill()
            worker.wait()
        self.reap()
