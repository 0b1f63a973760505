"""What glibc's allocator does with memory that was freed."""

from __future__ import annotations

import torch


def keep_freed_memory() -> None:
    """Have large arrays reuse freed memory, instead of giving it back and asking for it anew each time.

    The system clears what it gives, page by page, and threads wait for each other meanwhile. Once an array of
    a size was freed, arrays up to this size are kept: mallopt(3), M_MMAP_THRESHOLD, whose dynamic limit is
    32 MiB. Other allocators are not affected.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)
