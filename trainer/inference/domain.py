"""The training domain of a model: a summary of the training data that identifies structures far from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from trainer.config import AEVConfig
from trainer.errors import ModelFileError
from trainer.features.aev import MoleculeFeatures, aev_length
from trainer.task import TaskData

#: Number of structures of each subset that are sampled, and of atoms of an element among theirs.
STRUCTURES: Final = 5_000
ATOMS: Final = 10_000

#: Number of environments of an element that are stored: 0.75 MB with the constants of ANI-1x.
REFERENCES: Final = 500

#: Factor from the largest distance in the training and validation sets to the threshold: other structures of
#: the same kind are a bit farther away.
MARGIN: Final = 1.1

#: Number of atoms whose distances are computed at once. It is fixed, because the last bits of a product of
#: matrices depend on its number of rows, and those of an atom must not depend on the other atoms.
ROWS: Final = 32


@dataclass(frozen=True, eq=False)
class TrainingDomain:
    """Typical environments of the training data, by element.

    They are chosen so that every other environment is near one of them. The *novelty* of an environment is
    its distance to the nearest of them, divided by a threshold from the training and validation sets. Above 1
    the environment is unlike all those that the model was trained and validated on.

    Attributes
    ----------
    references : for each element, (k, F) float32: AEVs of atoms of the training set
    threshold : for each element, a Euclidean distance of AEVs: ``MARGIN`` times the largest distance to the
        nearest reference in the training and validation sets
    """

    references: Mapping[str, Tensor]
    threshold: Mapping[str, float]

    @property
    def elements(self) -> tuple[str, ...]:
        """The elements of the training set."""
        return tuple(self.threshold)

    def novelty(self, element: str, aevs: Tensor) -> Tensor:
        """Return the novelty of atoms of an element, (n,) for their AEVs (n, F)."""
        return _distances(self.references[element], aevs) / self.threshold[element]

    def to_bytes(self) -> bytes:
        """Return the domain as the bytes of a safetensors file."""
        tensors = {f"references.{element}": some for element, some in self.references.items()}
        tensors |= {
            f"threshold.{element}": torch.tensor(some, dtype=torch.float64)
            for element, some in self.threshold.items()
        }
        return safetensors.torch.save(tensors)

    @classmethod
    def from_bytes(cls, content: bytes, aev: AEVConfig, where: str) -> TrainingDomain:
        """Read the domain from the bytes of a file, for features with these constants.

        Raises
        ------
        ModelFileError
            if the file, named ``where`` in the message, is damaged, or belongs to other features.
        """
        try:
            tensors = safetensors.torch.load(content)
            elements = [element for element in aev.elements if f"threshold.{element}" in tensors]
            domain = cls(
                references={element: tensors[f"references.{element}"] for element in elements},
                threshold={element: tensors[f"threshold.{element}"].item() for element in elements},
            )
        except (safetensors.SafetensorError, KeyError, RuntimeError, ValueError) as error:
            raise ModelFileError(f"{where}: not a domain file of anitune, or damaged ({error!r})") from error
        length = aev_length(aev)
        if not elements or any(some.shape[1:] != (length,) for some in domain.references.values()):
            raise ModelFileError(f"{where}: it belongs to other features; the file is damaged")
        return domain


def training_domain(task: TaskData) -> TrainingDomain:
    """Select the environments of the training set, with thresholds that include the validation set.

    At most ``STRUCTURES`` of each subset are used, drawn with a fixed seed. It takes seconds.
    """
    random = np.random.default_rng(0)
    trained = _environments(task, task.split.train, random)
    validation = _environments(task, task.split.validation, random)
    references, threshold = {}, {}
    for element, aevs in trained.items():
        references[element], covered = _cover(aevs)
        distances = [covered]
        if element in validation:
            distances.append(float(_distances(references[element], validation[element]).max()))
        threshold[element] = MARGIN * max(distances)
    return TrainingDomain(references, threshold)


def _environments(
    task: TaskData, structures: npt.NDArray[np.int64], random: np.random.Generator
) -> dict[str, Tensor]:
    """Return AEVs, (n, F), of atoms of each element in some of these structures."""
    if len(structures) > STRUCTURES:
        structures = np.sort(random.choice(structures, STRUCTURES, replace=False))
    features = MoleculeFeatures(task.aev, torch.device("cpu"))
    found: dict[str, list[Tensor]] = {}
    owners = task.dataset.molecule_of(structures)
    for m in np.unique(owners):
        molecule = task.dataset.molecules[m]
        counts = [molecule.composition.get(element, 0) for element in task.aev.elements]
        aevs = features.compute(molecule, structures[owners == m] - task.dataset.offsets[m])
        for element, some in zip(task.aev.elements, aevs.split_with_sizes(counts, dim=1), strict=True):
            if some.shape[1]:
                found.setdefault(element, []).append(some.flatten(0, 1))
    every = {element: torch.cat(found[element]) for element in task.aev.elements if element in found}
    return {
        element: aevs[random.choice(len(aevs), ATOMS, replace=False)] if len(aevs) > ATOMS else aevs
        for element, aevs in every.items()
    }


def _cover(aevs: Tensor) -> tuple[Tensor, float]:
    """Choose up to ``REFERENCES`` environments, each the farthest from those before.

    Return them with the largest distance of any other environment. Gonzalez, Theor. Comput. Sci. 38, 293
    (1985): no choice of as many has less than half of this distance.
    """
    squares = (aevs * aevs).sum(1)

    def squared_distances(to: int) -> Tensor:
        return squares + squares[to] - 2 * (aevs @ aevs[to])

    chosen = [0]
    nearest = squared_distances(0)
    while len(chosen) < min(REFERENCES, len(aevs)):
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, squared_distances(chosen[-1]))
    return aevs[chosen].contiguous(), float(nearest.max().clamp(min=0).sqrt())


def _distances(references: Tensor, aevs: Tensor) -> Tensor:
    """Return the distance from each environment to the nearest reference, (n,) for (n, F)."""
    filled_up = functional.pad(aevs, (0, 0, 0, -len(aevs) % ROWS))
    found = [torch.cdist(some, references).amin(1) for some in torch.split(filled_up, ROWS)]
    return torch.cat(found)[: len(aevs)]
