"""The ensemble of a promotion: made of its members, and measured on the test part as it is exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.data.elements import SYMBOLS
from trainer.evaluation.metrics import max_error, mean_absolute_error, root_mean_square_error
from trainer.evaluation.units import HARTREE_TO_KCALMOL
from trainer.inference.ensemble import Ensemble
from trainer.inference.structures import Structure
from trainer.networks.files import load_model
from trainer.task import TaskData


@dataclass(frozen=True)
class ErrorsOnTestPart:
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


def build_ensemble(members: Sequence[Path], folder: Path) -> None:
    """Write the ensemble of these model files into a folder."""
    Ensemble([load_model(file) for file in members]).save(folder)


def structures_of_test_part(task: TaskData) -> list[Structure]:
    """The structures of the test part, in their order."""
    owners = task.dataset.molecule_of(task.split.test)
    return [
        Structure(
            tuple(SYMBOLS[n - 1] for n in task.dataset.molecules[m].atomic_numbers),
            task.dataset.molecules[m].coordinates[s - task.dataset.offsets[m]].astype(np.float64),
        )
        for s, m in zip(task.split.test, owners, strict=True)
    ]


def measure_on_test_part(folder: Path, task: TaskData) -> ErrorsOnTestPart:
    """Measure the ensemble in a folder. Only for who has recorded that the test part is opened."""
    predictions = Ensemble.open(folder).predict(structures_of_test_part(task))
    true = task.dataset.energies()[task.split.test]
    errors = (predictions.energies - true) * HARTREE_TO_KCALMOL
    of_members = [mean_absolute_error(member) for member in (predictions.members - true) * HARTREE_TO_KCALMOL]
    return ErrorsOnTestPart(
        mae_kcalmol=mean_absolute_error(errors),
        rmse_kcalmol=root_mean_square_error(errors),
        max_error_kcalmol=max_error(errors),
        mean_member_mae_kcalmol=float(np.mean(of_members)),
        member_mae_kcalmol=tuple(of_members),
        spread_kcalmol=float(predictions.spread.mean() * HARTREE_TO_KCALMOL) if len(of_members) > 1 else None,
        structures=len(true),
    )
