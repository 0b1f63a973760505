"""Compositions that the training data do not determine: said when a study is made, refused by a model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import AEVConfig, DataConfig, TaskConfig, TrainConfig
from trainer.data.stoichiometry import balance_text, balances, broken
from trainer.errors import DataError
from trainer.features.aev import aev_length
from trainer.inference.ensemble import Ensemble
from trainer.inference.structures import make_structure
from trainer.networks.files import CPU, load_model, save_model
from trainer.networks.model import ElementNetworks
from trainer.progress import no_progress
from trainer.task import prepare_data

WATER = np.array([(0, 0, 0.12), (0, 0.76, -0.47), (0, -0.76, -0.47)])
METHANE = np.array(
    [(0, 0, 0), (0.63, 0.63, 0.63), (-0.63, -0.63, 0.63), (-0.63, 0.63, -0.63), (0.63, -0.63, -0.63)]
)


def test_what_compositions_determine() -> None:
    assert balances([{"H": 2, "O": 1}], ["H", "O"]) == ({"H": 1, "O": -2},)
    assert balances([{"H": 2, "O": 1}, {"H": 4, "O": 2}], ["H", "O"]) == ({"H": 1, "O": -2},)
    assert balances([{"H": 2, "O": 1}, {"H": 2, "O": 2}], ["H", "O"]) == ()
    alkanes = [{"C": n, "H": 2 * n + 2} for n in range(1, 9)]
    assert balances(alkanes, ["H", "C"]) == ()
    hydrates = [{"C": n, "H": 2 * n, "O": n} for n in (3, 5, 6)]
    assert len(balances(hydrates, ["H", "C", "O"])) == 2
    assert balance_text({"H": 1, "O": -2}) == "H = 2 O"
    assert balance_text({"H": 3, "C": -2, "O": -1}) == "3 H = 2 C + O"
    assert balance_text({"F": 1}) == "F = 0"


@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=1, max_size=6), st.data())
def test_sums_of_compositions_are_determined(rows: list[list[int]], data: st.DataObject) -> None:
    elements = ["H", "C", "N", "O"]
    found = balances([dict(zip(elements, row, strict=True)) for row in rows], elements)
    assert len(found) == 4 - np.linalg.matrix_rank(np.array(rows))
    factors = data.draw(st.lists(st.integers(-5, 5), min_size=len(rows), max_size=len(rows)))
    total = np.array(factors) @ np.array(rows)
    assert broken(found, dict(zip(elements, total.tolist(), strict=True))) is None
    other = data.draw(st.lists(st.integers(0, 9), min_size=4, max_size=4))
    inside = np.linalg.matrix_rank(np.array([*rows, other])) == np.linalg.matrix_rank(np.array(rows))
    assert (broken(found, dict(zip(elements, other, strict=True))) is None) == inside


def write(path: Path, *kinds: tuple[str, Any]) -> Path:
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for symbols, geometry in kinds:
            file[f"{symbols}/species"] = np.array(list(symbols), "S1")
            file[f"{symbols}/coordinates"] = geometry + random.normal(scale=0.05, size=(10, *geometry.shape))
            file[f"{symbols}/energies"] = -76.0 + random.normal(scale=0.01, size=10)
    return path


def prepared(path: Path, **data: Any) -> Any:
    return prepare_data(TaskConfig(DataConfig((str(path),), **data)), no_progress)


def test_it_is_said_where_a_study_is_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    water = write(tmp_path / "a.h5", ("OHH", WATER))
    with caplog.at_level(logging.WARNING, logger="anitune"):
        assert prepared(water).balances == ({"H": 1, "O": -2},)
    assert f"{water}: in all molecules of the training set H = 2 O: the energies" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="anitune"):
        given = prepared(water, self_energies={"H": -0.5, "O": -75.0})
    assert given.balances == ({"H": 1, "O": -2},)
    assert "in all molecules of the training set H = 2 O" in caplog.text
    both = write(tmp_path / "b.h5", ("OHH", WATER), ("CHHHH", METHANE))
    assert prepared(both).balances == ({"H": 1, "C": -4, "O": -2},)
    caplog.clear()
    peroxide = write(tmp_path / "c.h5", ("OHH", WATER), ("OH", WATER[:2]))
    assert prepared(peroxide).balances == ()
    assert caplog.text == ""


def test_a_model_refuses_what_it_cannot_know(tmp_path: Path) -> None:
    aev = AEVConfig()
    network = ElementNetworks(
        TrainConfig(hidden=(4,), precision="float32"), aev.elements, aev_length(aev), CPU
    )
    energies = {"H": -30.0, "O": -15.9}
    save_model(tmp_path / "m.safetensors", network, aev, energies, ({"H": 1, "O": -2},))
    ensemble = Ensemble([load_model(tmp_path / "m.safetensors")])
    ensemble.save(tmp_path / "ensemble")
    for model in (ensemble, Ensemble.open(tmp_path / "ensemble")):
        water = make_structure("OHH", WATER, "water")
        dimer = make_structure("OHHOHH", np.concatenate([WATER, WATER + 3]), "dimer")
        hydroxyl = make_structure("OH", WATER[:2], "hydroxyl")
        assert np.isfinite(model.predict([water, dimer]).energies).all()
        with pytest.raises(DataError) as caught:
            model.predict([water, hydroxyl])
        assert str(caught.value) == (
            "structure 1 (from 0): HO cannot be predicted from the training data, where H = 2 O in all"
            " molecules: "
            "leave it out, or train on data with it"
        )
        assert np.isfinite(model.predict([hydroxyl], any_composition=True).energies).all()


def test_a_model_file_without_a_record_of_it_is_read(tmp_path: Path) -> None:
    aev = AEVConfig()
    network = ElementNetworks(
        TrainConfig(hidden=(4,), precision="float32"), aev.elements, aev_length(aev), CPU
    )
    save_model(tmp_path / "m.safetensors", network, aev, {"H": -0.5, "O": -75.0})
    assert b"balances" not in (tmp_path / "m.safetensors").read_bytes()
    assert load_model(tmp_path / "m.safetensors").balances == ()
