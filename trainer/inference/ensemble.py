"""Networks that differ by their seeds: their mean is the prediction, their spread an uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Dataset
from trainer.data.self_energies import composition_counts
from trainer.errors import DataError, ModelFileError
from trainer.evaluation.evaluate import BATCH, predict
from trainer.features.source import ComputedFeatures
from trainer.fitting.threads import Threads
from trainer.inference.structures import Structure, as_dataset
from trainer.networks.files import CPU, SavedModel, load_model, save_model

MEMBER: Final = "member-{:02d}.safetensors"


@dataclass(frozen=True, eq=False)
class Predictions:
    """Energies of S structures by M members, self-energies included.

    Attributes
    ----------
    energies : (S,) float64, hartree: mean of the members
    spread : (S,) float64, hartree: standard deviation of the members; 0 of a single one
    members : (M, S) float64, hartree
    """

    energies: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]
    members: npt.NDArray[np.float64]


class Ensemble:
    """Members with the same features.

    Parameters
    ----------
    members : one or more
    """

    def __init__(self, members: Sequence[SavedModel]) -> None:
        self.members = tuple(members)
        first = self.members[0]
        if any(each.aev != first.aev for each in self.members):
            raise ModelFileError("the members of an ensemble have different features")

    @classmethod
    def open(cls, folder: Path | str) -> Ensemble:
        """The ensemble in a folder.

        Raises
        ------
        ModelFileError
            if there is none, or a file is damaged.
        """
        files = sorted(Path(folder).glob(MEMBER.format(0).replace("00", "*")))
        if not files:
            raise ModelFileError(f"{folder}: no ensemble of anitune")
        return cls([load_model(file) for file in files])

    def save(self, folder: Path) -> None:
        """Write the ensemble into a folder, a file a member."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, each in enumerate(self.members):
            save_model(folder / MEMBER.format(number), each.model, each.aev, each.self_energies)

    def predict(self, structures: Sequence[Structure]) -> Predictions:
        """Energies of structures.

        Raises
        ------
        DataError
            if there are networks or self-energies for an element in none of the training data.
        """
        if not structures:
            empty = np.empty(0)
            return Predictions(empty, empty, np.empty((len(self.members), 0)))
        dataset, places = as_dataset(structures)
        features = ComputedFeatures(dataset, self.members[0].aev)
        everything = np.arange(dataset.structures)
        by_member = []
        for each in self.members:
            dtype = next(each.model.parameters()).dtype
            part = features.part(everything, CPU, dtype, BATCH)
            learned = predict(each.model, part, len(everything), Threads(1)).double().numpy()
            by_member.append((learned + _atoms(dataset, each.self_energies))[places])
        members = np.array(by_member)
        spread = members.std(axis=0, ddof=1) if len(members) > 1 else np.zeros(len(structures))
        return Predictions(members.mean(axis=0), spread, members)


def _atoms(dataset: Dataset, self_energies: dict[str, float]) -> npt.NDArray[np.float64]:
    """Sum of the self-energies of the atoms of each structure, (S,), hartree."""
    if missing := [element for element in dataset.elements if element not in self_energies]:
        raise DataError(f"the model knows no {', '.join(missing)}: none was in its training data")
    counts = composition_counts(dataset, dataset.elements)
    of_molecules = counts @ np.array([self_energies[element] for element in dataset.elements])
    return np.repeat(of_molecules, np.diff(dataset.offsets))
