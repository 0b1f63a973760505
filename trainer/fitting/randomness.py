"""The random choices of an epoch, as functions of seeds and numbers alone.

Nothing is drawn from a stream that an interruption could break, so a checkpoint need not hold a generator:
epoch 7 sees the same permutation of the data and drops the same neurons whether the six epochs before it ran
in this process or in another. Other kinds of devices see the same permutation, but draw other random numbers
for dropout.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

_PERMUTATION: Final = 0
_DROPOUT: Final = 1


def first_permutation(seed: int) -> int:
    """Return the number of the permutation in the first epoch of a training alone; each epoch adds one."""
    return seed << 16


def data_permutation(structures: int, seed: int, number: int) -> npt.NDArray[np.int64]:
    """Return the permutation (structures,) in which an epoch goes through the training set.

    Parameters
    ----------
    seed : seed of the split, so that trainings with different seeds can share their batches
    number : 0 and up
    """
    return np.argsort(permutation_keys(structures, seed, number), kind="stable")


def permutation_keys(structures: int, seed: int, number: int) -> npt.NDArray[np.int64]:
    """Return the keys (structures,) whose stable sort is the permutation."""
    # NumPy never changes the raw numbers of a bit generator, unlike those of ``Generator``.
    numbers = np.random.PCG64([seed, number, _PERMUTATION]).random_raw(structures)
    # Mapped to signed integers in the same order, because a GPU does not sort unsigned ones.
    return (numbers ^ np.uint64(1 << 63)).view(np.int64)


def dropout_seed(seed: int, epoch: int) -> int:
    """Return the dropout seed of the first micro-batch of an epoch; each further micro-batch adds one.

    On a GPU it seeds the stream of the epoch, from which the steps draw one after another.
    """
    return int(np.random.SeedSequence([seed, epoch, _DROPOUT]).generate_state(1)[0])
