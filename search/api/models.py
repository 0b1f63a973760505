"""Models in notebooks and programs: ``anitune predict`` as functions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from ase import Atoms

from search.cli.models import open_model as open_ensemble
from search.cli.predict import Place, PredictedEnergies, Unit, predict_energies
from trainer.errors import ConfigError, DataError
from trainer.inference.ase_calculator import AnituneCalculator
from trainer.inference.ensemble import Ensemble
from trainer.inference.files import read_structures
from trainer.inference.structures import Structure, make_structure
from trainer.networks.widths import widths_text

Structures: TypeAlias = "Atoms | Structure | str | Path | Iterable[Atoms | Structure | str | Path]"
"""``ase.Atoms``, structures, paths of files, or several of these."""


def predict(
    model: Model | str | Path,
    structures: Structures,
    *,
    unit: str = "hartree",
    any_composition: bool = False,
) -> PredictedEnergies:
    """Predict the total energies of structures, with an uncertainty if the model is an ensemble.

    Parameters
    ----------
    model
        A model file, the folder of a training or an ensemble, ``models:/NAME@champion``, or a model.
    structures
        ``ase.Atoms``, the path of a file of structures, or several of them.
    unit
        Unit of the energies: hartree, kcal/mol or eV.
    any_composition
        Also predict compositions that the training data do not determine.

    Examples
    --------
    >>> anitune.predict("models:/my-study@champion", "water.xyz", unit="kcal/mol").frame()

    Raises
    ------
    ModelFileError, ModelNotFoundError, DataError
        if the model does not exist, or a structure cannot be read.
    """
    opened = model if isinstance(model, Model) else open_model(model)
    return opened.predict(structures, unit=unit, any_composition=any_composition)


def open_model(model: str | Path) -> Model:
    """Open the model at a path, or at an address in MLflow's registry."""
    return Model(open_ensemble(str(model)))


class Model:
    """A network or an ensemble of networks that predicts energies of structures.

    Attributes
    ----------
    ensemble
        The networks.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble

    def __repr__(self) -> str:
        count = len(self.ensemble.members)
        config = self.ensemble.members[0].model.config
        widths = widths_text(config.hidden)
        what = f"ensemble of {count} networks" if count > 1 else "network"
        return (
            f"{what} with hidden layers {widths} {config.activation} for {', '.join(self.ensemble.elements)}"
        )

    def predict(
        self, structures: Structures, *, unit: str = "hartree", any_composition: bool = False
    ) -> PredictedEnergies:
        """Predict the total energies of structures. The parameters are those of :func:`predict`."""
        try:
            chosen = Unit(unit)
        except ValueError:
            units = ", ".join(Unit)
            raise ConfigError(f"unit: {unit!r} is not one of {units}") from None
        given: Any = [structures] if _is_one(structures) else structures
        read: list[Structure] = []
        places: list[Place] = []
        for number, each in enumerate(given):
            if isinstance(each, str | Path):
                some = read_structures(Path(each))
                places += [Place(str(each), index) for index in range(len(some))]
            else:
                some = [_structure_of(each, number)]
                places.append(Place("atoms", number))
            read += some
        return predict_energies(self.ensemble, read, places, chosen, any_composition)

    def calculator(self) -> AnituneCalculator:
        """Make an ASE calculator of energies and forces, for optimizations and dynamics."""
        return AnituneCalculator(self.ensemble)


def _is_one(structures: Any) -> bool:
    return isinstance(structures, Atoms | Structure | str | Path)


def _structure_of(atoms: Any, number: int) -> Structure:
    if isinstance(atoms, Structure):
        return atoms
    where = f"structure {number} (from 0)"
    if atoms.pbc.any():
        raise DataError(f"{where}: it is periodic, but the models are for molecules: set pbc to False")
    return make_structure(atoms.get_chemical_symbols(), atoms.get_positions(), where)
