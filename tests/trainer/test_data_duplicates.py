"""Structures that are there a second time: exactly, rotated, reordered or rounded; in one file or in two."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.transform import Rotation

from trainer.data import duplicates
from trainer.data.dataset import Molecule
from trainer.data.duplicates import OTHER_ENERGY, find_contradictions, find_duplicates
from trainer.data.elements import ATOMIC_NUMBERS
from trainer.data.readers import read_dataset
from trainer.errors import DataError
from trainer.evaluation.units import HARTREE_TO_KCALMOL

REAL = Path(__file__).parents[3] / "shared" / "data" / "ani_gdb_s01.h5"

METHANE = [(0, 0, 0), (0.63, 0.63, 0.63), (-0.63, -0.63, 0.63), (-0.63, 0.63, -0.63), (0.63, -0.63, -0.63)]
WATER = [(0, 0, 0.12), (0, 0.76, -0.47), (0, -0.76, -0.47)]


def structures(
    symbols: str, geometry: Sequence[tuple[float, float, float]], count: int, seed: int = 0
) -> Molecule:
    random = np.random.default_rng([seed, len(symbols)])
    coordinates = np.array(geometry) + random.normal(scale=0.05, size=(count, len(symbols), 3))
    return Molecule(
        name=f"{symbols}-{seed}",
        smiles="",
        atomic_numbers=np.array([ATOMIC_NUMBERS[s] for s in symbols], np.uint8),
        coordinates=coordinates.astype(np.float32),
        energies=-76.0 + random.normal(scale=0.05, size=count),
    )


def moved(molecule: Molecule, rows: npt.NDArray[np.int64], *, noise: float = 0.0, seed: int = 5) -> Molecule:
    """Some structures, each rotated and shifted, with atoms in another order and coordinates in float32."""
    random = np.random.default_rng(seed)
    atoms = random.permutation(molecule.atoms)
    turned = np.array(
        [
            Rotation.random(random_state=int(row)).apply(molecule.coordinates[row]) + random.normal(size=3)
            for row in rows
        ]
    )
    turned += random.normal(scale=noise, size=turned.shape) if noise else 0.0
    return Molecule(
        "moved",
        "",
        molecule.atomic_numbers[atoms],
        turned[:, atoms].astype(np.float32),
        molecule.energies[rows] + random.uniform(-5e-8, 5e-8, len(rows)),
    )


def write(path: Path, *molecules: Molecule, energies: str = "f8") -> Path:
    with h5py.File(path, "w") as file:
        for number, molecule in enumerate(molecules):
            group = file.create_group(f"m{number}")
            group["species"] = molecule.atomic_numbers.astype(np.int64)
            group["coordinates"] = molecule.coordinates
            group["energies"] = molecule.energies.astype(energies)
    return path


@pytest.mark.skipif(not REAL.exists(), reason="the file of the ANI-1 release is not here")
@pytest.mark.parametrize("energies", ["f8", "f4"])
def test_half_of_a_real_file_in_another_release(
    energies: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rotated, perturbed by 1e-5 Å, float32: every second structure of methane, ammonia and water."""
    real = read_dataset([REAL])
    halves = [moved(m, np.arange(0, m.structures, 2), noise=1e-5) for m in real.molecules]
    other = write(tmp_path / "older.h5", *halves, energies=energies)
    with pytest.raises(DataError) as caught:
        read_dataset([REAL, other], duplicates="refuse")
    line = str(caught.value)
    assert line.startswith("5,400 of 16,200 structures are duplicates: ")
    assert f"{other}, group /m0, structure 0 (from 0)" in line
    assert f"{REAL}, group /gdb11_s01/gdb11_s01-0, structure 0 (from 0)" in line
    assert "--duplicates drop" in line
    once = read_dataset([REAL, other])
    assert (once.fingerprint, once.duplicates) == (real.fingerprint, 5_400)
    assert "the later ones are left out" in caplog.text


@pytest.mark.skipif(not REAL.exists(), reason="the file of the ANI-1 release is not here")
def test_no_structure_of_a_real_file_is_taken_for_another() -> None:
    molecules = read_dataset([REAL]).molecules
    assert not len(find_duplicates(molecules).second)
    assert not len(find_contradictions(molecules).second)


@pytest.mark.skipif(not REAL.exists(), reason="the file of the ANI-1 release is not here")
def test_a_real_file_in_another_method_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rotated, and with energies that are 2 kcal/mol higher: every second structure of one molecule."""
    real = read_dataset([REAL])
    some = moved(real.molecules[1], np.arange(0, real.molecules[1].structures, 2), noise=1e-6)
    some.energies[:] += 2 / HARTREE_TO_KCALMOL
    other = write(tmp_path / "other.h5", some)
    with caplog.at_level(logging.WARNING, "anitune"):
        both = read_dataset([REAL, other])
    assert (both.structures, both.duplicates) == (real.structures + some.structures, 0)
    (line,) = caplog.messages
    assert line.startswith(
        f"{some.structures:,} of {both.structures:,} structures have the geometry of another"
    )
    assert f"(from 0) and {other}, group /m0, structure " in line
    assert "(from 0) are 2 kcal/mol apart" in line


def test_within_one_file_and_one_group() -> None:
    water = structures("OHH", WATER, 50)
    again = moved(water, np.array([7, 30]))
    found = find_duplicates([water, structures("CHHHH", METHANE, 9), again])
    assert found.second.tolist() == [59, 60]
    assert found.first.tolist() == [7, 30]
    atoms = np.argsort(again.atomic_numbers != 8, kind="stable")
    group = Molecule(
        "one",
        "",
        water.atomic_numbers,
        np.concatenate([water.coordinates, again.coordinates[:, atoms]]),
        np.concatenate([water.energies, again.energies]),
    )
    assert find_duplicates([group]).second.tolist() == [50, 51]


def test_a_mirror_image_is_the_same_and_a_stretched_bond_is_not() -> None:
    ethanol = structures("COHH", [(0, 0, 0), (1.4, 0, 0), (-0.5, 0.9, 0.1), (-0.4, -0.5, 0.8)], 1)
    mirror = Molecule("m", "", ethanol.atomic_numbers, -ethanol.coordinates, ethanol.energies)
    assert find_duplicates([ethanol, mirror]).second.tolist() == [1]
    stretched = ethanol.coordinates.copy()
    stretched[0, 3] *= 1.005
    other = Molecule("m", "", ethanol.atomic_numbers, stretched, ethanol.energies)
    assert not len(find_duplicates([ethanol, other]).second)


def test_distances_of_other_elements_are_not_exchanged() -> None:
    """HCN and HNC with the same three distances: the energy alone would take one for the other."""
    line = np.array([[(0, 0, 0), (1.0, 0, 0), (2.0, 0, 0)]], np.float32)
    one = Molecule("HCN", "", np.array([1, 6, 7], np.uint8), line, np.array([-93.0]))
    other = Molecule("HNC", "", np.array([1, 7, 6], np.uint8), line, np.array([-93.0]))
    assert not len(find_duplicates([one, other]).second)


@pytest.mark.parametrize("copies", [2, 40])
def test_of_many_copies_the_first_is_kept(copies: int) -> None:
    water = structures("OHH", WATER, 6)
    many = [water, *(moved(water, np.arange(6), seed=seed) for seed in range(copies))]
    found = find_duplicates(many)
    assert found.second.tolist() == list(range(6, 6 * (copies + 1)))
    assert found.first.tolist() == list(range(6)) * copies


@pytest.mark.parametrize(("apart", "found"), [(0.9e-6, 1), (1.1e-6, 0)])
def test_energies_of_one_structure_differ_by_a_microhartree(apart: float, found: int) -> None:
    water = structures("OHH", WATER, 1)
    other = Molecule("o", "", water.atomic_numbers, water.coordinates, water.energies + apart)
    assert len(find_duplicates([water, other]).second) == found


def test_energies_in_float32_are_compared_in_its_steps() -> None:
    """At -400 hartree float32 has steps of 3e-5: the same structure may differ by half of one."""
    water = structures("OHH", WATER, 200)
    fine = Molecule("fine", "", water.atomic_numbers, water.coordinates, water.energies - 324)
    coarse = Molecule(
        "coarse", "", water.atomic_numbers, water.coordinates, fine.energies.astype(np.float32).astype(float)
    )
    assert np.abs(coarse.energies - fine.energies).max() > 1e-5
    assert find_duplicates([fine, coarse]).second.tolist() == list(range(200, 400))


def test_what_is_kept_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    water = structures("OHH", WATER, 5)
    path = write(tmp_path / "a.h5", water, moved(water, np.array([3])))
    with caplog.at_level(logging.WARNING, logger="anitune"):
        assert read_dataset([path], duplicates="keep").structures == 6
    assert "1 of 6 structures is a duplicate" in caplog.text
    kept = read_dataset([path])
    assert [m.name for m in kept.molecules] == ["m0"]  # of m1 nothing is left
    assert kept.duplicates == 1


@pytest.mark.parametrize(("apart", "found"), [(0.9 * OTHER_ENERGY, 0), (1.1 * OTHER_ENERGY, 1)])
def test_forces_explain_small_differences_between_energies(apart: float, found: int) -> None:
    water = structures("OHH", WATER, 50)
    again = moved(water, np.array([7]))
    again.energies[:] += apart
    contradictions = find_contradictions([water, again])
    assert contradictions.second.tolist() == [50][:found]
    assert contradictions.first.tolist() == [7][:found]


@pytest.mark.parametrize("energies", [[-76.0, -76.1, -76.2, -76.3], [-76.0, -76.1, -76.0, -76.1]])
def test_many_energies_of_one_geometry(energies: list[float]) -> None:
    water = structures("OHH", WATER, 30)
    again = moved(water, np.array([4, 4, 4, 4]))
    again.energies[:] = energies
    found = find_contradictions([again, water])
    assert found.second.tolist() == [1, 2, 3, 8]
    assert found.first.tolist() == [0] * 4


def test_isolated_atoms_with_two_energies_contradict_each_other() -> None:
    atoms = np.zeros((2, 1, 3), np.float32)
    states = Molecule("O", "", np.array([8], np.uint8), atoms, np.array([-75.06, -74.99]))
    assert find_contradictions([states]).second.tolist() == [1]


def test_energies_that_tell_no_structures_apart_are_said_and_the_data_are_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As those of heavy atoms in float32, whose steps are wide."""
    monkeypatch.setattr(duplicates, "MOST_ALIKE", 20)
    some = structures("CHHHH", METHANE, 60)
    some.energies[:] = -40.0
    with caplog.at_level(logging.WARNING, "anitune"):
        assert not len(find_duplicates([some]).second)
    assert "CH4: more than 20 different structures have an energy of -40.000000 hartree" in caplog.text


def test_of_a_fine_scan_the_structures_that_differ_stay() -> None:
    """Neighbors are alike within the tolerances, the ends are not: a chain of them is no structure."""
    distances = 0.7 + 0.0008 * np.arange(200)
    coordinates = np.zeros((200, 2, 3), np.float32)
    coordinates[:, 1, 0] = distances
    energies = -1.1 + 1e-8 * np.arange(200)
    found = find_duplicates([Molecule("scan", "", np.array([1, 1], np.uint8), coordinates, energies)])
    kept = np.setdiff1d(np.arange(200), found.second)
    assert set(found.first) <= set(kept)
    assert np.abs(distances[found.second] - distances[found.first]).max() <= 1.001e-3
    assert len(kept) == 100, "every second step"


def test_copies_of_one_structure_have_one_energy_and_can_be_left_out(tmp_path: Path) -> None:
    one = structures("OHH", WATER, 1)
    copies = moved(one, np.zeros(4, np.int64))
    copies.energies[:] = one.energies[0]
    path = write(tmp_path / "a.h5", copies, structures("OHH", WATER, 5, seed=1))
    with pytest.raises(DataError, match="duplicate"):
        read_dataset([path], duplicates="refuse")
    assert read_dataset([path]).structures == 6
    assert read_dataset([path], duplicates="keep").structures == 9
