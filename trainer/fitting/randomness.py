"""The random choices of an epoch, as functions of seeds and numbers alone.

Nothing is drawn from a stream that an interruption could break, so a checkpoint need not hold one: epoch 7
sees the same order of the data and drops the same neurons whether the six before it ran in this process or
in another. Another kind of device sees the same order too, but has random numbers of its own for dropout.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

_PERMUTATION: Final = 0
_DROPOUT: Final = 1


def first_permutation(seed: int) -> int:
    """The number of the order of the data in the first epoch of a training alone; each epoch adds one."""
    return seed << 16


def data_permutation(structures: int, seed: int, number: int) -> npt.NDArray[np.int64]:
    """An order in which an epoch goes through the training part: a permutation (structures,).

    Parameters
    ----------
    seed : of the split: trainings with other seeds of their own can so go through the data together
    number : 0 and up
    """
    return np.argsort(permutation_keys(structures, seed, number), kind="stable")


def permutation_keys(structures: int, seed: int, number: int) -> npt.NDArray[np.int64]:
    """What the structures are sorted by, stably, to come into an order: (structures,)."""
    # NumPy keeps the raw numbers of a bit generator the same for ever, but not those of ``Generator``.
    numbers = np.random.PCG64([seed, number, _PERMUTATION]).random_raw(structures)
    # Signed, and as far apart as before: a GPU sorts no unsigned numbers.
    return (numbers ^ np.uint64(1 << 63)).view(np.int64)


def dropout_seed(seed: int, epoch: int) -> int:
    """What the first piece of the first batch of an epoch drops; each further piece adds one.

    On a GPU it begins the stream of the epoch, of which the steps draw one after another.
    """
    return int(np.random.SeedSequence([seed, epoch, _DROPOUT]).generate_state(1)[0])
