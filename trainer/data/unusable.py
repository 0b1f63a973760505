"""Structures that the networks cannot learn from: without an energy, periodic, charged or open-shell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer.config import DataConfig, Unusable
from trainer.errors import DataError

_REASONS: Final[Mapping[Unusable, tuple[str, str]]] = {
    "without_energy": ("without an energy", "give each one"),
    "periodic": ("periodic", "the networks are for molecules"),
    "charged": ("charged", "the networks do not take the charge into account"),
    "open_shell": ("open-shell", "the networks do not take the spin into account"),
}

#: Kinds that a network can learn from, if a file holds no others.
UNUSUAL: Final[tuple[Unusable, ...]] = ("charged", "open_shell")


def usable(
    where: str,
    faults: Mapping[Unusable, npt.NDArray[np.bool_]],
    data: DataConfig,
    hint: str = "",
) -> npt.NDArray[np.bool_]:
    """Return which structures are used, (n,).

    Parameters
    ----------
    where : file and group, for messages
    faults : (n,) which structures have each fault
    hint : addition to the message about structures without an energy

    Raises
    ------
    DataError
        if a structure has a fault, and the settings neither leave it out nor use it.
    """
    left_out = np.zeros(len(next(iter(faults.values()))), bool)
    for kind, wrong in faults.items():
        if kind in data.leave_out:
            left_out |= wrong
            continue
        if not wrong.any() or (kind in UNUSUAL and data.unusual == "keep"):
            continue
        count, (word, why) = int(wrong.sum()), _REASONS[kind]
        keep = ", or use them with data.unusual: keep (--unusual keep)" if kind in UNUSUAL else ""
        raise DataError(
            f"{where}: {count:,} of {len(wrong):,} structures {'is' if count == 1 else 'are'} {word} (the "
            f"first is number {int(np.argmax(wrong))}, from 0): "
            f"{why}{hint if kind == 'without_energy' else ''}; leave them out with data.leave_out: [{kind}] "
            f"(--leave-out {kind}){keep}"
        )
    return ~left_out
