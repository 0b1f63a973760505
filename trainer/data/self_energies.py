"""Self-energies: the contribution of each atom to the energy of a structure, whatever its surroundings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Dataset
from trainer.data.splits import Split
from trainer.errors import DataError


def fit_self_energies(dataset: Dataset, split: Split, elements: Sequence[str]) -> dict[str, float]:
    """Fit the energies of the training set to its numbers of atoms by linear least squares.

    If the compositions do not determine the solution (for example, a single molecule), it is the solution of
    minimum norm.

    Parameters
    ----------
    elements : the elements for which there is a network

    Returns
    -------
    Self-energies in hartree of those of ``elements`` that occur in the data.

    Raises
    ------
    DataError
        if the data holds an element that is not in ``elements``, or not in the training set.
    """
    if unknown := [e for e in dataset.elements if e not in elements]:
        raise DataError(
            f"the data holds {', '.join(unknown)}, but the features are for {', '.join(elements)} only: "
            "leave those molecules out, or extend features.aev.elements"
        )
    occurring = [e for e in elements if e in dataset.elements]
    owners = dataset.molecule_of(split.train)
    weights = np.bincount(owners, minlength=len(dataset.molecules)).astype(np.float64)
    trained = weights > 0
    counts = composition_counts(dataset, occurring)
    if missing := [e for e, n in zip(occurring, weights @ counts, strict=True) if n == 0]:
        raise DataError(
            f"{', '.join(missing)} occurs in the validation or test set but not in the training set, so no"
            " self-energy can be fitted: change split.seed or split.fractions"
        )
    # The rows of one molecule are equal: one row with its mean energy, weighted by the square root of their
    # number, gives the same solution.
    sums = np.bincount(owners, weights=dataset.energies()[split.train], minlength=len(weights))
    root = np.sqrt(weights[trained])
    solution, *_ = np.linalg.lstsq(
        counts[trained] * root[:, None], sums[trained] / weights[trained] * root, rcond=1e-10
    )
    return dict(zip(occurring, solution.tolist(), strict=True))


def subtract(dataset: Dataset, self_energies: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """Return the energies of all structures less their atoms' self-energies, (S,) float64, hartree.

    Raises
    ------
    DataError
        if the data holds an element without a self-energy.
    """
    if missing := [e for e in dataset.elements if e not in self_energies]:
        raise DataError(f"data.self_energies lacks {', '.join(missing)}, which the data holds: add it")
    shifts = composition_counts(dataset, dataset.elements) @ np.array(
        [self_energies[e] for e in dataset.elements]
    )
    less: npt.NDArray[np.float64] = dataset.energies() - np.repeat(shifts, np.diff(dataset.offsets))
    return less


def composition_counts(dataset: Dataset, elements: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return the number of atoms of each element in each molecule, (M, E)."""
    return np.array(
        [[m.composition.get(e, 0) for e in elements] for m in dataset.molecules], dtype=np.float64
    )
