"""Predictions of a network for some structures, with the true values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from trainer.evaluation.units import HARTREE_TO_KCALMOL
from trainer.features.micro_batches import Load, SubsetFeatures
from trainer.fitting.device_predictions import BATCH, DevicePredictions
from trainer.fitting.threads import Threads
from trainer.fitting.weights import FlatWeights
from trainer.networks.model import ElementNetworks
from trainer.task import Task


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predicted and true energies of n structures, less the self-energies of their atoms.

    Attributes
    ----------
    predicted, target : (n,) float64, kcal/mol
    heavy_atoms : (n,) number of heavy atoms
    element_sets : (n,) elements in alphabetical order, like CHO
    """

    predicted: npt.NDArray[np.float64]
    target: npt.NDArray[np.float64]
    heavy_atoms: npt.NDArray[np.int64]
    element_sets: npt.NDArray[np.str_]

    @property
    def errors(self) -> npt.NDArray[np.float64]:
        """Predicted less true energy, (n,), kcal/mol."""
        return self.predicted - self.target


def predict(
    model: ElementNetworks, subset: SubsetFeatures, structures: int, threads: Threads
) -> torch.Tensor:
    """Predict the energies of a subset on the CPU, less self-energies, (structures,) hartree."""
    predicted = torch.empty(structures, dtype=next(model.parameters()).dtype)

    @torch.no_grad()
    def work(thread: int, micro_batches: Sequence[Load]) -> None:
        for load in micro_batches:
            batch = load()
            predicted[batch.positions] = model(batch)

    for micro_batches in subset.steps(torch.arange(structures), BATCH):
        threads.map(work, micro_batches)
    return predicted


def evaluate(model: ElementNetworks, task: Task, structures: npt.NDArray[np.int64]) -> Evaluation:
    """Evaluate ``model`` on the structures with the global indices ``structures`` (n,)."""
    parameter = next(model.parameters())
    if parameter.is_cuda:
        features = task.features.device_subset(structures, parameter.device, parameter.dtype)
        predicted = (
            DevicePredictions([model], [FlatWeights(model).vector.detach()], features).run().squeeze(1)
        )
    else:
        subset = task.features.subset(structures, parameter.dtype, BATCH)
        predicted = predict(model, subset, len(structures), Threads(model.config.threads))
    owners = task.dataset.molecule_of(structures)
    element_sets = np.array([m.element_set for m in task.dataset.molecules])
    return Evaluation(
        predicted=predicted.double().cpu().numpy() * HARTREE_TO_KCALMOL,
        target=task.energies[structures] * HARTREE_TO_KCALMOL,
        heavy_atoms=task.dataset.heavy_atoms()[owners],
        element_sets=element_sets[owners],
    )
