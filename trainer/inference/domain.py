"""Where a model was trained: what is kept of the training data to tell structures that are far from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from torch import Tensor

from trainer.config import AEVConfig
from trainer.errors import ModelFileError
from trainer.features.aev import MoleculeFeatures, aev_length
from trainer.task import TaskData

#: Structures of each part that are looked at. The ranges of so many hardly widen with more, and where they
#: do, the threshold knows it.
MOST: Final = 20_000

#: The least threshold, in the unit of the AEV (each neighbor adds up to 0.25 to a radial number): where the
#: validation part is small or hardly differs from the training part, less is nothing to warn of.
LEAST_THRESHOLD: Final = 0.2

#: Of the threshold over the largest excess that was met: other structures of the same kind go a bit farther.
MARGIN: Final = 2.0

#: Atoms whose AEVs are in memory at once: some 50 MiB.
ATOMS: Final = 32_768


@dataclass(frozen=True, eq=False)
class TrainingDomain:
    """The environments of the training data, by element.

    An atom's *excess* is how far its AEV is outside the ranges of the training part: the Euclidean norm of
    what each number is below the least or above the largest one. Its *novelty* is the excess by a threshold
    that the validation part sets. Above 1 an environment is unlike all that the model was trained and
    judged on.

    Attributes
    ----------
    low, high : for each element, (F,) float32: ranges of the numbers of the AEV in the training part
    threshold : for each element: ``MARGIN`` times the largest excess in the validation part, at least
        ``LEAST_THRESHOLD``
    """

    low: Mapping[str, npt.NDArray[np.float32]]
    high: Mapping[str, npt.NDArray[np.float32]]
    threshold: Mapping[str, float]

    @property
    def elements(self) -> tuple[str, ...]:
        """The elements of the training part."""
        return tuple(self.threshold)

    def novelty(self, element: str, aevs: Tensor) -> Tensor:
        """Of atoms of an element, (n,) for their AEVs (n, F)."""
        return self._excess(element, aevs) / self.threshold[element]

    def _excess(self, element: str, aevs: Tensor) -> Tensor:
        low = torch.from_numpy(self.low[element]).to(aevs)
        high = torch.from_numpy(self.high[element]).to(aevs)
        return torch.linalg.vector_norm((low - aevs).clamp(min=0) + (aevs - high).clamp(min=0), dim=1)

    def to_bytes(self) -> bytes:
        """The domain as a safetensors file."""
        arrays: dict[str, npt.NDArray[np.generic]] = {}
        for element in self.elements:
            arrays[f"low.{element}"] = self.low[element]
            arrays[f"high.{element}"] = self.high[element]
            arrays[f"threshold.{element}"] = np.array([self.threshold[element]])
        return safetensors.numpy.save(arrays)

    @classmethod
    def from_bytes(cls, content: bytes, aev: AEVConfig, where: str) -> TrainingDomain:
        """The domain in a file, for features of these constants.

        Raises
        ------
        ModelFileError
            if the file, which the message calls ``where``, is damaged, or belongs to other features.
        """
        try:
            arrays = safetensors.numpy.load(content)
            elements = [element for element in aev.elements if f"threshold.{element}" in arrays]
            domain = cls(
                low={element: arrays[f"low.{element}"] for element in elements},
                high={element: arrays[f"high.{element}"] for element in elements},
                threshold={element: arrays[f"threshold.{element}"].item() for element in elements},
            )
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise ModelFileError(f"{where}: not what it was written as; it is damaged ({error!r})") from error
        shape = (aev_length(aev),)
        if not elements or any(a.shape != shape for a in (*domain.low.values(), *domain.high.values())):
            raise ModelFileError(f"{where}: it belongs to other features; it is damaged")
        return domain


def training_domain(task: TaskData) -> TrainingDomain:
    """The environments of the training part; the threshold is of the validation part.

    Of either part at most ``MOST`` structures are looked at, drawn by a fixed seed. It takes seconds.
    """
    random = np.random.default_rng(0)
    low: dict[str, Tensor] = {}
    high: dict[str, Tensor] = {}
    for element, aevs in _environments(task, _some_of(task.split.train, random)):
        least, largest = aevs.amin(0), aevs.amax(0)
        low[element] = torch.minimum(low[element], least) if element in low else least
        high[element] = torch.maximum(high[element], largest) if element in high else largest
    elements = [element for element in task.aev.elements if element in low]
    ranges = TrainingDomain(
        low={element: low[element].numpy() for element in elements},
        high={element: high[element].numpy() for element in elements},
        threshold=dict.fromkeys(elements, LEAST_THRESHOLD),
    )
    threshold = dict(ranges.threshold)
    for element, aevs in _environments(task, _some_of(task.split.validation, random)):
        if element in threshold:
            largest_excess = float(ranges._excess(element, aevs).max())
            threshold[element] = max(threshold[element], MARGIN * largest_excess)
    return TrainingDomain(ranges.low, ranges.high, threshold)


def _some_of(structures: npt.NDArray[np.int64], random: np.random.Generator) -> npt.NDArray[np.int64]:
    if len(structures) > MOST:
        structures = random.choice(structures, MOST, replace=False)
    return np.sort(structures)


def _environments(task: TaskData, structures: npt.NDArray[np.int64]) -> Iterator[tuple[str, Tensor]]:
    """AEVs, (n, F), of atoms of an element in these structures; an element comes many times."""
    features = MoleculeFeatures(task.aev, torch.device("cpu"))
    owners = task.dataset.molecule_of(structures)
    for m in np.unique(owners):
        molecule = task.dataset.molecules[m]
        within = structures[owners == m] - task.dataset.offsets[m]
        for some in np.array_split(within, -(-len(within) * molecule.atoms // ATOMS)):
            counts = [molecule.composition.get(element, 0) for element in task.aev.elements]
            aevs = features.compute(molecule, some).split_with_sizes(counts, dim=1)
            for element, of_element in zip(task.aev.elements, aevs, strict=True):
                if of_element.shape[1]:
                    yield element, of_element.flatten(0, 1)
