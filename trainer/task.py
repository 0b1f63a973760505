"""What all trainings of a study share: data, split, self-energies and features."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.config import (
    ISOLATED_ATOMS,
    AEVConfig,
    FeatureConfig,
    TaskConfig,
    TrainConfig,
    dump_config,
)
from trainer.data.dataset import Dataset
from trainer.data.readers import read_data
from trainer.data.self_energies import fit_self_energies, subtract
from trainer.data.splits import Split, share_training, split_dataset, split_fold
from trainer.data.stoichiometry import Balance, balance_text, balances
from trainer.errors import DataError
from trainer.features.aev import refuse_other_elements
from trainer.features.source import FeatureSource, open_features
from trainer.fingerprints import digest_of
from trainer.progress import Progress

logger = logging.getLogger("anitune")


@dataclass(frozen=True, eq=False, repr=False)
class TaskData:
    """Everything that a network is trained on except the features.

    Attributes
    ----------
    config : the settings that it was prepared from
    dataset : all structures, S
    split : the subset of each structure
    aev : the constants of the features
    self_energies : energy of a single atom by element, hartree
    energies : (S,) float64, hartree: energies less the self-energies of the atoms; networks learn these
    fingerprints : digests that identify this task, by kind (data, split, self_energies, features)
    balances : what all compositions of the training set have in common: no other composition can be predicted
    """

    config: TaskConfig
    dataset: Dataset
    split: Split
    aev: AEVConfig
    self_energies: dict[str, float]
    energies: npt.NDArray[np.float64]
    fingerprints: dict[str, str]
    balances: tuple[Balance, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Task(TaskData):
    """The data and features that a network is trained on.

    Attributes
    ----------
    features : source of the AEVs of any structures
    choices : the same task with each of ``features.choices``; then this one has the features of the first,
        and :meth:`of` gives that of a training
    """

    features: FeatureSource
    choices: Mapping[str, Task] = dataclasses.field(default_factory=dict)

    def of(self, config: TrainConfig) -> Task:
        """Return the task with the features of a training."""
        return self.choices[config.features] if config.features is not None and self.choices else self

    def with_split(self, split: Split) -> Task:
        """Return the task with another division of the data."""
        choices = {name: each.with_split(split) for name, each in self.choices.items()}
        return replace(self, split=split, choices=choices)


def prepare_task(config: TaskConfig, cache: Path, progress: Progress) -> Task:
    """Read the data, divide it, and open the features, which are computed if ``cache`` does not hold them.

    Raises
    ------
    DataError
        if the data cannot be used as it is, or is too small for a training and a validation set.
    FeatureStoreError
        if the features can be neither read nor computed.
    """
    return add_features(prepare_data(config, progress, cache), cache, progress)


def prepare_data(config: TaskConfig, progress: Progress, cache: Path | None = None) -> TaskData:
    """Read the data and divide it. :func:`add_features` completes the result for training.

    Parameters
    ----------
    cache : folder of the features, where arrays of large files are cached too; None: no cache

    Raises
    ------
    DataError
        if the data cannot be used as it is, or is too small for a training and a validation set.
    """
    data, split, features = config.data, config.split, config.features
    files = ", ".join(data.files)
    dataset = replace(read_data(data, progress, cache), told_apart_by=split.molecules)
    if dataset.structures < 2:
        raise DataError(f"{files}: one structure only; training and validation need at least one each")
    try:
        refuse_other_elements(dataset, features.aev)
    except DataError as error:
        raise DataError(f"{files}: {error}") from error
    labels = split_dataset(dataset, split)
    if config.fold is not None:
        labels = split_fold(dataset, labels, config.fold)
    if config.train_share < 1:
        labels = share_training(dataset, labels, split, config.train_share)
    if not len(labels.train) or not len(labels.validation):
        empty = "validation" if len(labels.train) else "training"
        raise DataError(
            f"{files}: the {empty} set of the {dataset.structures} structures is empty: "
            "change split.fractions"
        )
    given = dataset.isolated_energies if data.self_energies == ISOLATED_ATOMS else data.self_energies
    self_energies = given or fit_self_energies(dataset, labels, features.aev.elements)
    trained = [dataset.molecules[m] for m in np.unique(dataset.molecule_of(labels.train))]
    # Also if energies of single atoms are given: networks divide the rest among the atoms just as freely.
    known = balances((m.composition for m in trained), Dataset(tuple(trained)).elements)
    if known:
        logger.warning(
            "%s: in all molecules of the training set %s: the energies of these elements cannot be"
            " separated, and no other "
            "composition can be predicted; add molecules of other compositions",
            files,
            " and ".join(map(balance_text, known)),
        )
    return TaskData(
        config=config,
        dataset=dataset,
        split=labels,
        aev=next(iter((features.choices or {"": features.aev}).values())),
        self_energies=self_energies,
        energies=subtract(dataset, self_energies),
        fingerprints={
            "data": dataset.fingerprint,
            "split": labels.fingerprint,
            # Fitted energies follow from data and split; their last bits depend on the machine.
            "self_energies": digest_of(given) if given else "fitted",
            "features": _features_fingerprint(features),
        },
        balances=known,
    )


def add_features(data: TaskData, cache: Path, progress: Progress) -> Task:
    """Open the features that ``data`` was prepared for; they are computed if ``cache`` does not hold them.

    Raises
    ------
    FeatureStoreError
        if the features can be neither read nor computed.
    """
    features = data.config.features
    if features.choices is None:
        return Task(**vars(data), features=open_features(data.dataset, features, cache, progress))
    choices = {}
    for name, aev in features.choices.items():
        of_choice = replace(features, aev=aev, choices=None)
        source = open_features(data.dataset, of_choice, cache, progress)
        prints = data.fingerprints | {"features": _features_fingerprint(of_choice)}
        choices[name] = Task(**(vars(data) | {"aev": aev, "fingerprints": prints}), features=source)
    return Task(**vars(data), features=next(iter(choices.values())).features, choices=choices)


def _features_fingerprint(features: FeatureConfig) -> str:
    if features.choices is None:
        return digest_of(dump_config(features.aev))
    return digest_of({name: dump_config(aev) for name, aev in features.choices.items()})
