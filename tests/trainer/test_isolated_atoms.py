"""Structures of one atom, whose energies are the self-energies where the settings ask for that."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Hartree
from typer.testing import CliRunner

from search.cli.main import app
from search.study import load_study
from trainer.config import DataConfig, RunConfig, TaskConfig, load_config
from trainer.data.readers import read_dataset
from trainer.data.summary import summarize
from trainer.errors import ConfigError, DataError
from trainer.progress import no_progress
from trainer.task import TaskData, prepare_data

EXAMPLE = Path(__file__).parents[2] / "examples" / "small-molecules.extxyz"

#: Energies of isolated atoms, hartree.
ENERGIES = {"H": -0.4988, "C": -37.836, "N": -54.575, "O": -75.052}

ASKED_FOR = "isolated_atoms"


def atom(symbol: str, energy: float | None = None, **info: Any) -> Atoms:
    found = Atoms(symbol, info=info)
    found.calc = SinglePointCalculator(found, energy=(energy or ENERGIES[symbol]) * Hartree)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.extxyz"


def write(path: Path, *atoms: Atoms) -> None:
    """Write molecules of H, C, N and O with some isolated atoms between them."""
    frames = ase.io.read(EXAMPLE, ":")
    ase.io.write(path, [*frames[:100], *atoms, *frames[100:]])


def prepared(path: Path, **settings: Any) -> TaskData:
    return prepare_data(TaskConfig(DataConfig((str(path),), **settings)), no_progress)


def test_their_energies_are_the_self_energies_and_they_are_not_trained_on(path: Path) -> None:
    write(path, *(atom(symbol) for symbol in "ONCH"))
    task, without = prepared(path, self_energies=ASKED_FOR), prepared(EXAMPLE)
    assert task.self_energies == pytest.approx(ENERGIES)
    assert list(task.self_energies) == ["H", "C", "N", "O"]
    assert task.dataset.fingerprint == without.dataset.fingerprint
    assert task.split.fingerprint == without.split.fingerprint
    np.testing.assert_allclose(
        task.energies, prepared(EXAMPLE, self_energies=task.self_energies).energies, rtol=0, atol=1e-12
    )
    assert len({each.fingerprints["self_energies"] for each in (task, without)}) == 2


def test_they_are_trained_on_unless_that_is_asked_for(path: Path) -> None:
    write(path, *(atom(symbol) for symbol in ENERGIES))
    task = prepared(path)
    assert task.dataset.structures == 484
    assert task.fingerprints["self_energies"] == "fitted"
    assert summarize(task.dataset).isolated_atoms == dict.fromkeys(ENERGIES, 1)
    assert summarize(prepared(EXAMPLE).dataset).isolated_atoms == {}


def test_an_atom_may_be_there_twice_and_open_shell(path: Path) -> None:
    """With another element than the molecules hold, too, which is of no use."""
    some = [
        atom("H", multiplicity=2),
        *(atom(symbol, spin=3) for symbol in "CNO"),
        atom("O"),
        atom("F", -99.7),
    ]
    write(path, *some)
    read = read_dataset([path], self_energies=ASKED_FOR)
    assert read.isolated_energies == pytest.approx(ENERGIES)
    assert read.structures == 480
    with pytest.raises(DataError, match=r"4 of 486 structures are open-shell"):
        read_dataset([path])


@pytest.mark.parametrize(
    ("atoms", "said"),
    [
        ([atom("H"), atom("C")], "needs a structure of one atom of each element, and there is none of N, O"),
        ([], "needs a structure of one atom of each element, and there is none of H, C, N, O"),
        (
            [*map(atom, ENERGIES), atom("O", -75.0)],
            "structure 104 (from 0): the isolated O atom has two energies, -75.052000 and -75.000000 hartree",
        ),
        ([*map(atom, ENERGIES), atom("H", -0.5, charge=-1)], "1 of 485 structures is charged"),
    ],
)
def test_atoms_that_cannot_be_used(path: Path, atoms: list[Atoms], said: str) -> None:
    write(path, *atoms)
    with pytest.raises(DataError) as caught:
        read_dataset([path], self_energies=ASKED_FOR)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_atoms_alone(path: Path) -> None:
    ase.io.write(path, [atom(symbol) for symbol in ENERGIES])
    with pytest.raises(DataError, match="all structures are of one atom"):
        read_dataset([path], self_energies=ASKED_FOR)


def test_atoms_in_a_file_of_their_own_in_another_format(tmp_path: Path) -> None:
    """In float32 there, in float64 in the other file: that is one energy."""
    with h5py.File(tmp_path / "atoms.h5", "w") as file:
        for symbol, energy in ENERGIES.items():
            file[f"{symbol}/species"] = np.array([symbol], "S1")
            file[f"{symbol}/coordinates"] = np.zeros((1, 1, 3))
            file[f"{symbol}/energies"] = np.array([energy], np.float32)
    write(tmp_path / "a.extxyz", atom("O"))
    files = [tmp_path / "a.extxyz", tmp_path / "atoms.h5"]
    assert read_dataset(files, self_energies=ASKED_FOR).isolated_energies == pytest.approx(ENERGIES, abs=1e-5)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("isolated", "data.self_energies: input should be 'isolated_atoms' (got 'isolated')"),
        ({"H": "low"}, "data.self_energies.H: input should be a number (got 'low')"),
    ],
)
def test_a_value_that_cannot_be(value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(RunConfig, {"data": {"self_energies": value}}, "run.yaml")
    assert str(caught.value) == f"run.yaml: {said}"


def anitune(*words: object) -> str:
    answer = CliRunner().invoke(app, [str(word) for word in words])
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def test_describe_says_what_becomes_of_them(path: Path) -> None:
    write(path, *(atom(symbol) for symbol in ENERGIES))
    assert "Isolated atoms are trained on like other structures (H 1, C 1, N 1, O 1)" in anitune(
        "data", "describe", path
    )
    asked = anitune("data", "describe", path, "--self-energies", ASKED_FOR)
    assert (
        "Self-energies are those of the isolated atoms, which are not trained on: H -0.498800, C -37.836000, "
        "N -54.575000, O -75.052000 hartree"
    ) in asked
    summary = json.loads(anitune("data", "describe", path, "--self-energies", ASKED_FOR, "--json"))
    assert summary["self_energies_hartree"] == pytest.approx(ENERGIES)
    assert summary == json.loads(json.dumps(asdict(summarize(read_dataset([path], self_energies=ASKED_FOR)))))


def test_convert_keeps_them(path: Path, tmp_path: Path) -> None:
    write(path, *(atom(symbol) for symbol in ENERGIES))
    out = tmp_path / "out.h5"
    anitune("data", "convert", path, "--out", out, "--self-energies", ASKED_FOR)
    again, before = (read_dataset([file], self_energies=ASKED_FOR) for file in (out, path))
    assert again.isolated_energies == before.isolated_energies
    assert again.structures == before.structures


def test_a_first_study_file_names_them(path: Path, tmp_path: Path) -> None:
    write(path, *(atom(symbol) for symbol in ENERGIES))
    anitune("study", "init", path, "--out", tmp_path / "a.yaml")
    assert (
        "# Isolated atoms (H C N O) are trained on like other structures."
        in (tmp_path / "a.yaml").read_text()
    )
    assert load_study(tmp_path / "a.yaml").data.self_energies is None
    anitune("study", "init", path, "--self-energies", ASKED_FOR, "--out", tmp_path / "b.yaml")
    assert "# The energies of the isolated atoms are the self-energies" in (tmp_path / "b.yaml").read_text()
    assert load_study(tmp_path / "b.yaml").data.self_energies == ASKED_FOR
