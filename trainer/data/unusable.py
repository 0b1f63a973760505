"""Structures that no network here can learn from: without an energy, periodic, charged or open-shell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer.config import Unusable
from trainer.errors import DataError

_WORDS: Final[Mapping[Unusable, tuple[str, str]]] = {
    "without_energy": ("without an energy", "give each one"),
    "periodic": ("periodic", "the networks are of molecules"),
    "charged": ("charged", "the networks know nothing of a charge"),
    "open_shell": ("open-shell", "the networks know nothing of a spin"),
}


def usable(
    where: str,
    faults: Mapping[Unusable, npt.NDArray[np.bool_]],
    leave_out: tuple[Unusable, ...],
    hint: str = "",
) -> npt.NDArray[np.bool_]:
    """Which of some structures are used, (n,).

    Parameters
    ----------
    where : file and group, for messages
    faults : (n,) which structures have each fault
    leave_out : the faults of those that are left out
    hint : what else a message says of those without an energy

    Raises
    ------
    DataError
        if a structure has a fault that is not to be left out.
    """
    left_out = np.zeros(len(next(iter(faults.values()))), bool)
    for kind, wrong in faults.items():
        if kind in leave_out:
            left_out |= wrong
        if kind in leave_out or not wrong.any():
            continue
        count, (word, why) = int(wrong.sum()), _WORDS[kind]
        raise DataError(
            f"{where}: {count:,} of {len(wrong):,} structures {'is' if count == 1 else 'are'} {word} (the "
            "first "
            f"is number {int(np.argmax(wrong))}, from 0): {why}{hint if kind == 'without_energy' else ''}, "
            "or "
            f"leave them out with data.leave_out: [{kind}] (--leave-out {kind})"
        )
    return ~left_out
