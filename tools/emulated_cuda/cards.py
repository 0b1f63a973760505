"""The emulated cards: their memory, and which of them the program has used."""

from __future__ import annotations

import threading
from typing import Any, Final
from weakref import WeakSet, WeakValueDictionary

from torch import Tensor

from tools.emulated_cuda import failures

NAME: Final = "emulated (computed on the CPU, not on a real card)"

#: Allocations are multiples of this, as in torch.
BLOCK: Final = 512

#: Held while the records below are changed.
LOCK: Final = threading.RLock()


class Pool:
    """Memory that belongs to graphs, until the last of them is gone."""

    def __init__(self, card: Card) -> None:
        self.live = self.peak = 0
        self.handle = (id(self), 0)
        card.pools.add(self)


class Card:
    """An emulated card.

    Attributes
    ----------
    total : size of its memory, bytes
    others : bytes that other processes take
    fraction : share of the memory that this process may take
    context : whether the program has used the card; a context takes memory on a real one
    """

    def __init__(self, index: int, total: int) -> None:
        self.index = index
        self.total = total
        self.others = 0
        self.fraction = 1.0
        self.context = False
        self.pools: WeakSet[Pool] = WeakSet()
        self.allocated = self.peak = self.reserved = 0
        self._pooled = 0

    def used(self) -> int:
        """Bytes of live tensors and of the pools of graphs."""
        return self.allocated - self._pooled + sum(pool.peak for pool in self.pools)

    def free(self) -> int:
        """Bytes that ``torch.cuda.mem_get_info`` calls free."""
        return max(0, self.total - self.others - self.reserved)

    def allocate(self, size: int, pool: Pool | None) -> None:
        failures.check("allocation")
        self.context = True
        with LOCK:
            more = size if pool is None else max(0, pool.live + size - pool.peak)
            limit = min(int(self.fraction * self.total), self.total - self.others)
            if self.used() + more > limit:
                raise failures.out_of_memory(size, self.index, self.total, max(0, limit - self.used()))
            self.allocated += size
            if pool is not None:
                self._pooled += size
                pool.live += size
                pool.peak = max(pool.peak, pool.live)
            self.peak = max(self.peak, self.allocated)
            self.reserved = max(self.reserved, self.used())

    def release(self, size: int, pool: Pool | None) -> None:
        with LOCK:
            self.allocated -= size
            if pool is not None:
                self._pooled -= size
                pool.live -= size

    def empty_cache(self) -> None:
        self.reserved = self.used()

    def stats(self) -> dict[str, Any]:
        """The part of :func:`torch.cuda.memory_stats` that is recorded here."""
        self.reserved = max(self.reserved, self.used())
        return {
            "allocated_bytes": {"all": {"current": self.allocated, "peak": self.peak}},
            "reserved_bytes": {"all": {"current": self.reserved, "peak": self.reserved}},
        }


class Access:
    """The operations that last used some memory.

    Attributes
    ----------
    written : the last that wrote it, as stream and number there
    read : for each stream, the last that read it since then
    """

    def __init__(self) -> None:
        self.written: tuple[Any, int] | None = None
        self.read: dict[Any, int] = {}


class Allocation(Access):
    """Memory on a card, as long as a tensor of the program is in it."""

    def __init__(self, inner: Tensor, card: Card, pool: Pool | None) -> None:
        super().__init__()
        self._size = 0
        # Held, so that its address is not reused meanwhile.
        self._storage = inner.untyped_storage()
        self.card, self.pool = card, pool
        size = -(-self._storage.nbytes() // BLOCK) * BLOCK
        card.allocate(size, pool)
        self._size = size

    def __del__(self) -> None:
        self.card.release(self._size, self.pool)


CARDS: Final[list[Card]] = []
_allocations: WeakValueDictionary[int, Allocation] = WeakValueDictionary()


def find_allocation(inner: Tensor) -> Allocation | None:
    """The memory of a tensor, if the program still has a tensor there."""
    return _allocations.get(inner.untyped_storage()._cdata)


def allocation_of(inner: Tensor, index: int, pool: Pool | None) -> Allocation:
    """The memory of a tensor, allocated now if it is new."""
    with LOCK:
        found = find_allocation(inner)
        if found is None:
            found = Allocation(inner, CARDS[index], pool)
            _allocations[inner.untyped_storage()._cdata] = found
        return found


def set_memory(*, free: int | None = None, total: int | None = None, index: int = 0) -> None:
    """Set the total memory of a card, and how much of it is now free for this process, in bytes."""
    card = CARDS[index]
    card.empty_cache()
    if total is not None:
        card.total = total
    if free is not None:
        card.others = max(0, card.total - card.reserved - free)


def used_cards() -> list[int]:
    """The numbers of the cards on which the program has a context."""
    return [card.index for card in CARDS if card.context]
