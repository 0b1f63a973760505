"""Wrong data files, made as people make them: each has its one line, and nothing else is said."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Bohr, Hartree
from typer.testing import CliRunner

from search.cli.main import app

EXAMPLE = Path(__file__).parents[2] / "examples" / "small-molecules.extxyz"


def frames(scale: float = 1.0, unit: float = 1.0, zero: float = 0.0) -> list[Atoms]:
    """The structures of the example, whose energies are in eV."""
    found = []
    for given in ase.io.read(EXAMPLE, ":"):
        atoms = Atoms(given.symbols, given.positions * scale)
        atoms.calc = SinglePointCalculator(atoms, energy=given.get_potential_energy() * unit - zero)
        found.append(atoms)
    return found


def write(path: Path, found: list[Atoms]) -> None:
    ase.io.write(path, found, format="extxyz")


def in_hartree(path: Path) -> None:
    write(path, frames(unit=1 / Hartree))


def in_bohr(path: Path) -> None:
    write(path, frames(scale=1 / Bohr))


def relative_to_the_lowest(path: Path) -> None:
    found: dict[str, list[Atoms]] = {}
    for atoms in frames():
        found.setdefault(atoms.get_chemical_formula(), []).append(atoms)
    for same in found.values():
        lowest = min(atoms.get_potential_energy() for atoms in same)
        for atoms in same:
            atoms.calc.results["energy"] -= lowest
    write(path, [atoms for same in found.values() for atoms in same])


def mixed_charges(path: Path) -> None:
    found = frames()
    for atoms in found[10:40]:
        atoms.info["charge"] = 1
    write(path, found)


def periodic(path: Path) -> None:
    found = frames()
    for atoms in found:
        atoms.set_cell(np.eye(3) * 12.0)
        atoms.set_pbc(True)
    write(path, found)


def doubles(path: Path) -> None:
    found = frames()
    turned = found[7].copy()
    turned.calc = found[7].calc
    turned.rotate(40, "x")
    write(path, [*found, turned])


def of_two_methods(path: Path) -> None:
    """Three structures again, with energies in which the atoms of another method are 0.1 eV higher."""
    found = frames()
    for atoms in found[20:23]:
        again = atoms.copy()
        energy = atoms.get_potential_energy() + 0.1 * len(atoms)
        again.calc = SinglePointCalculator(again, energy=energy)
        found.append(again)
    write(path, found)


def without_energy(path: Path) -> None:
    found = frames()
    found[3].calc = None
    write(path, found)


def truncated_gzip(path: Path) -> None:
    write(path, frames())
    packed = gzip.compress(path.read_bytes())
    path.write_bytes(packed[: len(packed) // 2])


def two_layouts(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name in ("species", "numbers"):
            file[f"water/{name}"] = np.array([8, 1, 1])
        file["water/coordinates"] = np.zeros((4, 3, 3))
        file["water/energies"] = np.zeros(4)


def unknown_element(path: Path) -> None:
    write(path, frames())
    lines = path.read_text().splitlines(keepends=True)
    lines[2] = re.sub(r"^\S+", "Xx", lines[2])
    path.write_text("".join(lines))


#: What the line says, and the options with which the file can be used as it is, if there are any.
WRONG: dict[Callable[[Path], None], tuple[str, list[str]]] = {
    in_hartree: ("these look like hartree; set data.unit: hartree (--unit hartree)", ["--unit", "hartree"]),
    in_bohr: ("these look like bohr; set data.length_unit: bohr", ["--length-unit", "bohr"]),
    relative_to_the_lowest: (
        "if they have another zero, as formation energies do, set data.unusual: keep (--unusual keep)",
        ["--unusual", "keep"],
    ),
    mixed_charges: (
        "30 of 480 structures are charged (the first is number 10, from 0)",
        ["--leave-out", "charged"],
    ),
    periodic: ("480 of 480 structures are periodic (the first is number 0, from 0)", []),
    without_energy: (
        "1 of 480 structures is without an energy (the first is number 3, from 0)",
        ["--leave-out", "without_energy"],
    ),
    truncated_gzip: ("not a readable file; copy or download it again", []),
    two_layouts: ("group /water: two layouts fit, ANI-1 (species, coordinates, energies) and torchani", []),
    unknown_element: ("line 3: 'Xx' is not an element; use symbols such as H, C, N, O", []),
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_wrong_file_has_its_one_line(wrong: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / ("a.h5" if wrong is two_layouts else "a.extxyz")
    wrong(path)
    said, options = WRONG[wrong]

    def describe(*more: str) -> Any:
        return CliRunner().invoke(app, ["data", "describe", str(path), *more])

    answer = describe()
    assert answer.exit_code == 2, answer.output
    assert answer.stdout == ""
    (line,) = answer.stderr.splitlines()
    assert line.startswith("anitune: ")
    assert str(path) in line
    assert said in line
    if options:
        assert describe(*options).exit_code == 0


def test_of_a_structure_that_is_there_twice_one_is_kept_and_the_others_are_counted(tmp_path: Path) -> None:
    path, turned = tmp_path / "a.extxyz", tmp_path / "b.extxyz"
    doubles(path)
    write(turned, frames()[3:5])
    data = ["data", "describe", str(path), str(turned)]
    described = CliRunner().invoke(app, data)
    assert described.exit_code == 0, described.output
    assert " 480 structures" in described.stdout
    assert "3 duplicate structures are left out and not counted (see --duplicates)" in described.stdout
    (line,) = described.stderr.splitlines()
    assert "3 of 483 structures are duplicates: " in line
    assert f"{path}, structure 480 (from 0) has the same structure as {path}, structure 7 (from 0)" in line
    assert json.loads(CliRunner().invoke(app, [*data, "--json"]).stdout)["duplicates"] == 3
    refused = CliRunner().invoke(app, [*data, "--duplicates", "refuse"])
    assert refused.exit_code == 2
    assert "leave out the later ones with data.duplicates: drop (--duplicates drop)" in refused.stderr
    converted = CliRunner().invoke(app, ["data", "convert", *data[2:], "--out", str(tmp_path / "once.h5")])
    assert converted.stdout.endswith(", 480 structures\n")


def test_a_structure_with_two_energies_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.extxyz"
    of_two_methods(path)
    described = CliRunner().invoke(app, ["data", "describe", str(path)])
    assert " 483 structures" in described.stdout
    (line,) = described.stderr.splitlines()
    assert "3 of 483 structures have the geometry of another one but a different energy: " in line
    assert re.search(r"structure 2[012] \(from 0\) and \S+, structure 48[012] \(from 0\) are ", line)
