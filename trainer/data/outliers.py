"""Energies far from all others of their molecule: most are of computations that did not converge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Molecule

#: Robust standard deviations from the median that are too far.
FAR: Final = 10.0

#: A robust standard deviation is at least this, hartree: copies of one structure are no outliers.
LEAST: Final = 1e-3

#: Of fewer structures no spread is known.
FEWEST: Final = 10

#: The standard deviation of normal values over the median of their distances from the median.
OF_MEDIAN: Final = 1.4826


def deviations(molecule: Molecule) -> npt.NDArray[np.float64]:
    """How far the energy of each structure is from the median, (Nc,), in robust standard deviations."""
    apart = np.abs(molecule.energies - np.median(molecule.energies))
    if len(apart) < FEWEST:
        return np.zeros(len(apart))
    found: npt.NDArray[np.float64] = apart / max(OF_MEDIAN * float(np.median(apart)), LEAST)
    return found


def find_outliers(molecules: Sequence[Molecule]) -> npt.NDArray[np.bool_]:
    """Which of all structures are outliers, (S,)."""
    return np.concatenate([deviations(molecule) > FAR for molecule in molecules])
