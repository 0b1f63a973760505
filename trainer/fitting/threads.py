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
    """Divides pieces of work among threads, always alike, so that sums have the same order each time.

    A piece fits into the cache of a core, and its operations run in the one thread: this scales better than
    dividing each operation, and does not wait for a busy core at each of them.

    Parameters
    ----------
    count : number of threads; with one of them the work is done where it is asked for
    """

    def __init__(self, count: int) -> None:
        self.count = count
        # The operations of a thread divide themselves no further. This setting is the calling thread's.
        torch.set_num_threads(1)
        keep_freed_memory()
        self._pool = ThreadPoolExecutor(count, initializer=partial(torch.set_num_threads, 1))

    def map(self, work: Callable[[int, Sequence[T]], R], pieces: Sequence[T]) -> list[R]:
        """``work(t, those of pieces that are thread t's)`` for each thread t that has any."""
        shares = [pieces[t :: self.count] for t in range(min(self.count, len(pieces)))]
        if len(shares) == 1:
            return [work(0, shares[0])]
        return list(self._pool.map(work, range(len(shares)), shares))
