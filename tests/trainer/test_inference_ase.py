from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ase")

from ase import Atoms
from ase.optimize import BFGS

from trainer.config import TrainConfig
from trainer.errors import DataError, ModelFileError
from trainer.evaluation.units import HARTREE_TO_EV
from trainer.inference.ase_calculator import AnituneCalculator, ModelWarning
from trainer.inference.domain import training_domain
from trainer.inference.ensemble import Ensemble
from trainer.inference.structures import make_structure, structures_of
from trainer.networks.files import SavedModel, load_model
from trainer.networks.model import ElementNetworks
from trainer.reporting import SilentReporter
from trainer.run import run_training
from trainer.task import Task

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "md.py"


@pytest.fixture(scope="module")
def ensemble(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    """Two networks that have learned a little, so that molecules hold together."""
    members = []
    for seed in range(2):
        folder = tmp_path_factory.mktemp("member")
        config = TrainConfig(
            hidden=(32, 16),
            activation="celu",
            epochs=60,
            batch_size=16,
            learning_rate=3e-3,
            weight_decay=0,
            seed=seed,
            device="cpu",
            precision="float32",
        )
        run_training(task, config, folder, SilentReporter())
        members.append(load_model(folder / "model.safetensors"))
    return Ensemble(members, training_domain(task))


@pytest.fixture
def methanol(task: Task, ensemble: Ensemble) -> Atoms:
    structure = structures_of(task.dataset.molecules[2])[0]
    return Atoms(structure.symbols, structure.coordinates, calculator=AnituneCalculator(ensemble))


def test_energies_are_those_of_the_ensemble(ensemble: Ensemble, methanol: Atoms) -> None:
    structure = make_structure(methanol.get_chemical_symbols(), methanol.positions, "methanol")
    predictions = ensemble.predict([structure])
    assert methanol.get_potential_energy() == pytest.approx(
        predictions.energies[0] * HARTREE_TO_EV, rel=0, abs=4e-5
    )
    results = methanol.calc.results
    assert results["energy_spread"] == pytest.approx(predictions.spread[0] * HARTREE_TO_EV, abs=4e-5)
    assert results["novelty"] == pytest.approx(predictions.novelty[0], abs=0.02)


def test_forces_are_the_negative_gradient_of_the_energy(methanol: Atoms) -> None:
    forces = methanol.get_forces()
    step, numerical = 1e-4, np.empty_like(forces)
    for index in np.ndindex(*forces.shape):
        energies = []
        for sign in (1, -1):
            moved = methanol.copy()
            moved.calc = methanol.calc
            moved.positions[index] += sign * step
            energies.append(moved.get_potential_energy())
        numerical[index] = -(energies[0] - energies[1]) / (2 * step)
    assert np.abs(forces).max() > 0.5
    np.testing.assert_allclose(forces, numerical, rtol=0, atol=1e-5)
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-9)


def test_a_geometry_is_optimized(methanol: Atoms, ensemble: Ensemble) -> None:
    methanol.calc = AnituneCalculator(Ensemble(ensemble.members))  # the minimum may be far from so few data
    before = methanol.get_potential_energy()
    assert BFGS(methanol, logfile=None).run(fmax=0.01, steps=300)
    assert methanol.get_potential_energy() < before - 0.01
    assert np.linalg.norm(methanol.get_forces(), axis=1).max() <= 0.01


def test_molecular_dynamics_keep_the_energy(ensemble: Ensemble, methanol: Atoms, tmp_path: Path) -> None:
    ensemble.save(tmp_path / "ensemble")
    methanol.write(tmp_path / "methanol.xyz")
    done = subprocess.run(
        [sys.executable, PROGRAM, tmp_path / "ensemble", tmp_path / "methanol.xyz", "--picoseconds", "0.1"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    _, uncertainty, _, drift, departure, _ = done.stdout.splitlines()
    assert float(uncertainty.split()[1]) > 0
    # Of the 39 meV an atom that move about: wrong forces lose as much within the first steps.
    assert abs(float(drift.split()[1])) < 5, drift  # meV/atom/ps
    assert float(departure.split()[1]) < 2, departure  # meV/atom


def test_leaving_the_training_data_is_said_once_and_changes_nothing(
    ensemble: Ensemble, methanol: Atoms
) -> None:
    methanol.get_potential_energy()  # within them: a warning would be an error
    methanol.positions[2] += 0.6 * (methanol.positions[2] - methanol.positions[0])
    with pytest.warns(ModelWarning, match="far from the training data"):
        energy = methanol.get_potential_energy()
    methanol.positions[2] += 1e-5
    assert methanol.get_potential_energy() == pytest.approx(energy, abs=1e-2)
    methanol.calc = AnituneCalculator(Ensemble(ensemble.members))
    assert methanol.get_potential_energy() == pytest.approx(energy, abs=1e-2)


def test_an_atom_alone_feels_no_force(ensemble: Ensemble) -> None:
    atom = Atoms("O", calculator=AnituneCalculator(Ensemble(ensemble.members)))
    assert np.array_equal(atom.get_forces(), np.zeros((1, 3)))
    assert np.isfinite(atom.get_potential_energy())


def test_a_kinked_activation_is_flagged(task: Task) -> None:
    def saved(activation: str) -> SavedModel:
        config = TrainConfig(hidden=(8,), activation=activation, precision="float32")
        model = ElementNetworks(config, task.aev.elements, task.features.length).eval()
        return SavedModel(model, task.aev, task.self_energies)

    with pytest.warns(ModelWarning, match="activation relu, whose derivative jumps"):
        AnituneCalculator(Ensemble([saved("celu"), saved("relu")]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = AnituneCalculator(Ensemble([saved("celu")]))
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 1]], calculator=single)
    atoms.get_potential_energy()
    assert np.isnan([single.results["energy_spread"], single.results["novelty"]]).all()


def test_what_the_model_cannot_do_is_refused(ensemble: Ensemble, tmp_path: Path) -> None:
    calculator = AnituneCalculator(ensemble)
    with pytest.raises(DataError, match="it contains S"):
        Atoms("SH", [[0, 0, 0], [0, 0, 1]], calculator=calculator).get_forces()
    with pytest.raises(DataError, match="periodic"):
        Atoms("C", cell=[3, 3, 3], pbc=True, calculator=calculator).get_forces()
    with pytest.raises(ModelFileError, match="cannot be read"):
        AnituneCalculator(tmp_path / "nowhere")
