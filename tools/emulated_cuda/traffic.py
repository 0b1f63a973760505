"""Counts operations, and the bytes that they move in the memory of a card.

An operation counts as one, though some start several kernels (a sort, a sum along a long axis); views and
allocations count nothing. Each tensor that an operation reads or writes counts once, at its size, because
cache hits and repeated reads of a kernel are not visible. Of a copy between the host and a card, only the
card's side counts.

>>> with counting() as counts:
...     step()
>>> counts.launches, sum(counts.operations.values()), sum(counts.bytes.values())
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

from torch import Tensor

from tools.emulated_cuda.cards import LOCK

#: Functions of an operator's arguments that return the bytes it moves, where that is not the sum of all its
#: tensors: ``TRAFFIC["anitune::linear"] = lambda input, weight, out: ...``.
TRAFFIC: Final[dict[str, Callable[..., int]]] = {}

#: These read as much of their first argument as they write, and all of the other arguments.
_GATHERS: Final = frozenset(
    f"aten::{name}" for name in ("index_select", "index", "gather", "embedding", "take", "masked_select")
)

#: These write their last tensor into their first argument, which they also read if they add.
_SCATTERS: Final = {
    **dict.fromkeys((f"aten::{name}" for name in ("index_copy_", "index_put_", "scatter_")), 2),
    **dict.fromkeys((f"aten::{name}" for name in ("index_add_", "scatter_add_")), 3),
}

#: These do not read what they overwrite.
_OVERWRITES: Final = frozenset(
    f"aten::{name}"
    for name in (
        "fill_",
        "zero_",
        "copy_",
        "_foreach_zero_",
        "_foreach_copy_",
        "uniform_",
        "normal_",
        "random_",
    )
)


@dataclass
class Counts:
    """Counts of operations and bytes, by the name of the operator.

    Attributes
    ----------
    launches : launches by the host: operations outside of graphs, and replays
    operations, bytes : counts of all operations, including those in graphs
    """

    launches: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, moved: int) -> None:
        self.operations[name] += 1
        self.bytes[name] += moved

    def __iadd__(self, other: Counts) -> Counts:
        self.launches += other.launches
        self.operations.update(other.operations)
        self.bytes.update(other.bytes)
        return self

    def __sub__(self, other: Counts) -> Counts:
        return Counts(
            self.launches - other.launches, self.operations - other.operations, self.bytes - other.bytes
        )


#: Counts since the last reset.
COUNTS: Final = Counts()


def snapshot() -> Counts:
    """Copy the counts since the last reset."""
    with LOCK:
        copy = Counts()
        copy += COUNTS
        return copy


def reset() -> None:
    """Reset the counts to zero."""
    with LOCK:
        COUNTS.launches = 0
        COUNTS.operations.clear()
        COUNTS.bytes.clear()


@contextmanager
def counting() -> Iterator[Counts]:
    """Count the operations of the block; the counts are filled in at its end."""
    before, counts = snapshot(), Counts()
    try:
        yield counts
    finally:
        counts += snapshot() - before


def size(tensor: Tensor) -> int:
    """Bytes of a tensor; an expanded axis counts once."""
    return tensor.itemsize * prod(
        length for length, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not length
    )


def bytes_moved(
    name: str, args: Sequence[Any], kwargs: dict[str, Any], read: list[Tensor], written: list[Tensor]
) -> int:
    """Bytes that an operation moves.

    Parameters
    ----------
    read, written : its tensors on the card; changed tensors are in both
    """
    if name in TRAFFIC:
        return TRAFFIC[name](*args, **kwargs)
    if name in _OVERWRITES or "out" in kwargs:
        changed = {_place(tensor) for tensor in written}
        read = [tensor for tensor in read if _place(tensor) not in changed]
    if name in _GATHERS and read:
        return 2 * _distinct(written) + _distinct(read[1:])
    if name in _SCATTERS and len(read) > 1:
        # A number in place of a tensor fills as many rows as there are indices.
        return _SCATTERS[name] * size(read[-1]) + _distinct(read[1:-1])
    return _distinct(read) + _distinct(written)


def _fused_adam(
    parameters: list[Tensor],
    gradients: list[Tensor],
    averages: list[Tensor],
    squares: list[Tensor],
    largest: list[Tensor],
    steps: list[Tensor],
    **_: Any,
) -> int:
    changed = [*parameters, *averages, *squares, *largest]
    return 2 * _distinct(changed) + _distinct(gradients) + _distinct(steps)


TRAFFIC["aten::_fused_adam_"] = TRAFFIC["aten::_fused_adamw_"] = _fused_adam


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), size(tensor)


def _distinct(tensors: Sequence[Tensor]) -> int:
    return sum(size(tensor) for tensor in {_place(tensor): tensor for tensor in tensors}.values())
