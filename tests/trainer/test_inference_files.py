from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from trainer.errors import DataError
from trainer.inference.files import read_structures

WATER = """3
a comment
O 0 0 0.12
H 0 0.76 -0.47 0.3
H 0 -0.76 -0.47
"""
METHANE_LIKE = """2

C 0 0 0
H 1.1 0 0
"""


def test_an_xyz_file_holds_structures_one_after_another(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_text(WATER + METHANE_LIKE + "\n")
    first, second = read_structures(path)
    assert first.symbols == ("O", "H", "H")
    np.testing.assert_array_equal(first.coordinates[1], [0, 0.76, -0.47])
    assert second.symbols == ("C", "H")


@pytest.mark.parametrize("name", ["some.extxyz", "some.xyz"])
def test_columns_of_extended_xyz_may_stand_in_any_order(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("2\nProperties=pos:R:3:species:S:1 energy=-1.0\n0 0 0 O\n0 0 0.97 H\n")
    (structure,) = read_structures(path)
    assert structure.symbols == ("O", "H")
    assert structure.coordinates[1].tolist() == [0, 0, 0.97]


def test_periodic_structures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "crystal.extxyz"
    path.write_text('1\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3\nC 0 0 0\n')
    with pytest.raises(DataError, match=r"crystal\.extxyz, line 1: it is periodic"):
        read_structures(path)


def test_hdf5_is_read_as_for_training(data_file: Path) -> None:
    structures = read_structures(data_file)
    assert len(structures) == 120
    assert structures[0].symbols == ("O", "H", "H")
    with h5py.File(data_file) as file:
        expected = file["molecules/molecules-1/coordinates"][5]
    np.testing.assert_array_equal(structures[45].coordinates, expected)


@pytest.mark.parametrize(
    ("key", "elements"), [("species", np.array([b"O", b"H"])), ("atomic_numbers", np.array([8, 1]))]
)
def test_hdf5_needs_no_energies(tmp_path: Path, key: str, elements: np.ndarray) -> None:
    path = tmp_path / "some.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("oh")
        group[key] = elements
        group["coordinates"] = np.arange(12.0).reshape(2, 2, 3)
    assert [structure.symbols for structure in read_structures(path)] == [("O", "H")] * 2


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.xyz", "", "there is no structure in it"),
        ("short.xyz", WATER[:-17], "line 5: an atom is due, .* since line 1 says 3 atoms"),
        ("words.xyz", "hello\n", "line 1: here a number of atoms"),
        ("second.xyz", WATER + "x\n", "line 6: here a number of atoms"),
        ("label.xyz", WATER.replace("O ", "O1 "), "line 1: 'O1' is no symbol of an element"),
        ("flat.xyz", WATER.replace("0 0 0.12", "0 0"), "line 3: an atom is due"),
        ("nan.xyz", WATER.replace("0.12", "nan"), "line 1: 3 atoms need as many rows"),
        ("empty.extxyz", "", "structure"),
        ("broken.extxyz", "2\nProperties=species:S:1:pos:R:3\nO 0 0 0\n", "line 4: an atom is due"),
        ("binary.xyz", b"\xff\xfe\x00", "line 1: here a number of atoms"),
        ("text.h5", "hello", "not a readable HDF5 file"),
    ],
)
def test_a_faulty_file_is_named_in_one_line(
    tmp_path: Path, name: str, content: str | bytes, expected: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}.*{expected}") as caught:
        read_structures(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.xyz", "nowhere.extxyz", "nowhere.h5"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: no such file"):
        read_structures(tmp_path / name)


@pytest.mark.parametrize(
    ("coordinates", "expected"),
    [
        (np.zeros((2, 3, 3)), "the shapes disagree: 2 atoms"),
        (np.full((2, 2, 3), np.inf), "is NaN or infinite"),
        (np.array([b"x"]), "does not hold numbers"),
    ],
)
def test_a_faulty_group_is_named(tmp_path: Path, coordinates: np.ndarray, expected: str) -> None:
    path = tmp_path / "some.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("oh")
        group["species"] = np.array([b"O", b"H"])
        group["coordinates"] = coordinates
    with pytest.raises(DataError, match=rf"some\.h5, group /oh: .*{expected}"):
        read_structures(path)
