"""The ensemble of a promotion: made of its members, and measured on the test part as it is exported."""

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
    """Errors of an ensemble on a test part, kcal/mol.

    Attributes
    ----------
    mae_kcalmol, rmse_kcalmol, max_error_kcalmol : of the mean of the members, which is what is exported
    mean_member_mae_kcalmol : mean of the members' own errors
    member_mae_kcalmol : of each member
    spread_kcalmol : mean standard deviation of the members; None: there is one only
    structures : of the test part
    """

    mae_kcalmol: float
    rmse_kcalmol: float
    max_error_kcalmol: float
    mean_member_mae_kcalmol: float
    member_mae_kcalmol: tuple[float, ...]
    spread_kcalmol: float | None
    structures: int


def build_ensemble(members: Sequence[Path], task: TaskData, folder: Path) -> None:
    """Write the ensemble of these model files, which were trained on the task, into a folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    Ensemble([load_model(file) for file in members], training_domain(task)).save(folder)


def structures_of_test_set(task: TaskData) -> list[Structure]:
    """The structures of the test part, in their order."""
    dataset, test = task.dataset, task.split.test
    places = dataset.molecule_of(test)
    return [
        structure_of(dataset.molecules[place], number)
        for place, number in zip(places.tolist(), (test - dataset.offsets[places]).tolist(), strict=True)
    ]


def ensemble_digest(folder: Path) -> str | None:
    """Digest of an ensemble's files; None: there is none in this folder."""
    if not folder.is_dir():
        return None
    files = sorted(folder.iterdir())
    return digest_of({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files})


def measure_on_test_set(
    ensemble: Ensemble, structures: Sequence[Structure], task: TaskData
) -> ErrorsOnTestSet:
    """Measure an ensemble. Only for who has recorded that the test part is opened.

    Parameters
    ----------
    structures : of the test part
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
