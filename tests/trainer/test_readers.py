from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from trainer.data.readers import READERS, read_dataset
from trainer.data.units import LENGTH_UNITS
from trainer.errors import DataError

WATER = ("O", "H", "H")
METHANE = ("C", "H", "H", "H", "H")
NUMBERS = {"H": 1, "C": 6, "O": 8}

Arrays = dict[str, Any]


def ani1(symbols: tuple[str, ...], coordinates: Any, energies: Any) -> Arrays:
    return {"species": np.array(symbols, dtype="S1"), "coordinates": coordinates, "energies": energies}


def ani1x(symbols: tuple[str, ...], coordinates: Any, energies: Any) -> Arrays:
    return {
        "atomic_numbers": np.array([NUMBERS[s] for s in symbols], dtype=np.uint8),
        "coordinates": coordinates,
        "wb97x_dz.energy": energies,
    }


def torchani(symbols: tuple[str, ...], coordinates: Any, energies: Any) -> Arrays:
    return {
        "numbers": np.array([NUMBERS[s] for s in symbols]),
        "coordinates": coordinates,
        "energies": energies,
    }


def spice(symbols: tuple[str, ...], coordinates: Any, energies: Any) -> Arrays:
    return {
        "atomic_numbers": np.array([NUMBERS[s] for s in symbols], np.int16),
        "conformations": coordinates,
        "formation_energy": energies + 76.0,
        "dft_total_energy": energies,
    }


#: How a test writes each layout that there is a reader for.
LAYOUTS: dict[str, Callable[..., Arrays]] = {
    "ANI-1": ani1,
    "ANI-1x": ani1x,
    "torchani": torchani,
    "SPICE": spice,
}
ENERGIES = {
    "ANI-1": "energies",
    "ANI-1x": "wb97x_dz.energy",
    "torchani": "energies",
    "SPICE": "dft_total_energy",
}
ELEMENTS = {name: layout.elements for name, layout in READERS.items()}
COORDINATES = {name: layout.coordinates for name, layout in READERS.items()}
LENGTHS = {name: LENGTH_UNITS[layout.length_unit] for name, layout in READERS.items()}

layouts = pytest.mark.parametrize("layout", READERS)


def test_every_reader_is_under_this_contract() -> None:
    assert set(LAYOUTS) == set(READERS)


def molecule(layout: str, symbols: tuple[str, ...], structures: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng([seed, len(symbols)])
    coordinates = rng.normal(size=(structures, len(symbols), 3)).astype(np.float32)
    return LAYOUTS[layout](symbols, coordinates, -76.0 + rng.normal(size=structures))


def write(path: Path, groups: dict[str, Arrays]) -> Path:
    with h5py.File(path, "w") as file:
        for name, arrays in groups.items():
            for key, values in arrays.items():
                file[f"{name}/{key}"] = values
    return path


def refused(files: list[Path], high_energy: bool = False) -> str:
    """The message of the error, which is one line."""
    with pytest.raises(DataError) as caught:
        read_dataset(files, high_energy)
    message = str(caught.value)
    assert "\n" not in message
    return message


@layouts
def test_values_come_as_they_are_written(layout: str, tmp_path: Path) -> None:
    water, methane = molecule(layout, WATER, 5), molecule(layout, METHANE, 3)
    data = read_dataset([write(tmp_path / "a.h5", {"s01/s01-0": water, "deep/er/still/s01-1": methane})])

    by_name = {m.name: m for m in data.molecules}
    assert set(by_name) == {"s01/s01-0", "deep/er/still/s01-1"}
    read = by_name["s01/s01-0"]
    assert read.atomic_numbers.tolist() == [8, 1, 1]
    assert read.atomic_numbers.dtype == np.uint8
    assert read.coordinates.dtype == np.float32
    assert read.energies.dtype == np.float64
    expected = (water[COORDINATES[layout]].astype(np.float64) * LENGTHS[layout]).astype(np.float32)
    np.testing.assert_array_equal(read.coordinates, expected)
    np.testing.assert_array_equal(read.energies, water[ENERGIES[layout]])
    assert read.formula == "H2O"
    assert data.elements == ("H", "C", "O")
    assert data.structures == 8


@layouts
def test_a_molecule_may_lie_at_the_root(layout: str, tmp_path: Path) -> None:
    data = read_dataset([write(tmp_path / "a.h5", {"/": molecule(layout, WATER, 2)})])
    assert data.structures == 2


@layouts
def test_several_files_are_one_data_set_in_their_order(layout: str, tmp_path: Path) -> None:
    one = write(tmp_path / "one.h5", {"m/0": molecule(layout, WATER, 5)})
    two = write(
        tmp_path / "two.h5", {"m/1": molecule(layout, METHANE, 3), "m/2": molecule(layout, WATER, 2, 9)}
    )
    joined = read_dataset([one, two])

    assert joined.offsets.tolist() == [0, 5, 8, 10]
    assert joined.molecule_of(np.array([0, 4, 5, 7, 8, 9])).tolist() == [0, 0, 1, 1, 2, 2]
    parts = [read_dataset([one]).energies(), read_dataset([two]).energies()]
    np.testing.assert_array_equal(joined.energies(), np.concatenate(parts))
    both = {"m/0": molecule(layout, WATER, 5), "m/1": molecule(layout, METHANE, 3)}
    both["m/2"] = molecule(layout, WATER, 2, 9)
    assert read_dataset([write(tmp_path / "joined.h5", both)]).fingerprint == joined.fingerprint


def test_layouts_can_be_joined(tmp_path: Path) -> None:
    one = write(tmp_path / "one.h5", {"m/0": molecule("ANI-1", WATER, 5)})
    two = write(tmp_path / "two.h5", {"H2O": molecule("ANI-1x", WATER, 4, seed=1)})
    assert read_dataset([one, two]).structures == 9


@layouts
def test_what_else_a_group_holds_is_left_alone(layout: str, tmp_path: Path) -> None:
    water = molecule(layout, WATER, 5)
    plain = read_dataset([write(tmp_path / "plain.h5", {"m": water})])
    more = write(tmp_path / "more.h5", {"m": water | {"normal_modes": np.ones((3, 3, 3)), "path": b"text"}})
    with h5py.File(more, "a") as file:
        file["notes/by hand"] = "no molecule"
    assert read_dataset([more]).fingerprint == plain.fingerprint


@layouts
@pytest.mark.parametrize("change", ["energies", "coordinates", "name", "order"])
def test_the_fingerprint_tells_data_apart(layout: str, change: str, tmp_path: Path) -> None:
    groups = {"a": molecule(layout, WATER, 5), "b": molecule(layout, METHANE, 5)}
    before = read_dataset([write(tmp_path / "before.h5", groups)]).fingerprint
    again = read_dataset([write(tmp_path / "again.h5", groups)]).fingerprint
    assert again == before
    if change == "energies":
        groups["a"][ENERGIES[layout]][3] += 1e-12
    elif change == "coordinates":
        groups["b"][COORDINATES[layout]][4, 0, 0] += 1e-6
    elif change == "name":
        groups["c"] = groups.pop("b")
    else:
        groups = {"a": groups["b"], "b": groups["a"]}
    assert read_dataset([write(tmp_path / "after.h5", groups)]).fingerprint != before


def test_the_word_sample_names_a_file_of_that_name_only_by_its_path(tmp_path: Path) -> None:
    path = write(tmp_path / "sample", {"m": molecule("ANI-1", WATER, 4)})
    assert read_dataset([str(path)]).structures == 4


# High-energy structures and SMILES: the ANI-1 layout alone has them.


def with_high_energy() -> Arrays:
    rng = np.random.default_rng(3)
    high = {"coordinatesHE": rng.normal(size=(2, 3, 3)).astype(np.float32), "energiesHE": rng.normal(size=2)}
    return molecule("ANI-1", WATER, 5) | high


def test_high_energy_structures_come_when_asked_for(tmp_path: Path) -> None:
    arrays = with_high_energy()
    path = write(tmp_path / "a.h5", {"m": arrays})
    np.testing.assert_array_equal(read_dataset([path]).energies(), arrays["energies"])
    high = read_dataset([path], high_energy=True)
    np.testing.assert_array_equal(high.energies(), [*arrays["energies"], *arrays["energiesHE"]])
    np.testing.assert_array_equal(high.molecules[0].coordinates[5:], arrays["coordinatesHE"])


@layouts
def test_high_energy_structures_that_are_not_there(layout: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", {"m": molecule(layout, WATER, 5)})
    assert "coordinatesHE" in refused([path], high_energy=True)


def test_half_of_the_high_energy_arrays(tmp_path: Path) -> None:
    arrays = with_high_energy()
    del arrays["energiesHE"]
    assert "there is only 'coordinatesHE'" in refused(
        [write(tmp_path / "a.h5", {"m": arrays})], high_energy=True
    )


@pytest.mark.parametrize(
    "smiles", [np.array(list("[H]O[H]"), dtype="S1"), np.array(list("[H]O[H]"), dtype=object), "[H]O[H]"]
)
def test_a_smiles_is_joined_from_its_characters(smiles: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", {"m": molecule("ANI-1", WATER, 1) | {"smiles": smiles}})
    assert read_dataset([path]).molecules[0].smiles == "[H]O[H]"


# What is missing is NaN in the ANI-1x layout; in the ANI-1 layout a NaN is a fault.


def test_missing_energies_of_ani1x_are_left_out(tmp_path: Path) -> None:
    arrays = molecule("ANI-1x", WATER, 5)
    arrays["wb97x_dz.energy"][[1, 3]] = np.nan
    arrays["coordinates"][3] = np.nan  # of a structure that is left out: no fault
    nothing = molecule("ANI-1x", METHANE, 2)
    nothing["wb97x_dz.energy"][:] = np.nan
    data = read_dataset([write(tmp_path / "a.h5", {"H2O": arrays, "CH4": nothing})])
    assert [m.name for m in data.molecules] == ["H2O"]
    np.testing.assert_array_equal(data.energies(), arrays["wb97x_dz.energy"][[0, 2, 4]])
    np.testing.assert_array_equal(data.molecules[0].coordinates, arrays["coordinates"][[0, 2, 4]])


def test_files_without_any_energy(tmp_path: Path) -> None:
    arrays = molecule("ANI-1x", WATER, 2)
    arrays["wb97x_dz.energy"][:] = np.nan
    assert "no structure with an energy" in refused([write(tmp_path / "a.h5", {"H2O": arrays})])


def test_nan_energies_of_ani1(tmp_path: Path) -> None:
    arrays = molecule("ANI-1", WATER, 5)
    arrays["energies"][[2, 4]] = np.nan
    message = refused([write(tmp_path / "a.h5", {"m": arrays})])
    assert "group /m" in message
    assert "'energies' is NaN or infinite in 2 of 5 structures (the first is number 2" in message


@layouts
@pytest.mark.parametrize(
    ("key", "value"), [("energies", np.inf), ("coordinates", np.nan), ("coordinates", -np.inf)]
)
def test_values_that_are_not_finite(layout: str, key: str, value: float, tmp_path: Path) -> None:
    arrays = molecule(layout, WATER, 5)
    key = ENERGIES[layout] if key == "energies" else COORDINATES[layout]
    arrays[key][3] = value
    message = refused([write(tmp_path / "a.h5", {"good": molecule(layout, METHANE, 2), "bad": arrays})])
    assert "a.h5, group /bad" in message
    assert f"'{key}' is NaN or infinite in 1 of 5" in message


# Files and groups that cannot be read.


def test_no_file_at_all() -> None:
    assert "no data file" in refused([])


def test_a_missing_file(tmp_path: Path) -> None:
    assert (
        refused([tmp_path / "none.h5"])
        == f"{tmp_path / 'none.h5'}: no such file; correct its name, or put it there"
    )


def test_a_folder(tmp_path: Path) -> None:
    assert "is a folder" in refused([tmp_path])


@layouts
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file(layout: str, share: float, tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", {"m": molecule(layout, WATER, 500)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert f"{path}: not a readable HDF5 file" in refused([path])


@layouts
def test_a_damaged_file(layout: str, tmp_path: Path) -> None:
    """The bytes of a compressed array are changed, so that only reading it shows the fault."""
    arrays = molecule(layout, WATER, 2000)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            chunk = file.create_dataset(f"m/{key}", data=values, compression="gzip", fletcher32=True)
        place = chunk.id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 10 : place + 20] = b"0123456789"
    path.write_bytes(bytes(content))
    assert f"{path}: not a readable HDF5 file" in refused([path])


def test_another_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_text("species,energy\n")
    assert "not a readable HDF5 file" in refused([path])


def test_hdf5_without_molecules(tmp_path: Path) -> None:
    message = refused([write(tmp_path / "a.h5", {"images": {"pixels": np.zeros(3)}})])
    assert "no group contains a molecule in a known layout" in message
    assert all(name in message for name in READERS)


@layouts
@pytest.mark.parametrize("missing", ["energies", "coordinates"])
def test_a_group_that_lacks_an_array(layout: str, missing: str, tmp_path: Path) -> None:
    key = ENERGIES[layout] if missing == "energies" else COORDINATES[layout]
    arrays = molecule(layout, WATER, 5)
    del arrays[key]
    message = refused([write(tmp_path / "a.h5", {"good": molecule(layout, METHANE, 2), "bad": arrays})])
    assert f"a.h5, group /bad: there is no dataset '{key}'" in message


@layouts
def test_a_group_that_lacks_its_elements(layout: str, tmp_path: Path) -> None:
    arrays = molecule(layout, WATER, 5)
    del arrays[ELEMENTS[layout]]
    message = refused([write(tmp_path / "a.h5", {"good": molecule(layout, METHANE, 2), "bad": arrays})])
    assert f"group /bad: there is no dataset '{ELEMENTS[layout]}'" in message


@layouts
@pytest.mark.parametrize(
    "fault", ["fewer energies", "fewer atoms", "flat coordinates", "a table of energies", "no atoms"]
)
def test_shapes_that_disagree(layout: str, fault: str, tmp_path: Path) -> None:
    arrays = molecule(layout, WATER, 5)
    energies, elements, coordinates = ENERGIES[layout], ELEMENTS[layout], COORDINATES[layout]
    if fault == "fewer energies":
        arrays[energies] = arrays[energies][:4]
    elif fault == "fewer atoms":
        arrays[elements] = arrays[elements][:2]
    elif fault == "flat coordinates":
        arrays[coordinates] = arrays[coordinates].reshape(5, 9)
    elif fault == "a table of energies":
        arrays[energies] = np.ones((5, 2))
    else:
        arrays[elements], arrays[coordinates] = arrays[elements][:0], arrays[coordinates][:, :0]
    message = refused([write(tmp_path / "a.h5", {"bad": arrays})])
    assert "a.h5, group /bad: the shapes disagree" in message
    assert str(arrays[coordinates].shape) in message


@layouts
@pytest.mark.parametrize("key", ["energies", "coordinates"])
def test_text_where_numbers_belong(layout: str, key: str, tmp_path: Path) -> None:
    arrays = molecule(layout, WATER, 1)
    arrays[ENERGIES[layout] if key == "energies" else COORDINATES[layout]] = "-76.4"
    assert "group /bad: " in (message := refused([write(tmp_path / "a.h5", {"bad": arrays})]))
    assert "does not hold numbers" in message


def test_an_unknown_symbol(tmp_path: Path) -> None:
    arrays = molecule("ANI-1", WATER, 1) | {"species": np.array(["O", "H", "Q"], dtype="S1")}
    message = refused([write(tmp_path / "a.h5", {"bad": arrays})])
    assert "group /bad: 'species' names an unknown element 'Q'" in message


@pytest.mark.parametrize("number", [0, 119, 255])
def test_a_number_of_no_element(number: int, tmp_path: Path) -> None:
    arrays = molecule("ANI-1x", WATER, 1) | {"atomic_numbers": np.array([8, 1, number], dtype=np.uint8)}
    assert f"holds {number}, which is not an atomic number" in refused(
        [write(tmp_path / "a.h5", {"bad": arrays})]
    )


# The same structures twice would lie in two parts of a split.


@layouts
def test_the_same_file_twice(layout: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", {"m": molecule(layout, WATER, 5)})
    other_name = tmp_path / "link.h5"
    other_name.symlink_to(path)
    for second in (path, other_name, tmp_path / "x" / ".." / "a.h5"):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert "is given twice" in refused([path, second])


@layouts
@pytest.mark.parametrize("common", [1, 5])
def test_structures_of_another_file_are_left_out(layout: str, common: int, tmp_path: Path) -> None:
    water, other = molecule(layout, WATER, 5), molecule(layout, WATER, 4, seed=1)
    energies = ENERGIES[layout]
    both = (COORDINATES[layout], energies)
    joined = {key: np.concatenate([other[key], water[key][:common]]) for key in both} | {
        ELEMENTS[layout]: water[ELEMENTS[layout]]
    }
    one = write(tmp_path / "one.h5", {"m/0": water})
    two = write(tmp_path / "two.h5", {"n/7": molecule(layout, METHANE, 3), "n/8": joined})
    data = read_dataset([one, two])
    assert {m.name: m.structures for m in data.molecules} == {"m/0": 5, "n/7": 3, "n/8": 4}
    assert data.duplicates == common


@layouts
def test_an_energy_in_common_is_no_fault(layout: str, tmp_path: Path) -> None:
    water, other = molecule(layout, WATER, 5), molecule(layout, WATER, 4, seed=1)
    other[ENERGIES[layout]][0] = water[ENERGIES[layout]][0]
    one, two = write(tmp_path / "one.h5", {"m": water}), write(tmp_path / "two.h5", {"m": other})
    assert read_dataset([one, two]).structures == 9
