"""Where a model was trained: what is kept of the training data to tell structures that are far from it."""

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

#: Structures of each part that are looked at, and atoms of an element among theirs.
STRUCTURES: Final = 5_000
ATOMS: Final = 10_000

#: Environments of an element that are kept: 0.75 MB with the constants of ANI-1x.
REFERENCES: Final = 500

#: Of the threshold over the largest distance of the validation part: other structures of the same kind go
#: a bit farther.
MARGIN: Final = 1.1

#: Atoms whose distances are computed at once, always as many: the last bits of a product of matrices depend
#: on how many rows it has, and those of an atom shall not depend on the others.
ROWS: Final = 32


@dataclass(frozen=True, eq=False)
class TrainingDomain:
    """Typical environments of the training data, by element.

    They are picked so that each other one is near to one of them. The *novelty* of an environment is its
    distance to the nearest of them, by a threshold that the validation part sets. Above 1 it is unlike all
    that the model was trained and judged on.

    Attributes
    ----------
    references : for each element, (k, F) float32: AEVs of atoms of the training part
    threshold : for each element, a Euclidean distance of AEVs: ``MARGIN`` times the largest to the nearest
        reference that was met in the training and validation parts
    """

    references: Mapping[str, Tensor]
    threshold: Mapping[str, float]

    @property
    def elements(self) -> tuple[str, ...]:
        """The elements of the training part."""
        return tuple(self.threshold)

    def novelty(self, element: str, aevs: Tensor) -> Tensor:
        """Of atoms of an element, (n,) for their AEVs (n, F)."""
        return _distances(self.references[element], aevs) / self.threshold[element]

    def to_bytes(self) -> bytes:
        """The domain as a safetensors file."""
        tensors = {f"references.{element}": some for element, some in self.references.items()}
        tensors |= {
            f"threshold.{element}": torch.tensor(some, dtype=torch.float64)
            for element, some in self.threshold.items()
        }
        return safetensors.torch.save(tensors)

    @classmethod
    def from_bytes(cls, content: bytes, aev: AEVConfig, where: str) -> TrainingDomain:
        """The domain in a file, for features of these constants.

        Raises
        ------
        ModelFileError
            if the file, which the message calls ``where``, is damaged, or belongs to other features.
        """
        try:
            tensors = safetensors.torch.load(content)
            elements = [element for element in aev.elements if f"threshold.{element}" in tensors]
            domain = cls(
                references={element: tensors[f"references.{element}"] for element in elements},
                threshold={element: tensors[f"threshold.{element}"].item() for element in elements},
            )
        except (safetensors.SafetensorError, KeyError, RuntimeError, ValueError) as error:
            raise ModelFileError(f"{where}: not a domain of anitune, or damaged ({error!r})") from error
        length = aev_length(aev)
        if not elements or any(some.shape[1:] != (length,) for some in domain.references.values()):
            raise ModelFileError(f"{where}: it belongs to other features; the file is damaged")
        return domain


def training_domain(task: TaskData) -> TrainingDomain:
    """The environments of the training part; the thresholds are of the validation part.

    At most ``STRUCTURES`` of either part are looked at, drawn by a fixed seed. It takes seconds.
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
    """AEVs, (n, F), of atoms of each element in some of these structures."""
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
    """Up to ``REFERENCES`` of some environments, each the farthest from those before; how far any other is.

    Gonzalez, Theor. Comput. Sci. 38, 293 (1985): no choice of as many comes nearer than half of it.
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
    """From each environment to the nearest reference, (n,) for (n, F)."""
    filled_up = functional.pad(aevs, (0, 0, 0, -len(aevs) % ROWS))
    found = [torch.cdist(some, references).amin(1) for some in torch.split(filled_up, ROWS)]
    return torch.cat(found)[: len(aevs)]
