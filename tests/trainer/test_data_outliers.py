"""Energies that are far from all others of their molecule."""

from __future__ import annotations

import logging
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from search.cli.main import app
from trainer.data.dataset import Molecule
from trainer.data.outliers import find_outliers
from trainer.data.readers import read_dataset
from trainer.data.summary import summarize

WATER = np.array([(0, 0, 0.12), (0, 0.76, -0.47), (0, -0.76, -0.47)])


def molecule(energies: list[float]) -> Molecule:
    coordinates = np.zeros((len(energies), 3, 3), np.float32)
    return Molecule("water", "O", np.array([8, 1, 1], np.uint8), coordinates, np.array(energies))


def test_far_is_beyond_ten_robust_standard_deviations() -> None:
    spread = np.random.default_rng(1).normal(scale=0.01, size=1_000)
    deviation = 1.4826 * np.median(np.abs(spread - np.median(spread)))
    far, near = np.median(spread) + 10.5 * deviation, np.median(spread) - 9.5 * deviation
    found = find_outliers([molecule([*(spread - 76), far - 76, near - 76])])
    assert np.flatnonzero(found).tolist() == [1_000]


def test_molecules_are_not_compared_with_each_other() -> None:
    energies = np.linspace(-0.01, 0.01, 20)
    assert not find_outliers([molecule(list(energies - 76)), molecule(list(energies - 40))]).any()


def test_copies_and_a_few_structures_tell_no_spread() -> None:
    assert not find_outliers([molecule([-76.0] * 50 + [-75.995])]).any()
    assert not find_outliers([molecule([-76.0] * 8 + [-70.0])]).any()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Water, of which structures 3 and 17 did not converge."""
    random = np.random.default_rng(2)
    energies = -76.4 + random.normal(scale=0.01, size=60)
    energies[[3, 17]] = -75.2, -77.0
    path = tmp_path / "water.h5"
    with h5py.File(path, "w") as opened:
        group = opened.create_group("water")
        group["species"] = np.array(list("OHH"), "S1")
        group["coordinates"] = (WATER + random.normal(scale=0.05, size=(60, 3, 3))).astype(np.float32)
        group["energies"] = energies
    return path


def test_they_are_used_and_listed(file: Path) -> None:
    read = read_dataset([file])
    assert read.structures == 60
    found = summarize(read).outliers
    assert [(each.structure, each.energy_hartree) for each in found] == [(3, -75.2), (17, -77.0)]
    said = CliRunner().invoke(app, ["data", "describe", str(file)]).stdout
    assert "2 energies are far from the others of their molecule (see --drop-outliers)" in said
    assert "water, structure 17 (from 0): -77.000000 hartree" in said
    left = CliRunner().invoke(app, ["data", "describe", str(file), "--drop-outliers"])
    assert "58 structures" in left.stdout
    assert "are far from" not in left.stdout


def test_they_are_left_out_when_asked_for(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "anitune"):
        kept = read_dataset([file], drop_outliers=True)
    assert kept.structures == 58
    assert (kept.molecules[0].energies < -76.3).all()
    assert caplog.messages[0].startswith("2 of 60 structures are left out")
