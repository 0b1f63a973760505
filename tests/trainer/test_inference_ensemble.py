from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from trainer.config import TrainConfig
from trainer.data.elements import SYMBOLS
from trainer.errors import DataError, ModelFileError, OutputError
from trainer.evaluation.evaluate import predict
from trainer.fitting.threads import Threads
from trainer.inference.domain import training_domain
from trainer.inference.ensemble import DOMAIN, LARGE, RECORD, Ensemble
from trainer.inference.structures import Structure, make_structure
from trainer.networks.files import SavedModel, save_model
from trainer.networks.model import ElementNetworks
from trainer.task import Task


def member(task: Task, seed: int = 0, precision: str = "float32") -> SavedModel:
    config = TrainConfig(hidden=(16, 8), activation="silu", precision=precision, seed=seed)
    model = ElementNetworks(config, task.aev.elements, task.features.length).eval()
    return SavedModel(model, task.aev, task.self_energies)


def structures_of(task: Task, chosen: np.ndarray) -> list[Structure]:
    owners = task.dataset.molecule_of(chosen)
    return [
        Structure(
            tuple(SYMBOLS[n - 1] for n in task.dataset.molecules[m].atomic_numbers),
            task.dataset.molecules[m].coordinates[s - task.dataset.offsets[m]].astype(np.float64),
        )
        for s, m in zip(chosen, owners, strict=True)
    ]


@pytest.fixture
def ensemble(task: Task) -> Ensemble:
    return Ensemble([member(task, seed) for seed in range(3)], training_domain(task))


def test_energies_are_those_of_the_training_code_and_the_self_energies(task: Task) -> None:
    chosen = np.array([119, 0, 60, 1, 90])  # of all molecules, mixed
    saved = member(task)
    learned = predict(saved.model, task.features.subset(chosen, *_dtype(saved), 8), 5, Threads(1))
    shifts = task.dataset.energies()[chosen] - task.energies[chosen]
    predictions = Ensemble([saved]).predict(structures_of(task, chosen))
    np.testing.assert_allclose(predictions.energies, learned.double().numpy() + shifts, rtol=0, atol=2e-7)
    assert np.isnan(predictions.spread).all()
    assert np.isnan(predictions.novelty).all()
    assert not predictions.far.any()


def _dtype(saved: SavedModel) -> tuple:
    return (next(saved.model.parameters()).dtype,)


def test_the_mean_of_the_members_is_the_energy_and_their_deviation_the_spread(
    task: Task, ensemble: Ensemble
) -> None:
    structures = structures_of(task, np.arange(0, 120, 7))
    predictions = ensemble.predict(structures)
    for number, each in enumerate(ensemble.members):
        np.testing.assert_array_equal(
            predictions.members[number], Ensemble([each]).predict(structures).energies
        )
    np.testing.assert_allclose(predictions.energies, predictions.members.mean(0))
    np.testing.assert_allclose(predictions.spread, np.std(predictions.members, axis=0, ddof=1))
    assert (predictions.spread > 1e-4).all()


def test_neither_order_of_atoms_nor_place_nor_company_matters(task: Task, ensemble: Ensemble) -> None:
    (structure,) = structures_of(task, np.array([100]))
    structure.coordinates[4] += [0.2, 0.3, 0.4]  # far from the training data, or no atom is the strangest
    backwards = Structure(structure.symbols[::-1], structure.coordinates[::-1] + 5000.0)
    alone = ensemble.predict([structure])
    both = ensemble.predict([backwards, *structures_of(task, np.arange(40)), structure])
    np.testing.assert_allclose(both.energies[[0, -1]], alone.energies[0], rtol=0, atol=5e-7)
    assert both.largest_novelty_atom[0] == len(structure.symbols) - 1 - both.largest_novelty_atom[-1]


def test_a_large_molecule_has_the_energy_of_its_parts(task: Task) -> None:
    # 60 waters, so far apart that they do not feel each other.
    (water,) = structures_of(task, np.array([0]))
    many = LARGE // 3 + 20
    place = np.arange(many)[:, None] * np.array([[20.0, 0, 0]])
    large = Structure(water.symbols * many, (water.coordinates[None] + place[:, None]).reshape(-1, 3))
    ensemble = Ensemble([member(task, precision="float64")])
    one, all_of_them = ensemble.predict([water, large]).energies
    assert all_of_them == pytest.approx(many * one, rel=0, abs=1e-4)


def test_no_structure_has_no_energy(ensemble: Ensemble) -> None:
    assert ensemble.predict([]).energies.shape == (0,)
    assert ensemble.predict([]).members.shape == (3, 0)


def test_a_saved_ensemble_predicts_the_same(task: Task, ensemble: Ensemble, tmp_path: Path) -> None:
    structures = structures_of(task, np.arange(0, 120, 11))
    ensemble.save(tmp_path / "ensemble")
    ensemble.save(tmp_path / "ensemble")  # takes its own place
    assert [p.name for p in tmp_path.iterdir()] == ["ensemble"]
    opened = Ensemble.open(tmp_path / "ensemble")
    before, after = ensemble.predict(structures), opened.predict(structures)
    np.testing.assert_array_equal(before.members, after.members)
    np.testing.assert_array_equal(before.novelty, after.novelty)


def test_a_model_file_and_the_folder_of_a_training_are_models_too(task: Task, tmp_path: Path) -> None:
    saved = member(task)
    save_model(tmp_path / "model.safetensors", saved.model, saved.aev, saved.self_energies)
    structures = structures_of(task, np.array([3, 50]))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        opened = Ensemble.open(path)
        assert opened.domain is None
        np.testing.assert_array_equal(
            opened.predict(structures).energies, Ensemble([saved]).predict(structures).energies
        )


def test_an_unknown_element_is_refused(ensemble: Ensemble) -> None:
    for symbol in ("S", "N"):  # there are networks for nitrogen, but no training data
        structure = make_structure(["H", symbol], [[0, 0, 0], [0, 0, 1]], "here")
        with pytest.raises(DataError, match=rf"structure 0 .* contains {symbol}, .* on H, C, O only"):
            ensemble.predict([structure])


def test_environments_unlike_the_training_data_are_far(task: Task, ensemble: Ensemble) -> None:
    test = ensemble.predict(structures_of(task, task.split.test))
    assert np.mean(test.far) < 0.5  # of so little data not even the test set is all near
    (water,) = structures_of(task, np.array([0]))
    stretched = water.coordinates.copy()
    stretched[1] = stretched[0] + (stretched[1] - stretched[0]) * 1.8
    dimer = Structure(
        water.symbols * 2, np.tile(water.coordinates, (2, 1)) + np.arange(6)[:, None] // 3 * 1.2
    )
    away = ensemble.predict([Structure(water.symbols, stretched), dimer, water])
    assert away.far.tolist() == [True, True, False]
    assert away.novelty[:2].min() > test.novelty.max()
    assert away.largest_novelty_atom[0] in (0, 1)


def test_the_validation_set_is_not_far(task: Task, ensemble: Ensemble) -> None:
    assert not ensemble.predict(structures_of(task, task.split.validation)).far.any()
    assert not ensemble.predict(structures_of(task, task.split.train)).far.any()


def test_members_of_other_features_are_refused(task: Task) -> None:
    one = member(task)
    other = SavedModel(one.model, replace(one.aev, radial_cutoff=5.0), one.self_energies)
    with pytest.raises(ModelFileError, match="different features"):
        Ensemble([one, other])
    with pytest.raises(ModelFileError, match="different elements"):
        Ensemble([one, SavedModel(one.model, one.aev, {"H": -0.5})])


def test_what_is_no_model_is_named(task: Task, ensemble: Ensemble, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="artifact-uri models:/water@champion/artifacts/ensemble"):
        Ensemble.open("models:/water@champion")
    with pytest.raises(ModelFileError, match="nowhere: cannot be read"):
        Ensemble.open(tmp_path / "nowhere")
    with pytest.raises(ModelFileError, match=r"neither ensemble\.json nor model\.safetensors"):
        Ensemble.open(tmp_path)
    folder = tmp_path / "ensemble"
    ensemble.save(folder)
    (folder / "member-01.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"member-01\.safetensors: cannot be read"):
        Ensemble.open(folder)
    for record in ("[]", "{", '{"format": 9}', json.dumps({"format": 1, "members": 0, "domain": False})):
        (folder / RECORD).write_text(record)
        with pytest.raises(ModelFileError, match=r"ensemble\.json: "):
            Ensemble.open(folder)


def test_a_damaged_domain_is_named(ensemble: Ensemble, tmp_path: Path) -> None:
    folder = tmp_path / "ensemble"
    ensemble.save(folder)
    whole = (folder / DOMAIN).read_bytes()
    tensors = safetensors.torch.load(whole)
    narrow = tensors | {"references.H": torch.zeros(3, 5)}
    del tensors["references.O"]
    for content in (whole[:-4], b"", *map(safetensors.torch.save, ({}, tensors, narrow))):
        (folder / DOMAIN).write_bytes(content)
        with pytest.raises(ModelFileError, match=r"domain\.safetensors: "):
            Ensemble.open(folder)


def test_what_is_no_ensemble_is_not_replaced(ensemble: Ensemble, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="mine: cannot be written"):
        ensemble.save(tmp_path / "mine")
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_a_domain_keeps_few_of_many_environments(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    every = training_domain(task)
    for name, value in {"STRUCTURES": 30, "ATOMS": 60, "REFERENCES": 7}.items():
        monkeypatch.setattr(f"trainer.inference.domain.{name}", value)
    few = training_domain(task)
    assert few.elements == every.elements == ("H", "C", "O")
    assert {element: len(some) for element, some in few.references.items()} == {"H": 7, "C": 7, "O": 7}
    # What covers less has to reach farther.
    assert few.threshold["H"] > every.threshold["H"]
