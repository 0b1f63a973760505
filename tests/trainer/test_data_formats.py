"""One data set in each format, written by the format's own library where there is one: all are the same."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import shutil
import sqlite3
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Bohr, Hartree, kcal, mol

from search.study import load_study
from trainer.config import DataConfig, SplitConfig
from trainer.data import frame_cache, xyz
from trainer.data.ani1x import ANI1X
from trainer.data.dataset import Dataset
from trainer.data.elements import ATOMIC_NUMBERS, SYMBOLS
from trainer.data.hdf5 import Group
from trainer.data.layout import Reading
from trainer.data.readers import READERS, read_data, read_dataset
from trainer.data.splits import split_dataset
from trainer.errors import DataError
from trainer.inference.files import read_structures
from trainer.progress import no_progress

#: Symbols, a geometry in Å, and the energy of the atoms in hartree.
MOLECULES: dict[str, tuple[str, list[tuple[float, float, float]], float]] = {
    "a water": ("OHH", [(0, 0, 0.12), (0, 0.76, -0.47), (0, -0.76, -0.47)], -76.4),
    "b ammonia": (
        "NHHH", [(0, 0, 0.11), (0, 0.94, -0.26), (0.81, -0.47, -0.26), (-0.81, -0.47, -0.26)], -56.5,
    ),
    "c methanol": (
        "COHHHH",
        [
            (-0.05, 0.66, 0), (-0.05, -0.76, 0), (-1.09, 0.98, 0), (0.44, 1.07, 0.89), (0.44, 1.07, -0.89),
            (0.87, -1.06, 0),
        ],
        -115.7,
    ),
    "d peroxide": (
        "OOHH", [(0, 0.7, -0.05), (0, -0.7, -0.05), (0.83, 0.88, 0.4), (-0.83, -0.88, 0.4)], -151.5,
    ),
}  # fmt: skip

Data = dict[str, tuple[str, Any, Any]]


def data(per_molecule: int = 12) -> Data:
    """Distorted structures in float32 Å, of no more digits than ASE writes in XYZ; energies in hartree."""
    random, found = np.random.default_rng(5), {}
    for name, (symbols, geometry, energy) in MOLECULES.items():
        noise = random.normal(scale=0.04, size=(per_molecule, len(symbols), 3))
        coordinates = np.round(np.array(geometry) + noise, 4).astype(np.float32)
        found[name] = (symbols, coordinates, energy + random.normal(scale=0.01, size=per_molecule))
    return found


def frames(of: Data, unit: float = Hartree, length: float = 1.0) -> list[Atoms]:
    found = []
    for name, (symbols, coordinates, energies) in of.items():
        for positions, energy in zip(coordinates, energies, strict=True):
            atoms = Atoms(list(symbols), positions.astype(np.float64) / length, info={"system": name})
            atoms.calc = SinglePointCalculator(atoms, energy=energy * unit)
            found.append(atoms)
    return found


def write_ani1(path: Path, of: Data) -> dict[str, Any]:
    with h5py.File(path, "w") as file:
        for name, (symbols, coordinates, energies) in of.items():
            group = file.create_group(name)
            group["species"] = np.array(list(symbols), "S1")
            group["coordinates"], group["energies"] = coordinates, energies
    return {}


def write_ani1x(path: Path, of: Data) -> dict[str, Any]:
    with h5py.File(path, "w") as file:
        for name, (symbols, coordinates, energies) in of.items():
            group = file.create_group(name)
            group["atomic_numbers"] = np.array([ATOMIC_NUMBERS[s] for s in symbols], np.uint8)
            group["coordinates"], group["wb97x_dz.energy"] = coordinates, energies
            group["ccsd(t)_cbs.energy"] = np.full(len(energies), np.nan)
    return {}


def write_ani1ccx(path: Path, of: Data) -> dict[str, Any]:
    write_ani1x(path, of)
    with h5py.File(path, "a") as file:
        for name, (_, _, energies) in of.items():
            file[f"{name}/ccsd(t)_cbs.energy"][:] = energies
            file[f"{name}/wb97x_dz.energy"][:] = energies - 0.1
    return {"energy": "ccsd(t)_cbs.energy"}


def write_spice(path: Path, of: Data) -> dict[str, Any]:
    """As its downloader does: https://github.com/openmm/spice-dataset."""
    with h5py.File(path, "w") as file:
        for name, (symbols, coordinates, energies) in of.items():
            group = file.create_group(name)
            group.create_dataset("subset", data=["ours"], dtype=h5py.string_dtype())
            group.create_dataset("smiles", data=[f"[{symbols[0]}:1]{name}"], dtype=h5py.string_dtype())
            group.create_dataset("atomic_numbers", data=[ATOMIC_NUMBERS[s] for s in symbols], dtype=np.int16)
            bohr = coordinates.astype(np.float64) / Bohr
            group.create_dataset("conformations", data=bohr).attrs["units"] = "bohr"
            group.create_dataset("formation_energy", data=energies - energies.mean(), dtype=np.float64)
            group.create_dataset("dft_total_energy", data=energies, dtype=np.float64).attrs["units"] = (
                "hartree"
            )
    return {}


def write_torchani(grouping: str) -> Callable[[Path, Data], dict[str, Any]]:
    def write(path: Path, of: Data) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its extensions for GPUs are not built
            from torchani.datasets import ANIDataset

        dataset = ANIDataset(path, grouping=grouping, verbose=False)
        for symbols, coordinates, energies in of.values():
            numbers = np.array([ATOMIC_NUMBERS[s] for s in symbols])
            arrays = {
                "species": np.tile(numbers, (len(energies), 1)),
                "coordinates": coordinates,
                "energies": energies,
            }
            group = (
                f"{len(symbols):03d}" if grouping == "by_num_atoms" else Atoms(symbols).get_chemical_formula()
            )
            dataset.append_conformers(group, arrays)
        return {}

    return write


def write_extended_xyz(path: Path, of: Data) -> dict[str, Any]:
    ase.io.write(path, frames(of), format="extxyz")
    return {}


def write_reference_energies(path: Path, of: Data) -> dict[str, Any]:
    """Energies in a key of their own, in kcal/mol, as many training sets have them."""
    found = frames(of)
    for atoms, energy in zip(found, np.concatenate([e for _, _, e in of.values()]), strict=True):
        atoms.calc, atoms.info["REF_energy"] = None, energy * Hartree / (kcal / mol)
    ase.io.write(path, found, format="extxyz")
    return {"energy": "REF_energy", "unit": "kcal/mol", "molecule": "system"}


def write_gzipped(path: Path, of: Data) -> dict[str, Any]:
    write_extended_xyz(path.with_name("plain.xyz"), of)
    path.write_bytes(gzip.compress(path.with_name("plain.xyz").read_bytes()))
    return {}


def write_in_bohr(path: Path, of: Data) -> dict[str, Any]:
    ase.io.write(path, frames(of, unit=1.0, length=Bohr), format="traj")  # in XYZ, ASE rounds coordinates
    return {"unit": "hartree", "length_unit": "bohr"}


def write_by_ase(**how: Any) -> Callable[[Path, Data], dict[str, Any]]:
    def write(path: Path, of: Data) -> dict[str, Any]:
        ase.io.write(path, frames(of), **how)
        return {}

    return write


def write_database(path: Path, of: Data) -> dict[str, Any]:
    with ase.db.connect(path) as database:
        for atoms in frames(of):
            database.write(atoms, system=atoms.info["system"])
    return {}


#: The name of a file, and how it is written.
FORMATS: dict[str, tuple[str, Callable[[Path, Data], dict[str, Any]]]] = {
    "ANI-1": ("a.h5", write_ani1),
    "ANI-1x": ("a.h5", write_ani1x),
    "ANI-1ccx": ("a.h5", write_ani1ccx),
    "torchani by formula": ("a.h5", write_torchani("by_formula")),
    "torchani by number of atoms": ("a.h5", write_torchani("by_num_atoms")),
    "SPICE": ("SPICE.hdf5", write_spice),
    "extended XYZ": ("a.xyz", write_extended_xyz),
    "extended XYZ of another name": ("frames", write_extended_xyz),
    "extended XYZ, key and unit named": ("a.extxyz", write_reference_energies),
    "extended XYZ, gzipped": ("a.xyz.gz", write_gzipped),
    "trajectory of ASE in bohr": ("a.traj", write_in_bohr),
    "trajectory of ASE": ("a.traj", write_by_ase(format="traj")),
    "database of ASE": ("a.db", write_database),
    "database of ASE as JSON": ("a.json", write_database),
}
"""Formats that hold several molecules. Their order is the same where groups have no order of their own."""

formats = pytest.mark.parametrize("name", FORMATS)


def written(name: str, folder: Path, of: Data | None = None) -> tuple[Path, dict[str, Any]]:
    file, write = FORMATS[name]
    folder.mkdir(exist_ok=True)
    return folder / file, write(folder / file, of or data())


def digests(dataset: Dataset) -> list[str]:
    """Of each structure: its elements, coordinates and energy."""
    found = []
    for molecule in dataset.molecules:
        for coordinates, energy in zip(molecule.coordinates, molecule.energies, strict=True):
            rounded = np.round(energy, 10)  # eV are not the same number of hartree in the last bit
            found.append(
                hashlib.sha256(
                    molecule.atomic_numbers.tobytes() + coordinates.tobytes() + rounded.tobytes()
                ).hexdigest()
            )
    return found


@formats
def test_each_format_holds_the_same(name: str, tmp_path: Path) -> None:
    expected = read_dataset([written("ANI-1", tmp_path / "expected")[0]])
    path, settings = written(name, tmp_path / "given")
    read = read_dataset([path], **settings)

    assert sorted(digests(read)) == sorted(digests(expected))
    assert len(set(read.identities())) == len(MOLECULES)
    if "torchani" in name:  # whose groups are in the order of their formulas, or numbers of atoms
        return
    assert digests(read) == digests(expected)
    for by in ("structure", "molecule"):
        split = SplitConfig(by=by, fractions=(0.5, 0.25, 0.25), seed=3)
        assert split_dataset(read, split).fingerprint == split_dataset(expected, split).fingerprint


def test_formats_can_be_joined(tmp_path: Path) -> None:
    files = [
        written(name, tmp_path / name[:4], {key: value})[0]
        for name, (key, value) in zip(
            ("ANI-1", "extended XYZ", "database of ASE", "SPICE"), data().items(), strict=True
        )
    ]
    joined = read_dataset(files)
    assert digests(joined) == digests(read_dataset([written("ANI-1", tmp_path / "all")[0]]))


def sgdml(of: Data, **changed: Any) -> dict[str, Any]:
    (symbols, coordinates, energies) = of["a water"]
    arrays = {
        "type": "d",
        "name": "water",
        "z": np.array([ATOMIC_NUMBERS[s] for s in symbols], np.uint8),
        "R": coordinates,
        "E": energies * Hartree / (kcal / mol),
        "F": np.zeros_like(coordinates),
        "r_unit": "Ang",
        "e_unit": "kcal/mol",
    }
    return arrays | changed


def rmd17(of: Data) -> dict[str, Any]:
    (symbols, coordinates, energies) = of["a water"]
    return {
        "nuclear_charges": np.array([ATOMIC_NUMBERS[s] for s in symbols]),
        "coords": coordinates.astype(np.float64),
        "energies": energies * Hartree / (kcal / mol),
        "forces": np.zeros(coordinates.shape),
        "old_indices": np.arange(len(energies)),
    }


def test_npz_of_sgdml_and_of_rmd17(tmp_path: Path) -> None:
    of = {"a water": data()["a water"]}
    expected = read_dataset([written("ANI-1", tmp_path / "expected", of)[0]])
    for arrays in (
        sgdml(of),
        sgdml(of, E=of["a water"][2][:, None] * Hartree, e_unit=np.array("eV")),
        sgdml(of, R=of["a water"][1].astype(np.float64) / Bohr, r_unit="bohr"),
    ):
        np.savez_compressed(tmp_path / "water.npz", **arrays)
        assert digests(read_dataset([tmp_path / "water.npz"])) == digests(expected)
    np.savez(tmp_path / "rmd17_water.npz", **rmd17(of))
    with pytest.raises(DataError, match=r"does not state the unit of its energies: name it with data\.unit"):
        read_dataset([tmp_path / "rmd17_water.npz"])
    assert digests(read_dataset([tmp_path / "rmd17_water.npz"], unit="kcal/mol")) == digests(expected)


def test_npz_is_one_molecule_whatever_its_bonds(tmp_path: Path) -> None:
    symbols, coordinates, energies = data()["a water"]
    coordinates = coordinates.copy()
    coordinates[3:, 1:] *= 4
    np.savez(tmp_path / "a.npz", **sgdml({"a water": (symbols, coordinates, energies)}))
    assert [m.structures for m in read_dataset([tmp_path / "a.npz"]).molecules] == [12]


def test_structures_between_each_other_come_together_by_molecule(tmp_path: Path) -> None:
    """Distorted ones are of the molecule that they come from, and isomers are others."""
    symbols = "CCOHHHHHH"
    ethanol = np.array(
        [
            (1.17, -0.40, 0.0),
            (0.0, 0.56, 0.0),
            (-1.19, -0.21, 0.0),
            (2.11, 0.17, 0.0),
            (1.13, -1.04, 0.88),
            (1.13, -1.04, -0.88),
            (0.05, 1.20, 0.89),
            (0.05, 1.20, -0.89),
            (-1.95, 0.38, 0.0),
        ]
    )
    ether = np.array(
        [
            (1.17, -0.20, 0.0),
            (-1.17, -0.20, 0.0),
            (0.0, 0.59, 0.0),
            (2.02, 0.48, 0.0),
            (1.21, -0.83, 0.89),
            (1.21, -0.83, -0.89),
            (-2.02, 0.48, 0.0),
            (-1.21, -0.83, 0.89),
            (-1.21, -0.83, -0.89),
        ]
    )
    stretched = ethanol.copy()
    stretched[8] += (-1.0, 0.3, 0)  # the bond of O and H
    random = np.random.default_rng(0)
    moved = ethanol.copy()
    moved[8] = (-0.3, 1.5, 1.3)  # from the O to another H
    geometries = [ethanol, ether, ethanol, ether, stretched, ethanol, moved]
    found = []
    for number, geometry in enumerate(geometries):
        atoms = Atoms(
            symbols, geometry + random.normal(scale=0.02, size=geometry.shape), info={"of": f"{number % 2}"}
        )
        atoms.calc = SinglePointCalculator(atoms, energy=-155.0 * Hartree + number)
        found.append(atoms)
    ase.io.write(tmp_path / "a.xyz", found)
    molecules = read_dataset([tmp_path / "a.xyz"]).molecules
    assert [m.name for m in molecules] == ["C2H6O", "C2H6O 2"]
    assert [np.round((m.energies + 155.0) * Hartree).tolist() for m in molecules] == [[0, 2, 4, 5, 6], [1, 3]]
    named = read_dataset([tmp_path / "a.xyz"], molecule="of")
    assert [m.name for m in named.molecules] == ["0", "1"]
    assert named.identities() == ("0", "1")
    assert [m.structures for m in named.molecules] == [4, 3]


def test_what_ase_reads_of_extended_xyz_is_read_the_same(tmp_path: Path) -> None:
    """Columns in another order, atomic numbers, quotes, and a cell that is not periodic."""
    random = np.random.default_rng(2)
    text = ""
    for number in range(5):
        rows = [(s, *MOLECULES["a water"][1][i]) for i, s in enumerate("OHH")]
        header = [
            'Properties=species:S:1:pos:R:3 energy=-2079.1 note="energy=5 = x"',
            'Properties=pos:R:3:forces:R:3:Z:I:1 free_energy=1 energy="-2079.2"',
            'Lattice="9 0 0 0 9 0 0 0 9" pbc="F F F" energy = -2079.3 config_type=md',
            "energy=-2.0794e3",
            "Properties=id:I:1:species:S:1:pos:R:3:tags:I:1 done energy=-2079.5 list={1 2 3}",
        ][number]
        text += f"3\n{header}\n"
        for s, *place in rows:
            x, y, z = (repr(float(v + random.normal(scale=0.03))) for v in place)
            text += {
                1: f"{x} {y}\t{z} 0 0 0 {ATOMIC_NUMBERS[s]}\n",
                3: f"{s.lower()} {x} {y} {z} 7 8\n",
                4: f"4 {s} {x} {y} {z} 1\r\n",
            }.get(number, f"  {s} {x} {y} {z}\n")
    (tmp_path / "a.xyz").write_text(text)
    expected = ase.io.read(tmp_path / "a.xyz", ":")
    (water,) = read_dataset([tmp_path / "a.xyz"]).molecules
    assert [SYMBOLS[n - 1] for n in water.atomic_numbers] == list("OHH")
    np.testing.assert_array_equal(
        water.coordinates, np.array([a.positions for a in expected]).astype(np.float32)
    )
    np.testing.assert_allclose(
        water.energies * Hartree, [a.get_potential_energy() for a in expected], rtol=1e-15
    )


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_dataset([path], **settings)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


XYZ = "3\nenergy=-2079.0\nO 0 0 0.12\nH 0 0.76 -0.47\nH 0 -0.76 -0.47\n"
"""A structure of water, in eV."""


def test_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_text("\ufeff\n" + XYZ + " \n\n" + XYZ.replace("0.12", "0.2").replace("9.0", "9.5") + "\n\n")
    assert read_dataset([path]).structures == 2
    path.write_text("\ufeff" + XYZ + XYZ.replace("0.12", "o"))
    assert "line 8: 'o' is not a coordinate" in refused(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (XYZ + "x\n", "line 6: expected a number of atoms here, then a comment and the atoms (got 'x')"),
        (XYZ + XYZ[:-20], "line 6: 3 atoms are expected, and the file ends before; is it complete?"),
        (XYZ + XYZ.replace("H 0 0.76", "H 0 o.76"), "line 9: 'o.76' is not a coordinate; correct that line"),
        (XYZ + XYZ.replace("O 0", "Q 0"), "line 8: 'Q' is not an element; use symbols such as H, C, N, O"),
        (XYZ + XYZ.replace("H 0 0.76 -0.47", "H 0 0.76"), "line 9: an atom has 4 columns here"),
        (XYZ + XYZ.replace("0.12", "nan"), "a coordinate of structure 1 (from 0) is NaN or infinite"),
        (XYZ + XYZ.replace("-2079.0", "low"), "line 7: energy=low is not a number; correct it"),
        (XYZ + XYZ.replace("energy", "dft"), "1 of 2 structures is without an energy (the first is number 1"),
        (
            XYZ + XYZ.replace("energy", "Properties=a:b energy"),
            "line 7: Properties=a:b does not name the columns",
        ),
        (
            XYZ + XYZ.replace("energy", 'Lattice="9 0 0 0 9 0 0 0 9" energy'),
            "is periodic (the first is number 1",
        ),
        (XYZ + XYZ.replace("energy", "charge=1 energy"), "is charged (the first is number 1, from 0)"),
        (
            XYZ + XYZ.replace("energy", "multiplicity=3 energy"),
            "is open-shell (the first is number 1, from 0)",
        ),
    ],
)
def test_wrong_xyz(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(text)
    assert said in refused(path)


@pytest.mark.parametrize(
    ("comment", "kind"),
    [
        ("dft=1", "without_energy"),
        ('Lattice="9 0 0 0 9 0 0 0 9" energy=-2079.1', "periodic"),
        ("charge=1 energy=-2079.1", "charged"),
        ("spin=2 energy=-2079.1", "open_shell"),
    ],
)
def test_what_cannot_be_used_is_left_out_when_asked_for(comment: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(
        XYZ + XYZ.replace("energy=-2079.0", comment) + XYZ.replace("0.12", "0.2").replace("9.0", "9.5")
    )
    assert f"leave them out with data.leave_out: [{kind}] (--leave-out {kind})" in refused(path)
    read = read_dataset([path], leave_out=(kind,))
    np.testing.assert_allclose(read.energies() * Hartree, [-2079.0, -2079.5])


def test_no_frame_has_an_energy_and_its_keys_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(XYZ.replace("energy", 'Properties=species:S:1:pos:R:3 pbc="F F F" config=a dft_energy'))
    assert "name their key with data.energy (--energy) (they have config, dft_energy)" in refused(path)
    assert read_dataset([path], energy="dft_energy").structures == 1


def test_one_more_layout_changes_nothing_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the same names for elements and coordinates as that of ANI-1x."""
    read_with: list[str] = []

    def read(group: Group, energy: str, data: DataConfig) -> list[Reading]:
        read_with.append(energy)
        return ANI1X.read(group, energy, data)

    both, _ = written("ANI-1x", tmp_path / "x")
    before = digests(read_dataset([both])), len(read_structures(both))
    with h5py.File(both, "a") as file:
        for name in MOLECULES:
            file[f"{name}/better.energy"] = file[f"{name}/wb97x_dz.energy"][:] + 1e-3
    one_more = dataclasses.replace(ANI1X, energies=("better.energy",), read=read)
    monkeypatch.setitem(READERS, "one more", one_more)
    assert (digests(read_dataset([both])), len(read_structures(both))) == before
    assert not read_with
    # It is there too: where it is asked for, and alone.
    read_dataset([both], energy="better.energy")
    with h5py.File(both, "a") as file:
        for name in MOLECULES:
            del file[f"{name}/wb97x_dz.energy"]
    assert digests(read_dataset([both])) != before[0]
    assert set(read_with) == {"better.energy"}
    assert len(read_structures(both)) == before[1]


def test_coordinates_in_another_unit_are_told_apart_by_the_energies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = written("ANI-1x", tmp_path / "x")
    before = read_structures(path)[0].coordinates
    in_bohr = dataclasses.replace(ANI1X, energies=("better.energy",), length_unit="bohr")
    monkeypatch.setitem(READERS, "in bohr", in_bohr)
    np.testing.assert_array_equal(read_structures(path)[0].coordinates, before)
    with h5py.File(path, "a") as file:
        for name in MOLECULES:
            del file[f"{name}/wb97x_dz.energy"]
    with pytest.raises(DataError, match="two layouts fit"):
        read_structures(path)
    with h5py.File(path, "a") as file:
        for name in MOLECULES:
            file[f"{name}/better.energy"] = np.zeros(len(file[f"{name}/coordinates"]))
    np.testing.assert_allclose(read_structures(path)[0].coordinates, before * Bohr, rtol=1e-6)


def test_two_layouts_that_fit_are_both_named(tmp_path: Path) -> None:
    path, _ = written("ANI-1x", tmp_path / "x")
    with h5py.File(path, "a") as file:
        file["a water/energies"] = file["a water/wb97x_dz.energy"][:] + 1e-3
    line = refused(path)
    assert "group /a water: two layouts fit, ANI-1x (atomic_numbers, coordinates, wb97x_dz.energy)" in line
    assert "and ANI-1x (atomic_numbers, coordinates, energies)" in line
    assert read_dataset([path], energy="wb97x_dz.energy").structures == 48
    with h5py.File(path, "w") as file:
        for elements in ("species", "numbers"):
            file[f"m/{elements}"] = np.array([8, 1, 1])
        file["m/coordinates"], file["m/energies"] = data()["a water"][1:]
    assert "two layouts fit, ANI-1 (species, " in refused(path)
    np.savez(tmp_path / "a.npz", **(sgdml(data()) | rmd17(data())))
    assert "it matches two layouts, sGDML: z, R, E and rMD17: nuclear_charges, coords" in refused(
        tmp_path / "a.npz"
    )


def test_formation_energies_of_spice(tmp_path: Path) -> None:
    path, _ = written("SPICE", tmp_path / "x")
    assert "have another zero, as formation energies do, set data.unusual: keep" in refused(
        path, energy="formation_energy"
    )
    read = read_dataset([path], energy="formation_energy", unusual="keep")
    assert abs(read.energies()).max() < 0.1


@pytest.mark.parametrize("smiles", ["[NH4+:1]", "[Ca+2:1]", "[O--:1]", "[H:1][O-:2]"])
def test_ions_of_spice(smiles: str, tmp_path: Path) -> None:
    path, _ = written("SPICE", tmp_path / "x")
    with h5py.File(path, "a") as file:
        file["b ammonia/smiles"][0] = smiles
    assert "group /b ammonia: 12 of 12 structures are charged" in refused(path)
    assert read_dataset([path], leave_out=("charged",)).structures == 36


def test_ions_of_torchani(tmp_path: Path) -> None:
    path, _ = written("ANI-1", tmp_path / "x")
    with h5py.File(path, "a") as file:
        file["a water/charges"] = np.array([0] * 11 + [1])
        file["b ammonia/charges"] = np.ones((12, 4))  # of atoms
    assert "group /a water: 1 of 12 structures is charged (the first is number 11" in refused(path)
    assert read_dataset([path], leave_out=("charged",)).structures == 47
    assert read_dataset([path], unusual="keep").structures == 48


@pytest.mark.parametrize(
    ("unit", "factor"), [("hartree", 1.0), ("kcal/mol", Hartree / (kcal / mol)), ("kJ/mol", 2625.4996)]
)
def test_energies_in_another_unit_than_is_said(unit: str, factor: float, tmp_path: Path) -> None:
    ase.io.write(tmp_path / "a.xyz", frames(data(), unit=factor))
    line = refused(tmp_path / "a.xyz")
    assert f"these look like {unit}; set data.unit: {unit} (--unit {unit})" in line
    assert read_dataset([tmp_path / "a.xyz"], unit=unit).structures == 48
    ase.io.write(tmp_path / "b.xyz", frames(data()))
    assert "these look like eV" in refused(tmp_path / "b.xyz", unit=unit)


def test_lengths_in_another_unit_than_is_said(tmp_path: Path) -> None:
    path, _ = written("trajectory of ASE in bohr", tmp_path / "x")
    assert "these look like bohr; set data.length_unit: bohr" in refused(path, unit="hartree")
    path, _ = written("extended XYZ", tmp_path / "y")
    assert "these look like angstrom; set data.length_unit: angstrom" in refused(path, length_unit="bohr")


@pytest.mark.parametrize("kind", ["npz", "extended XYZ"])
def test_totals_in_float32_are_said_with_what_that_costs(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for rounded in (False, True):
        of = data()
        energies = of["a water"][2] * Hartree
        if rounded:
            energies = energies.astype(np.float32).astype(np.float64)
        if kind == "npz":
            path = tmp_path / f"{rounded}.npz"
            np.savez(path, **sgdml(of, E=energies.astype(np.float32) if rounded else energies, e_unit="eV"))
        else:
            path = tmp_path / f"{rounded}.xyz"
            ase.io.write(path, frames({"a water": (*of["a water"][:2], energies)}, unit=1.0))
        read_dataset([path])
        assert ("its energies are stored in steps of up to 0.0056 kcal/mol" in caplog.text) == rounded


def test_files_in_no_known_format(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("nothing of interest")
    assert "in no known format" in refused(path)
    path.write_text("")
    assert "the file is empty" in refused(path)
    with closing(sqlite3.connect(tmp_path / "other.db")) as database:
        database.execute("CREATE TABLE trials (id INTEGER)")
        database.commit()
    before = (tmp_path / "other.db").read_bytes()
    assert "a SQLite database that ASE did not write" in refused(tmp_path / "other.db")
    assert (tmp_path / "other.db").read_bytes() == before
    path = tmp_path / "a.xyz.gz"
    path.write_bytes(gzip.compress((XYZ * 400).encode())[:-20])
    assert "not a readable file; copy or download it again" in refused(path)
    np.savez(tmp_path / "a.npz", z=np.ones(3), words=np.array(["a"]))
    assert "it holds z, which is not a known layout" in refused(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", **sgdml(data(), R=np.array([None, {}], object)))
    assert "not a readable npz file" in refused(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", **sgdml(data(), e_unit="furlong"))
    assert "it states the unit 'furlong', which is not known" in refused(tmp_path / "c.npz")
    path, _ = written("trajectory of ASE", tmp_path / "t")
    path.write_bytes(path.read_bytes()[:-2000])
    assert "ASE cannot read structure" in refused(path)
    path, _ = written("database of ASE", tmp_path / "d")
    path.write_bytes(path.read_bytes()[:9000])
    assert "ASE cannot read structure" in refused(path)


def test_a_name_does_not_decide(tmp_path: Path) -> None:
    for name in ("trajectory of ASE", "database of ASE", "extended XYZ", "SPICE"):
        path, settings = written(name, tmp_path / name)
        assert read_dataset([path.rename(tmp_path / "renamed.dat")], **settings).structures == 48


@pytest.mark.parametrize("name", ["ANI-1", "SPICE"])
def test_a_key_of_molecules_is_for_files_without_groups(name: str, tmp_path: Path) -> None:
    path, _ = written(name, tmp_path / "x")
    assert "data.molecule is for files without groups" in refused(path, molecule="system")


@pytest.mark.parametrize("name", ["extended XYZ", "trajectory of ASE", "database of ASE"])
def test_a_key_that_frames_do_not_have(name: str, tmp_path: Path) -> None:
    path, _ = written(name, tmp_path / "x")
    assert "there is no key 'smiles', which data.molecule names" in refused(path, molecule="smiles")
    assert "without an energy" in refused(path, energy="mp2")


REAL = Path(__file__).parents[3] / "shared" / "data" / "ani_gdb_s01.h5"


@pytest.mark.skipif(not REAL.exists(), reason=f"the first file of the ANI-1 release is not at {REAL}")
def test_the_first_file_of_the_release_as_frames(tmp_path: Path) -> None:
    """Structures up to 275 kcal/mol above the lowest: each is of the molecule that it is distorted from."""
    expected = read_dataset([REAL])
    assert expected.structures == 10_800
    path = tmp_path / "a.traj"
    with ase.io.Trajectory(path, "w") as trajectory:
        for molecule in expected.molecules:
            for positions, energy in zip(molecule.coordinates, molecule.energies, strict=True):
                atoms = Atoms(molecule.atomic_numbers, positions.astype(np.float64))
                atoms.calc = SinglePointCalculator(atoms, energy=energy * Hartree)
                trajectory.write(atoms)
    read = read_dataset([path])
    assert digests(read) == digests(expected)
    assert len(read.molecules) == len(expected.molecules)


def test_a_large_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found again under another name, and with other units; with another key it is parsed again."""
    monkeypatch.setattr(frame_cache, "LARGE", 1000)
    path, _ = written("extended XYZ", tmp_path / "x")
    cache, stages = tmp_path / "cache", list[str]()

    def read(path: Path, **settings: Any) -> Dataset:
        stages.clear()
        return read_dataset([path], cache=cache, progress=lambda stage, *_: stages.append(stage), **settings)

    first = read(path)
    assert "reading a.xyz" in stages
    again = read(Path(shutil.copy(path, tmp_path / "b.xyz")))
    assert again.fingerprint == first.fingerprint
    assert "reading b.xyz" not in stages
    assert read(path, molecule="system").identities() == tuple(MOLECULES)
    assert "reading a.xyz" in stages
    kept = sorted(cache.glob("*/frames.npz"))
    assert len(kept) == 2
    for file in kept:
        file.write_bytes(file.read_bytes()[:-50])
    assert read(path).fingerprint == first.fingerprint
    path.write_text(path.read_text().replace("energy=-2", "energy=-2.0"))
    with pytest.raises(DataError):
        read(path)
    assert read(tmp_path / "b.xyz").fingerprint == first.fingerprint
    assert "reading b.xyz" not in stages


def test_a_cache_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(frame_cache, "LARGE", 1000)
    path, _ = written("extended XYZ", tmp_path / "x")
    (tmp_path / "cache").touch()
    assert read_dataset([path], cache=tmp_path / "cache").structures == 48
    assert "will be parsed again next time" in caplog.text


def test_structures_across_the_blocks_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = written("extended XYZ", tmp_path / "x")
    whole = read_dataset([path])
    for size in (7, 64, 1001):
        monkeypatch.setattr(xyz, "BLOCK", size)
        assert read_dataset([path]).fingerprint == whole.fingerprint
    path.write_text(path.read_text().replace("O  ", "Q  ", 9))
    lines = path.read_text().splitlines()
    first = next(number for number, line in enumerate(lines, start=1) if line.startswith("Q"))
    assert f"line {first}: 'Q' is not an element" in refused(path)


@pytest.mark.parametrize("name", ["ANI-1", "ANI-1ccx", "torchani by formula", "SPICE"])
def test_structures_of_each_layout_can_be_predicted(name: str, tmp_path: Path) -> None:
    path, settings = written(name, tmp_path / "x")
    expected = [c for m in read_dataset([path], **settings).molecules for c in m.coordinates]
    read = [structure.coordinates for structure in read_structures(path)]
    for one, other in zip(read, expected, strict=True):
        np.testing.assert_array_equal(one, other.astype(np.float64))


EXAMPLES = Path(__file__).parents[2] / "examples"

#: The format of each study file of examples/ that is for a kind of data.
KINDS = {
    "extended-xyz": "extended XYZ",
    "ase-database": "database of ASE",
    "torchani": "torchani by formula",
    "spice": "SPICE",
    "ani1x": "ANI-1x",
    "rmd17": "rMD17",
}


def test_there_is_an_example_of_each_kind_of_data() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.yaml")} == {*KINDS, "quickstart", "report"}


@pytest.mark.parametrize("example", KINDS)
def test_the_example_of_each_kind_reads_it(example: str, tmp_path: Path) -> None:
    study = tmp_path / f"{example}.yaml"
    shutil.copy(EXAMPLES / study.name, study)
    config = load_study(study)
    file = Path(config.data.files[0])
    if example == "rmd17":
        np.savez(file, **rmd17(data()))
        expected = {"a water": data()["a water"]}
    else:
        _, write = FORMATS[KINDS[example]]
        expected = data()
        write(file, expected)
    read = read_data(config.data, no_progress)
    write_ani1(tmp_path / "expected.h5", expected)
    assert sorted(digests(read)) == sorted(digests(read_dataset([tmp_path / "expected.h5"])))
    assert set(read.elements) <= set(config.features.aev.elements)
