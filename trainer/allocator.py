"""Tuning of glibc's memory allocator."""

from __future__ import annotations

import torch


def keep_freed_memory() -> None:
    """Make large arrays reuse freed memory instead of returning it to the system.

    The system clears the memory that it hands out, page by page, and threads wait for each other meanwhile.
    Once an array of a size has been freed, memory for arrays up to this size is kept: mallopt(3),
    M_MMAP_THRESHOLD, whose dynamic limit is 32 MiB. Other allocators are not affected.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)
