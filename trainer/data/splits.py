"""Division of the data into training, validation and test set.

Every structure has exactly one label, so that no structure can be in two subsets.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from trainer.config import FoldConfig, SplitConfig
from trainer.data.dataset import Dataset
from trainer.errors import DataError

TRAINING: Final = 0
VALIDATION: Final = 1
TEST: Final = 2
LEFT_OUT: Final = 3


@dataclass(frozen=True, eq=False)
class Split:
    """The subset of every structure.

    Attributes
    ----------
    labels : (S,) uint8 array of TRAINING, VALIDATION, TEST or LEFT_OUT
    """

    labels: npt.NDArray[np.uint8]

    @cached_property
    def train(self) -> npt.NDArray[np.int64]:
        """Indices of the training structures, ascending."""
        return np.flatnonzero(self.labels == TRAINING)

    @cached_property
    def validation(self) -> npt.NDArray[np.int64]:
        """Indices of the validation structures, ascending."""
        return np.flatnonzero(self.labels == VALIDATION)

    @cached_property
    def test(self) -> npt.NDArray[np.int64]:
        """Indices of the test structures, ascending."""
        return np.flatnonzero(self.labels == TEST)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the labels."""
        return hashlib.sha256(self.labels.tobytes()).hexdigest()


def split_dataset(dataset: Dataset, config: SplitConfig) -> Split:
    """Label every structure, by structure or by molecule (then shares refer to the number of molecules).

    The test set depends only on the seed and its share: it is the same for every fold.

    Raises
    ------
    DataError
        if there are too few structures or molecules for the subsets.
    """
    if config.by == "structure":
        return Split(_label_units(dataset.structures, config, "structures"))
    molecules = _molecule_numbers(dataset)
    labels = _label_units(int(molecules.max()) + 1, config, "molecules")[molecules]
    return Split(np.repeat(labels, np.diff(dataset.offsets)))


def split_fold(dataset: Dataset, split: Split, config: FoldConfig) -> Split:
    """Make one fold of the structures outside the test set the validation set, and train on the others.

    The test set does not change. The numbers of structures, or of molecules, of the folds are as equal as
    possible.

    Raises
    ------
    DataError
        if there are too few structures or molecules for the folds.
    """
    rest = np.flatnonzero(split.labels != TEST)
    owners = fold_units(dataset, split, config.by)
    units = np.unique(owners)
    if len(units) < config.folds:
        raise DataError(
            f"{len(units)} {config.by}s are not in the test set: too few for {config.folds} folds"
        )
    order = units[_permutation(len(units), config.seed)]
    labels = split.labels.copy()
    labels[rest] = TRAINING
    labels[rest[np.isin(owners, np.array_split(order, config.folds)[config.fold])]] = VALIDATION
    return Split(labels)


def share_training(dataset: Dataset, split: Split, config: SplitConfig, share: float) -> Split:
    """Leave out all but a share of the training set; the other subsets do not change.

    The structures, or whole molecules, are taken in the order in which the seed of the split arranges the
    data, so that larger shares contain smaller ones. Shares refer to their number.

    Raises
    ------
    DataError
        if the share is less than half a structure or molecule.
    """
    units = np.arange(dataset.structures)
    if config.by == "molecule":
        units = _molecule_numbers(dataset)[dataset.molecule_of(units)]
    owners = units[split.train]
    order = _permutation(int(units.max()) + 1, config.seed)
    order = order[np.isin(order, owners)]
    count = round(share * len(order))
    if not count:
        raise DataError(f"{share:g} of the {len(order)} {config.by}s to train on is none")
    labels = split.labels.copy()
    labels[split.train[~np.isin(owners, order[:count])]] = LEFT_OUT
    return Split(labels)


def fold_units(dataset: Dataset, split: Split, by: Literal["structure", "molecule"]) -> npt.NDArray[np.int64]:
    """Return the unit that is kept whole in a fold for each structure outside the test set, (n,)."""
    rest = np.flatnonzero(split.labels != TEST)
    return rest if by == "structure" else _molecule_numbers(dataset)[dataset.molecule_of(rest)]


def _molecule_numbers(dataset: Dataset) -> npt.NDArray[np.int64]:
    """Return a number from 0 for each molecule, (M,); groups with the same identity have the same number."""
    numbers: dict[str, int] = {}
    return np.array(
        [numbers.setdefault(identity, len(numbers)) for identity in dataset.identities()], dtype=np.int64
    )


def _label_units(count: int, config: SplitConfig, units: str) -> npt.NDArray[np.uint8]:
    """Return the subset of each of ``count`` units; a share above 0 gets at least one unit."""
    _, validation_share, test_share = config.fractions
    order = _permutation(count, config.seed)
    test = _size(test_share, count)
    rest = order[test:]
    if config.folds is None:
        validation = rest[: _size(validation_share, count)]
    else:
        # With folds, the validation set is one fold of the units outside the test set.
        if len(rest) < config.folds:
            raise DataError(
                f"too few {units} ({count}) for {config.folds} folds and a test set of {test}: "
                "lower split.folds or give more data"
            )
        validation = np.array_split(rest, config.folds)[config.fold]
    if len(validation) >= len(rest):
        raise DataError(
            f"too few {units} ({count}) for the subsets of the split: {len(validation)} for validation and"
            f" {test} for the test leave none for training; "
            "give more data, or change split.fractions or split.by"
        )
    labels = np.full(count, TRAINING, dtype=np.uint8)
    labels[order[:test]] = TEST
    labels[validation] = VALIDATION
    return labels


def _size(share: float, count: int) -> int:
    return max(1, round(share * count)) if share > 0 else 0


def _permutation(count: int, seed: int) -> npt.NDArray[np.int64]:
    """Return a permutation from raw numbers, which NumPy never changes, unlike those of ``Generator``."""
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")
