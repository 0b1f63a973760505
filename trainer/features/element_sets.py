"""Which elements occur together in molecules: the AEV columns of the others are zero, and are left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.config import AEVConfig
from trainer.data.dataset import Dataset
from trainer.features.aev import columns


@dataclass(frozen=True, eq=False)
class ElementSet:
    """Elements that make up molecules, and the AEV columns that can differ from zero there.

    Attributes
    ----------
    elements : indices into ``AEVConfig.elements``, ascending
    columns : (F_s,) int64, ascending
    """

    elements: tuple[int, ...]
    columns: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ElementSets:
    """The element sets of a data set.

    Attributes
    ----------
    sets : each once, in the order of their ``elements``
    of_molecule : (M,) int64: the set of each molecule
    """

    sets: tuple[ElementSet, ...]
    of_molecule: npt.NDArray[np.int64]


def find_element_sets(dataset: Dataset, config: AEVConfig) -> ElementSets:
    """Group the molecules of a data set by their elements."""
    elements = [
        tuple(i for i, symbol in enumerate(config.elements) if symbol in molecule.composition)
        for molecule in dataset.molecules
    ]
    found = sorted(set(elements))
    return ElementSets(
        sets=tuple(ElementSet(some, columns(config, some)) for some in found),
        of_molecule=np.array([found.index(some) for some in elements], dtype=np.int64),
    )
