"""Sharing of a GPU's memory among workers: each announces how much memory it will take.

An announcement is a small file in the home folder that its worker keeps locked, so the announcement of a
killed worker no longer counts. Workers with another home folder do not see it. If memory runs out because of
that, a worker trains fewer trials at once (:mod:`trainer.fitting.scheduler`).
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, Self

import torch
from filelock import FileLock, Timeout

from trainer.fitting.devices import card_id

logger = logging.getLogger("anitune")

UPDATED_SECONDS: Final = 2.0
"""Interval at which a worker updates how much of its announced memory it has taken, s."""

PLANNING_SECONDS: Final = 300.0
"""How long a worker waits for another one that plans and copies its features to the card, s."""


class CardMemory:
    """The memory of a GPU, which one worker shares with others for the duration of the block.

    Parameters
    ----------
    card : returns the identifier of the card
    taken : returns how many bytes this process has taken
    folder : folder of the announcements for all cards
    """

    def __init__(self, card: Callable[[], str], taken: Callable[[], int], folder: Path) -> None:
        self._card = card
        self._taken = taken
        self._root = folder
        self._planned = 0
        self._file: int | None = None
        self._name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}.plan"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._update, name="card-memory", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._file is not None:
            self._thread.join()
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(self._file)

    @property
    def _folder(self) -> Path:
        return self._root / self._card().replace(os.sep, "-")

    @property
    def _path(self) -> Path:
        return self._folder / self._name

    @contextmanager
    def planning(self) -> Iterator[int]:
        """Lock out planning by other workers; yield the bytes that these have announced and not yet taken."""
        lock = FileLock(self._folder / ".lock")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(PLANNING_SECONDS)
        except (OSError, Timeout) as error:
            logger.info("the memory that other workers on this GPU will use is not known: %s", error)
            yield 0
            return
        try:
            yield self._left_to_others()
        finally:
            lock.release()

    def announce(self, planned: int) -> None:
        """Announce how many bytes this process will take in all.

        Call this within a block of :meth:`planning`, or with fewer bytes than before.
        """
        self._planned = planned
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
                fcntl.flock(self._file, fcntl.LOCK_EX)
                self._thread.start()
            self._write(self._file)
        except OSError as error:
            logger.info(
                "the memory that this worker will use cannot be announced to others on this GPU: %s", error
            )

    def _update(self) -> None:
        while not self._ended.wait(UPDATED_SECONDS):
            assert self._file is not None
            with suppress(OSError):
                self._write(self._file)

    def _write(self, file: int) -> None:
        os.pwrite(file, f"{self._planned:20d} {self._taken():20d}\n".encode(), 0)

    def _left_to_others(self) -> int:
        return sum(_left_to(path) for path in self._folder.glob("*.plan") if path != self._path)


def _left_to(path: Path) -> int:
    """Return the bytes that a worker has announced and not taken; delete its file if it has ended."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return 0  # the worker has just ended
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        planned, taken = os.pread(file, 42, 0).split()
        return max(0, int(planned) - int(taken))
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return 0
    finally:
        os.close(file)


@contextmanager
def shared_memory_of(device: torch.device, folder: Path) -> Iterator[CardMemory | None]:
    """Share the memory of a GPU with other workers for the duration of the block; None for another device.

    Parameters
    ----------
    folder : folder of the announcements for all cards
    """
    if device.type != "cuda":
        yield None
        return
    with CardMemory(partial(card_id, device), partial(torch.cuda.memory_reserved, device), folder) as memory:
        yield memory
