"""What a promotion registers: the files of the model, its lineage, its metrics and its description."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from search.promote.model_signature import INPUTS, OUTPUTS
from search.promote.plan import Candidate
from storage.promotions import Promotion
from storage.studies import Study
from storage.tracking.registry import ModelFiles
from trainer.data.elements import SYMBOLS
from trainer.networks.smoothness import kink_warning
from trainer.task import TaskData

#: Packages that the model needs where it is loaded. Its other packages are dependencies of these.
PACKAGES: Final = ("anitune", "torch", "torchani", "numpy", "pandas")

SCRIPT: Final = Path(__file__).with_name("pyfunc_model.py")


def model_files(ensemble: Path, task: TaskData) -> ModelFiles:
    """List the files of the model of an ensemble in a folder; its example is a training structure."""
    molecule = task.dataset.molecules[int(task.dataset.molecule_of(task.split.train[:1])[0])]
    example = {
        "symbols": [SYMBOLS[n - 1] for n in molecule.atomic_numbers],
        "coordinates": molecule.coordinates[0].astype(float).round(6).tolist(),
    }
    return ModelFiles(
        script=SCRIPT,
        artifacts={"ensemble": ensemble},
        inputs=INPUTS,
        outputs=OUTPUTS,
        example=[example],
        # Any build of this version of torch will do (2.13.0+cu128).
        requirements=[f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES],
    )


def lineage(study: Study, promotion: Promotion, task: TaskData) -> dict[str, str]:
    """Return the tags of a model version that say where the model comes from."""
    versions = promotion.worker.versions
    return {
        "study": study.name,
        "trial": str(promotion.choice),
        "candidates": ", ".join(str(number) for number in promotion.plan["candidates"]),
        "promotion": str(promotion.id),
        "reason": promotion.reason or "",
        **{f"fingerprint.{name}": value for name, value in task.fingerprints.items()},
        **{f"version.{name}": value for name, value in versions.items() if name != "commit"},
        "commit": versions.get("commit", "unknown: not run from a clone"),
    }


def metrics(test: Mapping[str, Any]) -> dict[str, float]:
    """Return the errors on the test set as metrics of the model's run."""
    return {f"test/{name}": float(value) for name, value in test.items() if isinstance(value, int | float)}


def description(
    study: Study,
    promotion: Promotion,
    chosen: Candidate,
    evaluations: int,
    isolated_atoms: Mapping[str, float],
) -> str:
    """Write the description of a model version in the registry, in Markdown."""
    test = promotion.test or {}
    kinks = kink_warning([chosen.config.activation])
    network = " ".join(
        chosen.architecture.replace("`", "").split()
    )  # it must stay one piece of Markdown code
    looks = "used for this model only" if evaluations == 1 else f"used {evaluations} times so far"
    return (
        f"Ensemble of {promotion.plan['ensemble']} networks `{network}`, the settings of trial"
        f" {chosen.trial} of study `{study.name}`: {promotion.reason}.\n\n"
        f"Test MAE {test['mae_kcalmol']:.3f} kcal/mol ({test['structures']:,} structures; the test set was"
        f" {looks}), of a member on average {test['mean_member_mae_kcalmol']:.3f}.\n\n"
        + _isolated_atoms(isolated_atoms)
        + (f"**Molecular dynamics:** this model has {kinks}.\n\n" if kinks else "")
        + "Give a table with the columns symbols and coordinates (Å), or file; it gives energy_hartree and"
        " spread_hartree, the standard deviation of the members."
    )


def _isolated_atoms(energies: Mapping[str, float]) -> str:
    """Describe self-energies that are those of isolated atoms; empty if they are others."""
    if not energies:
        return ""
    listed = ", ".join(f"{element} {energy:.6f}" for element, energy in energies.items())
    return f"Self-energies are those of isolated atoms in the data: {listed} hartree.\n\n"
