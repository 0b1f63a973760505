"""A model as an ASE calculator: energies and forces for geometry optimizations and molecular dynamics."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from trainer.data.elements import SYMBOLS
from trainer.errors import DataError
from trainer.evaluation.units import HARTREE_TO_EV
from trainer.inference.ensemble import Ensemble
from trainer.inference.structures import make_structure
from trainer.inference.torchani_model import as_torchani
from trainer.networks.smoothness import kink_warning


class ModelWarning(UserWarning):
    """Predictions of a model may be wrong here."""


class AnituneCalculator(Calculator):  # type: ignore[misc]
    """Energies and forces of molecules, by autograd through torchani's AEVs, in float64.

    Besides ``energy`` (eV) and ``forces`` (eV/Å) the results have ``energy_spread`` (eV), the sample standard
    deviation of the members, and ``novelty``, which is above 1 if the structure is far from the training data
    (:class:`trainer.inference.domain.TrainingDomain`); each is NaN if the model cannot provide it. Being far
    from the training data changes neither energy nor forces, but causes a :class:`ModelWarning`, once.

    Parameters
    ----------
    model : an ensemble, or the path of a model file or folder

    Raises
    ------
    ModelFileError
        if there is no model at the path.
    DataError
        from a calculation, if the model does not know an element, or the structure is periodic.
    """

    implemented_properties = [  # noqa: RUF012 (as ASE declares it)
        "energy",
        "free_energy",
        "forces",
        "energy_spread",
        "novelty",
    ]

    def __init__(self, model: Ensemble | Path | str, *, any_composition: bool = False) -> None:
        super().__init__()
        self._any_composition = any_composition
        self.ensemble = model if isinstance(model, Ensemble) else Ensemble.open(model)
        self._torchani = as_torchani(self.ensemble)
        self._has_left = False
        kinks = kink_warning({member.model.config.activation for member in self.ensemble.members})
        if kinks is not None:
            warnings.warn(f"this model has {kinks}", ModelWarning, stacklevel=2)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute all results."""
        super().calculate(atoms, properties, system_changes)
        given: Any = self.atoms
        if given.pbc.any():
            raise DataError("the structure is periodic, but the models are for molecules: set pbc to False")
        structure = make_structure(given.get_chemical_symbols(), given.get_positions(), "the structure")
        self.ensemble.refuse_unknown([structure], self._any_composition)
        numbers = torch.from_numpy(given.get_atomic_numbers().astype(np.int64))[None]
        coordinates = torch.from_numpy(structure.coordinates)[None].requires_grad_()
        kinds = self._torchani.species_converter(numbers)
        aevs = self._torchani.aev_computer(kinds, coordinates)
        learned = self._torchani.neural_networks(kinds, aevs, ensemble_values=True)[:, 0]
        # The energy of a single atom is independent of coordinates; the added term makes its gradient zero.
        (gradient,) = torch.autograd.grad(
            learned.mean() + 0 * coordinates.sum(), coordinates, materialize_grads=True
        )
        members = [
            energy + sum(each.self_energies[symbol] for symbol in structure.symbols)
            for energy, each in zip(learned.tolist(), self.ensemble.members, strict=True)
        ]
        energy = float(np.mean(members)) * HARTREE_TO_EV
        self.results: dict[str, Any] = {
            "energy": energy,
            "free_energy": energy,
            "forces": -gradient[0].numpy() * HARTREE_TO_EV,
            "energy_spread": float(np.std(members, ddof=1)) * HARTREE_TO_EV if len(members) > 1 else np.nan,
            "novelty": self._novelty(numbers[0].tolist(), aevs[0].detach().float()),
        }
        if self.results["novelty"] > 1 and not self._has_left:
            self._has_left = True
            warnings.warn(
                f"an environment is far from the training data (novelty {self.results['novelty']:.2f}, far is"
                " above 1): from here on energies and forces may be wrong; this warning is shown once",
                ModelWarning,
                stacklevel=2,
            )

    def _novelty(self, numbers: list[int], aevs: torch.Tensor) -> float:
        domain = self.ensemble.domain
        if domain is None:
            return float("nan")
        symbols = np.array([SYMBOLS[number - 1] for number in numbers])
        return max(
            float(domain.novelty(element, aevs[torch.from_numpy(symbols == element)]).max())
            for element in np.unique(symbols).tolist()
        )
