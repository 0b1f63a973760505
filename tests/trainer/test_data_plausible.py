"""Structures that cannot be: named by file, group, number and value."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from trainer.data.readers import read_dataset
from trainer.errors import DataError

WATER = np.array([(0, 0, 0.12), (0, 0.76, -0.47), (0, -0.76, -0.47)])
METHANE = np.array(
    [(0, 0, 0), (0.63, 0.63, 0.63), (-0.63, -0.63, 0.63), (-0.63, 0.63, -0.63), (0.63, -0.63, -0.63)]
)

Arrays = dict[str, Any]


def water() -> Arrays:
    random = np.random.default_rng(2)
    return {
        "species": np.array(list("OHH"), "S1"),
        "coordinates": (WATER + random.normal(scale=0.05, size=(9, 3, 3))).astype(np.float32),
        "energies": -76.0 + random.normal(scale=0.05, size=9),
    }


def methane() -> Arrays:
    random = np.random.default_rng(3)
    return {
        "species": np.array(list("CHHHH"), "S1"),
        "coordinates": (METHANE + random.normal(scale=0.05, size=(7, 5, 3))).astype(np.float32),
        "energies": -40.5 + random.normal(scale=0.05, size=7),
    }


def write(path: Path, groups: dict[str, Arrays]) -> Path:
    with h5py.File(path, "w") as file:
        for name, arrays in groups.items():
            for key, values in arrays.items():
                file[f"{name}/{key}"] = values
    return path


def at_one_place(a: Arrays) -> None:
    a["coordinates"][4, 1] = a["coordinates"][4, 0]


def near(a: Arrays) -> None:
    a["coordinates"][4, 2] = a["coordinates"][4, 1] + np.float32(0.05)


def far_from_the_origin(a: Arrays) -> None:
    """The difference of large numbers says too much or too little."""
    a["coordinates"][4] += 1000.0
    a["coordinates"][4, 1] = a["coordinates"][4, 0]


def zero(a: Arrays) -> None:
    a["coordinates"][4] = 0.0


def a_kilometre(a: Arrays) -> None:
    a["coordinates"][4, 0, 2] = 1e13


def huge(a: Arrays) -> None:
    a["energies"][4] = 1e22


def electron_volts(a: Arrays) -> None:
    a["energies"] *= 27.211386


FAULTS: dict[Callable[[Arrays], None], str] = {
    at_one_place: "a.h5, group /bad, structure 4 (from 0): its atoms 0 and 1 (O and H) are 0.000 Å apart",
    near: "a.h5, group /bad, structure 4 (from 0): its atoms 1 and 2 (H and H) are 0.087 Å apart",
    far_from_the_origin: "structure 4 (from 0): its atoms 0 and 1 (O and H) are 0.000 Å apart",
    zero: "structure 4 (from 0): all its coordinates are zero; remove it",
    a_kilometre: "structure 4 (from 0): an atom is 6.67e+12 Å away from the center",
    huge: "structure 4 (from 0): its energy is 1e+22, which is not possible in hartree for H2O",
    electron_volts: "27.2 times those of the atoms if they are in hartree: these look like eV; set",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_structure_that_cannot_be(fault: Callable[[Arrays], None], tmp_path: Path) -> None:
    bad = water()
    fault(bad)
    with pytest.raises(DataError) as caught:
        read_dataset([write(tmp_path / "a.h5", {"bad": bad, "fine": methane()})])
    assert FAULTS[fault] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_coordinates_of_a_group_are_zero(tmp_path: Path) -> None:
    bad = water()
    bad["coordinates"][:] = 0
    with pytest.raises(
        DataError, match=r"structure 0 \(from 0\) \(and 8 more\): all its coordinates are zero"
    ):
        read_dataset([write(tmp_path / "a.h5", {"bad": bad, "fine": methane()})])


def test_the_number_is_that_in_the_file(tmp_path: Path) -> None:
    """Also where structures without an energy were left out before, and among those of high energy."""
    bad = water()
    at_one_place(bad)
    ani1x = {
        "atomic_numbers": [8, 1, 1],
        "coordinates": bad["coordinates"],
        "wb97x_dz.energy": bad["energies"],
    }
    ani1x["wb97x_dz.energy"][[0, 2]] = np.nan
    with pytest.raises(DataError, match=r"group /x, structure 4 \(from 0\): its atoms 0 and 1"):
        read_dataset([write(tmp_path / "a.h5", {"x": ani1x})])
    high = water()
    zero(high)
    both = methane() | {"species": np.array(list("OHH"), "S1")}
    both |= {key: value[:3] for key, value in water().items() if key != "species"}
    both |= {"coordinatesHE": high["coordinates"], "energiesHE": high["energies"] + 0.5}
    with pytest.raises(DataError, match=r"structure 4 of those of high energy \(from 0\): all its"):
        read_dataset([write(tmp_path / "b.h5", {"x": both})], high_energy=True)


@pytest.mark.parametrize("energy", [0.0, -76.4])
def test_one_energy_for_all_structures_of_a_group(energy: float, tmp_path: Path) -> None:
    bad = water()
    bad["energies"][:] = energy
    with pytest.raises(DataError, match=r"group /bad: all 9 structures have the same energy"):
        read_dataset([write(tmp_path / "a.h5", {"fine": methane(), "bad": bad})])


def test_one_energy_for_all_groups(tmp_path: Path) -> None:
    groups = {}
    for number in range(4):
        groups[f"g{number}"] = {
            key: value if key == "species" else value[number : number + 1] for key, value in water().items()
        }
        groups[f"g{number}"]["energies"] = np.zeros(1)
    with pytest.raises(DataError, match="all 4 structures after it: they have the same energy, 0"):
        read_dataset([write(tmp_path / "a.h5", groups)])


def test_a_single_atom_may_lie_at_the_origin(tmp_path: Path) -> None:
    atom = {"species": np.array(["O"], "S1"), "coordinates": np.zeros((1, 1, 3)), "energies": [-75.0]}
    assert read_dataset([write(tmp_path / "a.h5", {"O": atom, "water": water()})]).structures == 10


# Types that are too coarse.


@pytest.mark.parametrize(
    ("kind", "step"), [("f8", None), ("f4", "0.0048"), ("f2", "39"), ("i8", "6.3e+02"), (">f4", "0.0048")]
)
def test_energies_in_wide_steps_are_warned_of(
    kind: str, step: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coarse = water()
    coarse["energies"] = (coarse["energies"] - np.arange(9)).astype(kind)
    path = write(tmp_path / "a.h5", {"m": coarse})
    with caplog.at_level(logging.WARNING, logger="anitune"):
        read_dataset([path], duplicates="keep")
    assert caplog.messages == (
        []
        if step is None
        else [
            f"{path}: its energies are stored in steps of up to {step} kcal/mol: errors cannot come below "
            "that; "
            "write them as float64"
        ]
    )
