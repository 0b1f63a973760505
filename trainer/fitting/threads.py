"""Threads that share the work of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

from trainer.allocator import keep_freed_memory

T = TypeVar("T")
R = TypeVar("R")


class Threads:
    """Divides micro-batches among threads, always in the same way, so that sums have a fixed order.

    A micro-batch fits into the cache of a core, and its operations run in one thread: this scales better than
    dividing each operation, and does not wait for a busy core at each of them.

    Parameters
    ----------
    count : number of threads; with one, the calling thread does the work
    """

    def __init__(self, count: int) -> None:
        self.count = count
        # An operation is not divided further. This setting is that of the calling thread.
        torch.set_num_threads(1)
        keep_freed_memory()
        self._pool = ThreadPoolExecutor(count, initializer=partial(torch.set_num_threads, 1))

    def map(self, work: Callable[[int, Sequence[T]], R], pieces: Sequence[T]) -> list[R]:
        """Return ``work(t, share of thread t)`` for each thread t that has a share of ``pieces``."""
        shares = [pieces[t :: self.count] for t in range(min(self.count, len(pieces)))]
        if len(shares) == 1:
            return [work(0, shares[0])]
        return list(self._pool.map(work, range(len(shares)), shares))
