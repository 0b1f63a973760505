from __future__ import annotations

import re
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from trainer.errors import DataError
from trainer.inference.files import read_structures

#: The files that people stumbled over.
CASES = Path(__file__).parents[2] / "../shared/cases/12-xyz"

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
        ("empty.xyz", "", "it contains no structure"),
        ("short.xyz", WATER[:-17], "line 1: 3 atoms are expected, and the file ends before"),
        ("words.xyz", "hello\n", "line 1: expected a number of atoms"),
        ("second.xyz", WATER + "x\n", "line 6: expected a number of atoms"),
        ("label.xyz", WATER.replace("O ", "O1 "), "line 3: 'O1' is not an element"),
        ("flat.xyz", WATER.replace("0 0 0.12", "0 0"), "line 3: an atom has 4 columns here"),
        ("nan.xyz", WATER.replace("0.12", "nan"), "line 1: a coordinate is NaN or infinite"),
        ("empty.extxyz", "", "structure"),
        (
            "broken.extxyz",
            "2\nProperties=species:S:1:pos:R:3\nO 0 0 0\n",
            "line 4: an atom has 4 columns here",
        ),
        ("binary.xyz", b"\xff\xfe\x00", "line 1: expected a number of atoms"),
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


PLAIN = "3\nwater\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n"
PERIODIC = PLAIN.replace("water", 'Lattice="10 0 0 0 10 0 0 0 10"')

#: Each holds the structures of one or several times PLAIN.
LAYOUTS = {
    "blank between": (PLAIN + "\n" + PLAIN + " \n\n" + PLAIN, 3),
    "leading blank": ("\n \n" + PLAIN, 1),
    "trailing blanks": (PLAIN + "\n\n\n", 1),
    "byte order mark": ("\ufeff" + PLAIN, 1),
    "Windows": ((PLAIN + "\n" + PLAIN).replace("\n", "\r\n"), 2),
    "old Macs": (PLAIN.replace("\n", "\r"), 1),
    "tabs": (PLAIN.replace(" ", "\t"), 1),
    "no end of the last line": (PLAIN.rstrip(), 1),
    "atomic numbers": (PLAIN.replace("O", "8").replace("H", "1"), 1),
    "lower case": (PLAIN.replace("O", "o").replace("H", "h"), 1),
    "more columns": (re.sub("^([OH].*)$", r"\1 0.1 x", PLAIN, flags=re.MULTILINE), 1),
    "any comment": (PLAIN.replace("water", "stress=3 Lattice virial='{"), 1),
    "a comment in Latin-1": (PLAIN.encode().replace(b"water", b"1.54 \xc5"), 1),
    "a comment with other ends of lines": (PLAIN.replace("water", "a\x0cb\u2028c\x85d"), 1),
    "extended among plain": (
        PLAIN + PLAIN.replace("water", "Properties=species:S:1:pos:R:3 e=-1") + PLAIN,
        3,
    ),
    "a cell, not periodic": (PERIODIC.replace('10"', '10" pbc="F F F"'), 1),
}


@pytest.mark.parametrize(("content", "structures"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_structure_is_read(tmp_path: Path, content: str | bytes, structures: int) -> None:
    path = tmp_path / "some.xyz"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    read = read_structures(path)
    assert [structure.symbols for structure in read] == [("O", "H", "H")] * structures
    for structure in read:
        np.testing.assert_array_equal(structure.coordinates, [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (PLAIN + PERIODIC, "line 6: it is periodic"),
        (PLAIN + "\n\n" + PERIODIC + PLAIN, "line 8: it is periodic"),
        (PLAIN + PERIODIC.replace("Lattice=", "lattice = "), "line 6: it is periodic"),
        (PLAIN + PLAIN.replace("water", "PBC=T"), "line 6: it is periodic"),
        (PLAIN + "VEC1 10 0 0\n", r"line 6: expected a number of atoms.*got 'VEC1 10 0 0'"),
        (PLAIN.replace("3", "5", 1) + PLAIN, "line 6: an atom has 4 columns .* has 1"),
        (PLAIN.replace("3", "2", 1) + PLAIN, "line 5: expected a number of atoms.*got 'H -0.24 0.93 0'"),
        (PLAIN.replace("H 0.96", "\nH 0.96"), "line 4: an atom has 4 columns .* has 0"),
        (PLAIN.replace("3", "0", 1), "line 1: expected a number of atoms"),
        (PLAIN.replace("3", "3.0", 1), "line 1: expected a number of atoms"),
        (PLAIN + PLAIN.replace("0.96", "nan"), "line 6: a coordinate is NaN or infinite"),
        (PLAIN + PLAIN.replace("0.96", "1e999"), "line 6: a coordinate is NaN or infinite"),
        (PLAIN.replace("0.96", "0.96D0"), r"line 4: '0\.96D0' is not a coordinate"),
        (PLAIN.replace("O", "8"), "line 4: 'H' is not an element"),
        # Two lines whose words make up for each other.
        ("3\n\n8 0 0 0\n1 1 0\n1 2 0 0 0\n", "line 4: an atom has 4 columns .* has 3"),
        (PLAIN.replace("O", "119").replace("H", "1"), "line 3: '119' is not an element"),
        (PLAIN.replace("O", "8").replace("H", "-1"), "line 4: '-1' is not an element"),
        (PLAIN.replace("O", "X"), "line 3: 'X' is not an element"),
        (PLAIN.replace("O", "D"), "line 3: 'D' is not an element"),
        (PLAIN.replace("water", "Properties=pos:R:3"), "line 2: Properties=pos:R:3 does not name"),
    ],
)
def test_no_structure_is_passed_over(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "some.xyz"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}, {expected}") as caught:
        read_structures(path)
    assert str(caught.value).isprintable()


@pytest.mark.skipif(not CASES.is_dir(), reason="the collected cases are not here")
def test_the_files_that_people_stumbled_over() -> None:
    for name, structures in {"blank_between": 3, "bom": 1, "leading_blank": 1}.items():
        assert len(read_structures(CASES / f"{name}.xyz")) == structures
    with pytest.raises(DataError, match=r"second_periodic\.xyz, line 6: it is periodic"):
        read_structures(CASES / "second_periodic.xyz")


def test_links_out_of_the_folder_of_an_hdf5_file_are_followed_if_they_may_be(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with h5py.File(tmp_path / "elsewhere.h5", "w") as file:
        group = file.create_group("water")
        group["species"] = np.array(["O", "H", "H"], "S1")
        group["coordinates"] = np.array([[(0, 0, 0.12), (0, 0.76, -0.47), (0, -0.76, -0.47)]], np.float32)
    linking = tmp_path / "here" / "linking.h5"
    with h5py.File(linking, "w") as file:
        file["water"] = h5py.ExternalLink("../elsewhere.h5", "/water")
    with pytest.raises(DataError, match="--links-outside"):
        read_structures(linking)
    assert len(read_structures(linking, links_outside=True)) == 1


def written(form: str, path: Path) -> None:
    """Molecules in an xyz file, plain or as ASE writes it."""
    random = np.random.default_rng(3)
    if form == "by ase":
        molecules = []
        for number in range(20):
            atoms = ase.Atoms(
                random.choice(["H", "C", "Cl"], number + 1), random.normal(size=(number + 1, 3))
            )
            results = {"energy": -1.5e-7 * number, "forces": random.normal(size=(number + 1, 3))}
            atoms.calc = SinglePointCalculator(atoms, **results)
            molecules.append(atoms)
        ase.io.write(path, molecules, format="extxyz")
        return
    frames = []
    for number in range(1, 21):
        atoms = zip(
            random.choice(["H", "c", "CL", "he"], number), random.normal(size=(number, 3)), strict=True
        )
        lines = (f" {symbol}\t{x:.9e}  {float(y)!r} {z:.3f}  7 extra" for symbol, (x, y, z) in atoms)
        frames.append("\n".join([f" {number}", f"number {number}", *lines, ""]))
    path.write_text("".join(frames))


@pytest.mark.parametrize("form", ["plain", "by ase"])
def test_files_are_read_as_by_ase(form: str, tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    written(form, path)
    expected = ase.io.read(path, index=":", format="extxyz")
    for structure, atoms in zip(read_structures(path), expected, strict=True):
        assert structure.symbols == tuple(atoms.get_chemical_symbols())
        np.testing.assert_array_equal(structure.coordinates, atoms.positions)
