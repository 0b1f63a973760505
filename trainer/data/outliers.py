"""Energies far from all others of their molecule; most come from computations that did not converge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Molecule

#: Distance from the median, in robust standard deviations, beyond which an energy is an outlier.
FAR: Final = 10.0

#: Lower limit of a robust standard deviation, hartree, so that copies of one structure are not outliers.
LEAST: Final = 1e-3

#: With fewer structures the spread is not known.
FEWEST: Final = 10

#: Ratio of the standard deviation of normal values to the median of their distances from the median.
OF_MEDIAN: Final = 1.4826


def deviations(molecule: Molecule) -> npt.NDArray[np.float64]:
    """Return the distance of each energy from the median, (Nc,), in robust standard deviations."""
    apart = np.abs(molecule.energies - np.median(molecule.energies))
    if len(apart) < FEWEST:
        return np.zeros(len(apart))
    found: npt.NDArray[np.float64] = apart / max(OF_MEDIAN * float(np.median(apart)), LEAST)
    return found


def find_outliers(molecules: Sequence[Molecule]) -> npt.NDArray[np.bool_]:
    """Return which of all structures are outliers, (S,)."""
    return np.concatenate([deviations(molecule) > FAR for molecule in molecules])
