"""The ensemble of a promotion: built from its members, and evaluated on the test set as it is exported."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.evaluation.metrics import max_error, mean_absolute_error, root_mean_square_error
from trainer.evaluation.units import HARTREE_TO_KCALMOL
from trainer.fingerprints import digest_of
from trainer.inference.domain import training_domain
from trainer.inference.ensemble import Ensemble
from trainer.inference.structures import Structure, structure_of
from trainer.networks.files import load_model
from trainer.task import TaskData


@dataclass(frozen=True)
class ErrorsOnTestSet:
    """Errors of an ensemble on a test set, kcal/mol.

    Attributes
    ----------
    mae_kcalmol, rmse_kcalmol, max_error_kcalmol : errors of the members' mean, which is what is exported
    mean_member_mae_kcalmol : mean of the MAEs of the members
    member_mae_kcalmol : MAE of each member
    spread_kcalmol : mean standard deviation of the members; None: there is only one member
    structures : number of structures in the test set
    """

    mae_kcalmol: float
    rmse_kcalmol: float
    max_error_kcalmol: float
    mean_member_mae_kcalmol: float
    member_mae_kcalmol: tuple[float, ...]
    spread_kcalmol: float | None
    structures: int


def build_ensemble(members: Sequence[Path], task: TaskData, folder: Path) -> None:
    """Write the ensemble of model files that were trained on the task into a folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    Ensemble([load_model(file) for file in members], training_domain(task)).save(folder)


def structures_of_test_set(task: TaskData) -> list[Structure]:
    """Return the structures of the test set, in its order."""
    dataset, test = task.dataset, task.split.test
    places = dataset.molecule_of(test)
    return [
        structure_of(dataset.molecules[place], number)
        for place, number in zip(places.tolist(), (test - dataset.offsets[places]).tolist(), strict=True)
    ]


def ensemble_digest(folder: Path) -> str | None:
    """Digest the files of an ensemble; None if the folder does not exist."""
    if not folder.is_dir():
        return None
    files = sorted(folder.iterdir())
    return digest_of({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files})


def measure_on_test_set(
    ensemble: Ensemble, structures: Sequence[Structure], task: TaskData
) -> ErrorsOnTestSet:
    """Evaluate an ensemble on the test set. The caller must have recorded this evaluation before.

    Parameters
    ----------
    structures : structures of the test set
    """
    predictions = ensemble.predict(structures, any_composition=True)
    true = task.dataset.energies()[task.split.test]
    errors = (predictions.energies - true) * HARTREE_TO_KCALMOL
    of_members = [mean_absolute_error(member) for member in (predictions.members - true) * HARTREE_TO_KCALMOL]
    return ErrorsOnTestSet(
        mae_kcalmol=mean_absolute_error(errors),
        rmse_kcalmol=root_mean_square_error(errors),
        max_error_kcalmol=max_error(errors),
        mean_member_mae_kcalmol=float(np.mean(of_members)),
        member_mae_kcalmol=tuple(of_members),
        spread_kcalmol=float(predictions.spread.mean() * HARTREE_TO_KCALMOL) if len(of_members) > 1 else None,
        structures=len(true),
    )
