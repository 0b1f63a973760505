"""A fleet of worker processes: one that ends is replaced until nothing is left to train."""

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
from tests.chaos.plan import Kind

FULL_AT = 4_096
"""Maximum size of a file on the full disk, bytes: too small for a checkpoint."""

MET_FULL_DISK = "checkpoint.safetensors: cannot be written: File too large"
"""Message of a worker whose checkpoint found no room."""


class Fleet:
    """A constant number of workers of a study.

    Attributes
    ----------
    ends : number of workers that ended, by exit code; the code of a signal is negative
    last_words : last lines of workers that gave up
    reached : number of workers that ended because of a fault, by kind of fault
    """

    def __init__(self, study: Study, count: int, logs: Path, environment: dict[str, str]) -> None:
        self.ends: Counter[int] = Counter()
        self.last_words: list[str] = []
        self.reached: Counter[Kind] = Counter()
        self._study = study
        self._count = count
        self._logs = logs
        self._environment = environment
        self._started = 0
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._hurt: set[int] = set()
        self._done_to: dict[int, Kind] = {}
        self._missed: list[Kind] = []
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
                if (kind := self._done_to.pop(pid, None)) is not None:
                    if _ended_by(kind, worker.returncode, said):
                        self.reached[kind] += 1
                    else:
                        self._missed.append(kind)
                del self._workers[pid]
                self._hurt.discard(pid)

    @property
    def size(self) -> int:
        """Number of running workers."""
        return len(self._workers)

    def training(self, *where: ColumnElement[bool]) -> set[int]:
        """Process ids of workers that hold a trial."""
        held = select(attempts.c.worker).where(
            attempts.c.study_id == self._study.id, attempts.c.ended_at.is_(None), *where
        )
        with self._study.database.reading() as connection:
            return {worker["pid"] for worker in connection.scalars(held)}

    def choose(self, chance: random.Random) -> int | None:
        """Choose a worker that holds a trial and has not been hurt yet; None if there is none now.

        Workers whose trial was hurt before it made progress are left out: a trial whose workers die in a row
        before they finish an epoch is rightly given up.
        """
        got_on = self.training((attempts.c.attempt == 1) | (attempts.c.epochs > 0))
        pids = sorted(got_on & self._workers.keys() - self._hurt)
        return chance.choice(pids) if pids else None

    def send(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a worker if it is running."""
        if number == signal.SIGCONT:
            self._hurt.discard(pid)
        else:
            self._hurt.add(pid)
        if pid in self._workers:
            self._workers[pid].send_signal(number)

    def hurt(self, kind: Kind, pid: int) -> None:
        """Kill a worker, tell it to end, or fill its disk; counted once the worker has ended by it."""
        self._done_to[pid] = kind
        match kind:
            case "kill":
                self.send(pid, signal.SIGKILL)
            case "terminate":
                self.send(pid, signal.SIGTERM)
            case "full disk":
                self._hurt.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (FULL_AT, resource.RLIM_INFINITY))
            case _:
                raise AssertionError(f"{kind} ends no worker")

    def take_missed(self) -> list[Kind]:
        """Kinds of faults since the last call whose worker had ended before, or ended for another reason."""
        missed, self._missed = self._missed, []
        return missed

    def end(self) -> None:
        """Kill the remaining workers."""
        for worker in self._workers.values():
            worker.kill()
            worker.wait(60)
        self.reap()


def _ended_by(kind: Kind, code: int, said: str) -> bool:
    """Whether a worker ended because of the fault.

    Parameters
    ----------
    code : exit code of the worker; negative for a signal
    said : output of the worker
    """
    match kind:
        case "kill":
            return code == -signal.SIGKILL
        case "terminate":
            return code in (-signal.SIGTERM, 128 + signal.SIGTERM)
        case _:
            return MET_FULL_DISK in said
