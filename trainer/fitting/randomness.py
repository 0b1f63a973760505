"""The random choices of an epoch, as functions of the seed and the epoch alone.

Nothing is drawn from a stream that an interruption could break, so a checkpoint need not hold one: epoch 7
sees the same order of the data and drops the same neurons whether the six before it ran in this process,
in another, or on another kind of device.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

_ORDER: Final = 0
_DROPOUT: Final = 1


def epoch_order(structures: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order in which an epoch goes through the training part: a permutation (structures,)."""
    # NumPy keeps the raw numbers of a bit generator the same for ever, but not those of ``Generator``.
    numbers = np.random.PCG64([seed, epoch, _ORDER]).random_raw(structures)
    return np.argsort(numbers, kind="stable")


def dropout_seed(seed: int, epoch: int) -> int:
    """What the generator of the dropout is seeded with for an epoch."""
    return int(np.random.SeedSequence([seed, epoch, _DROPOUT]).generate_state(1)[0])
