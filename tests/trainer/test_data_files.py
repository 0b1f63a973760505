"""Layouts of public files, links between files, and files that cannot be opened: what is read and said."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from trainer.data.readers import read_dataset
from trainer.errors import DataError
from trainer.inference.files import read_structures

WATER = np.array([(0, 0, 0.12), (0, 0.76, -0.47), (0, -0.76, -0.47)])
random = np.random.default_rng(4)
COORDINATES = WATER + random.normal(scale=0.05, size=(6, 3, 3))
ENERGIES = -76.0 + random.normal(scale=0.05, size=6)


def write(path: Path, groups: dict[str, dict[str, Any]] | None = None, **changed: Any) -> Path:
    """Water, with some arrays exchanged."""
    plain = {"species": np.array(list("OHH"), "S1"), "coordinates": COORDINATES, "energies": ENERGIES}
    with h5py.File(path, "w") as file:
        for name, arrays in (groups or {"m": plain | changed}).items():
            for key, values in arrays.items():
                file[f"{name}/{key}"] = values
    return path


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_dataset([path], **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Layouts.


@pytest.mark.parametrize(
    "changed",
    [
        {"species": np.array([8, 1, 1])},
        {"species": np.array([8, 1, 1], np.uint8)},
        {"species": np.tile(np.array([8, 1, 1], ">i2"), (6, 1))},
        {"species": np.tile(np.array(list("OHH"), "S2"), (6, 1))},
        {"species": np.array([["O", "H", "H"]], "S1")},
        {"species": np.array(["O", "H", "H"], object)},
        {"species": np.array(list("ohh"), "S1")},
        {"species": np.array(["O ", "H\0", " H"], "S2")},
        {"energies": ENERGIES[:, None]},
        {"energies": ENERGIES[None]},
        {"energies": ENERGIES.astype(">f8")},
        {"coordinates": COORDINATES.astype(">f8")},
    ],
    ids=[
        "atomic numbers",
        "small integers",
        "a row of integers a structure",
        "a row of symbols a structure",
        "one row",
        "texts of any length",
        "lower case",
        "padded symbols",
        "a column of energies",
        "a row of energies",
        "big-endian energies",
        "big-endian coordinates",
    ],
)
def test_another_way_to_write_the_same(changed: dict[str, Any], tmp_path: Path) -> None:
    plain = read_dataset([write(tmp_path / "plain.h5")])
    path = write(tmp_path / "a.h5", **changed)
    data = read_dataset([path])
    assert data.fingerprint == plain.fingerprint
    assert [s.symbols for s in read_structures(path)] == [("O", "H", "H")] * 6


def filled_up(value: float) -> np.ndarray:
    return np.pad(COORDINATES, ((0, 0), (0, 2), (0, 0)), constant_values=value)


@pytest.mark.parametrize("padding", [-1, 0, ""])
@pytest.mark.parametrize(
    ("shape", "coordinates"),
    [
        ("a row", COORDINATES),
        ("a row of one", COORDINATES),
        ("a row", filled_up(0.0)),
        ("a row of one", filled_up(np.nan)),
        ("a row a structure", filled_up(0.0)),
        ("a row a structure", filled_up(np.nan)),
    ],
)
def test_rows_that_are_filled_up(shape: str, coordinates: np.ndarray, padding: Any, tmp_path: Path) -> None:
    row = np.array([*"OHH", "", ""], "S1") if padding == "" else np.array([8, 1, 1, padding, padding])
    species = {"a row": row, "a row of one": row[None], "a row a structure": np.tile(row, (6, 1))}[shape]
    path = write(tmp_path / "a.h5", species=species, coordinates=coordinates)
    (molecule,) = read_dataset([path]).molecules
    assert molecule.formula == "H2O"
    np.testing.assert_array_equal(molecule.coordinates, COORDINATES.astype(np.float32))
    assert [s.symbols for s in read_structures(path)] == [("O", "H", "H")] * 6


@pytest.mark.parametrize("energy", [-76.0, [-76.0], [[-76.0]]])
def test_a_single_structure(energy: Any, tmp_path: Path) -> None:
    for coordinates in (COORDINATES[0], COORDINATES[:1]):
        path = write(tmp_path / "a.h5", coordinates=coordinates, energies=energy)
        assert read_dataset([path]).molecules[0].coordinates.shape == (1, 3, 3)


@pytest.mark.parametrize("padding", [-1, ""])
def test_a_group_of_several_molecules_is_divided(padding: Any, tmp_path: Path) -> None:
    """As torchani writes files by number of atoms; where these differ, rows are filled up."""
    rows = ["OHH", "HH" + ("" if padding == "" else "-"), "OHH", "HOH"]
    coordinates = COORDINATES[:4].copy()
    coordinates[1, 2] = np.nan  # no atom
    coordinates[3] = coordinates[3][[1, 0, 2]]
    if padding == "":
        species: Any = np.array([[*row, ""][:3] for row in rows], "S1")
    else:
        species = np.array([[{"O": 8, "H": 1, "-": padding}[s] for s in row] for row in rows])
    energies = np.array([-76.0, -1.1, -76.1, -76.2])
    path = write(
        tmp_path / "a.h5", {"3": {"species": species, "coordinates": coordinates, "energies": energies}}
    )
    data = read_dataset([path])
    assert [(m.name, m.formula, m.energies.tolist()) for m in data.molecules] == [
        ("3 H2O", "H2O", [-76.0, -76.1]),
        ("3 H2", "H2", [-1.1]),
        ("3 H2O", "H2O", [-76.2]),
    ]
    assert data.identities() == ("H2O", "H2", "H2O")
    read = read_structures(path)
    assert ["".join(s.symbols) for s in read] == ["OHH", "HH", "OHH", "HOH"]
    np.testing.assert_allclose(read[2].coordinates, coordinates[2], rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"species": np.array([3, 0, 0])},
            "'species' holds 0, which is not an atomic number (1 to 118); positions in a",
        ),
        ({"species": np.array([[3, 0, 0]] * 6)}, "'species' holds 0, which is not an atomic number"),
        (  # methane of hydrogen and carbon, or an atom that is none: a single zero tells nothing
            {"species": np.array([1, 0, 0, 0]), "coordinates": np.pad(COORDINATES, ((0, 0), (0, 1), (0, 0)))},
            "'species' holds 0, which is not an atomic number",
        ),
        (
            {"species": np.array([[8, 1, 0]]), "coordinates": COORDINATES * [[[1], [1], [0]]]},
            "'species' holds 0, which is not an atomic number",
        ),
        ({"species": np.array([[-1, -1, -1]])}, "'species' has no atom"),
        ({"species": np.array([8, 1, 1, -1])[None].repeat(2, 0)}, "the shapes disagree: 'species' (2, 4)"),
        (
            {"species": np.array([8.0, 1.0, 1.0])},
            "'species' holds float64; expected chemical symbols, or atomic",
        ),
        ({"species": np.array([True, True, True])}, "'species' holds bool; expected chemical symbols"),
        ({"species": np.array(["O", "HH"], "S2")}, "'species' names an unknown element 'HH'"),
        ({"species": np.array(["CO", "H", "H"], "S2")}, "'species' names an unknown element 'CO'"),
        ({"species": "O" + "H" * 1000}, "an unknown element 'OHHHHHHHHHHH...'; use symbols"),
        (
            {"species": np.array([[8, 1, 1]] * 5)},
            "the shapes disagree: 'species' (5, 3), 'coordinates' (6, 3, 3)",
        ),
        ({"species": np.array([[-1, -1, -1]] * 6)}, "'species' has no atom in row 0 (from 0)"),
        (
            {"energies": np.ones((3, 2))},
            "'energies' (3, 2); they must be (structures, 3, 3) and (structures,)",
        ),
        ({"energies": ENERGIES.astype(complex)}, "'energies' does not hold numbers (complex128)"),
        ({"coordinates": COORDINATES * 1e300}, "'coordinates' is NaN or infinite in 6 of 6 structures"),
        ({"energies": np.zeros(6, [("a", "f8"), ("b", "f4")])}, "'energies' holds neither numbers nor text"),
        ({"energies": h5py.Empty("f8")}, "'energies' contains no values"),
    ],
)
def test_what_is_not_clear_is_said(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    message = refused(write(tmp_path / "a.h5", **changed))
    assert f"{tmp_path / 'a.h5'}, group /m: " in message
    assert said in message


def test_high_energy_structures_alone(tmp_path: Path) -> None:
    arrays = {"species": np.array([8, 1, 1]), "coordinatesHE": COORDINATES, "energiesHE": ENERGIES}
    path = write(tmp_path / "a.h5", {"m": arrays})
    assert "there are only high-energy structures" in (line := refused(path))
    assert "--high-energy" in line
    assert read_dataset([path], high_energy=True).structures == 6


def test_a_dataset_that_was_not_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        del file["m/energies"]
        file["m"].create_dataset("energies", (6,), "f8", chunks=(2,))[:4] = ENERGIES[:4]
    assert "'energies' was not written, or only partly" in refused(path)


def test_a_group_with_the_name_of_a_dataset(tmp_path: Path) -> None:
    plain = {"species": np.array([8, 1, 1]), "coordinates": COORDINATES, "energies": ENERGIES}
    path = write(tmp_path / "a.h5", {"energies/species": plain})
    assert [m.name for m in read_dataset([path]).molecules] == ["energies/species"]
    with h5py.File(path, "a") as file:
        del file["energies/species/energies"]
        file.create_group("energies/species/energies")
    assert "'energies' is not a dataset; rename that group" in refused(path)


# Links.


def linked(folder: Path) -> Path:
    write(folder / "part.h5", {f"g/{n}": _some(n) for n in "ab"})
    return write(folder / "main.h5", {"own": _some("c")})


def _some(name: str) -> dict[str, Any]:
    shift = 1e-3 * ord(name)
    return {
        "species": np.array([8, 1, 1]),
        "coordinates": COORDINATES * (1 + shift),
        "energies": ENERGIES + shift,
    }


def names(path: Path) -> list[str]:
    return [m.name for m in read_dataset([path]).molecules]


def test_external_links_are_followed_within_the_folder(tmp_path: Path) -> None:
    path = linked(tmp_path)
    with h5py.File(path, "a") as file:
        file["more"] = h5py.ExternalLink("part.h5", "/g")
    assert names(path) == ["own", "more/a", "more/b"]
    assert len(read_structures(path)) == 18
    (tmp_path / "elsewhere").mkdir()
    other_name = tmp_path / "elsewhere" / "link.h5"
    other_name.symlink_to(path)  # its parts lie beside the file that it names
    assert names(other_name) == names(path)


def test_an_external_link_to_a_dataset(tmp_path: Path) -> None:
    path = linked(tmp_path)
    with h5py.File(path, "a") as file:
        for key in ("energies", "coordinates"):
            del file[f"own/{key}"]
        file["own/energies"] = h5py.ExternalLink("part.h5", "/g/a/energies")
        file["own/coordinates"] = h5py.SoftLink("/door/a/coordinates")
        file["door"] = h5py.ExternalLink("part.h5", "/g")
    assert read_dataset([path]).duplicates == 6
    (own, *_) = read_dataset([path], duplicates="keep").molecules
    np.testing.assert_array_equal(own.energies, _some("a")["energies"])


def test_no_group_is_read_twice(tmp_path: Path) -> None:
    path = linked(tmp_path)
    with h5py.File(path, "a") as file:
        file["again"] = file["own"]
        file["soft"] = h5py.SoftLink("/own")
        file["one"] = h5py.ExternalLink("part.h5", "/g")
        file["two"] = h5py.ExternalLink("part.h5", "/g/a")
        file["self"] = h5py.ExternalLink("main.h5", "/")
        file["circle"] = h5py.SoftLink("/")
    assert names(path) == ["again", "one/a", "one/b"]


@pytest.mark.parametrize(
    ("link", "said"),
    [
        (
            h5py.ExternalLink("lost.h5", "/"),
            "it leads to lost.h5, which is missing; put that file there, or delete",
        ),
        (h5py.ExternalLink("part.h5", "/h"), "it leads to /h in part.h5, where there is nothing; delete it"),
        (
            h5py.SoftLink("/nowhere/at/all"),
            "it leads to /nowhere in main.h5, where there is nothing; delete it",
        ),
        (h5py.SoftLink("/circle"), "it is one of several links that lead in a circle; delete it"),
    ],
)
@pytest.mark.parametrize("where", ["own/energies", "own/notes", "notes", "about/notes"])
def test_only_links_of_data_must_lead_somewhere(
    where: str, link: Any, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = linked(tmp_path)
    with h5py.File(path, "a") as file:
        if where in file:
            del file[where]
        file[where] = link
        file["circle"] = h5py.SoftLink("/circle")
    if where == "own/energies":
        assert f"main.h5, link /own/energies: {said}" in refused(path)
    else:
        assert names(path) == ["own"]
        assert f"main.h5, link /{where}: {said}" in caplog.text


# Files that cannot be opened.


def _hold(path: str, opened: Any, done: Any) -> None:
    with h5py.File(path, "r+"):
        opened.set()
        done.wait(60)


def test_a_file_that_a_program_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    path = write(tmp_path / "a.h5")
    context = multiprocessing.get_context("spawn")
    opened, done = context.Event(), context.Event()
    writer = context.Process(target=_hold, args=(str(path), opened, done))
    writer.start()
    try:
        assert opened.wait(60)
        message = refused(path)
    finally:
        done.set()
        writer.join(60)
    assert f"{path}: another program has it open for writing; try again when that has closed it" in message
    assert "download it again" not in message
    assert read_dataset([path]).structures == 6


def test_a_file_that_was_not_closed(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["x"] = 1
        file.swmr_mode = True
        file.flush()
        content = path.read_bytes()
    (tmp_path / "b.h5").write_bytes(content)
    assert "did not close it" in (message := refused(tmp_path / "b.h5"))
    assert "h5clear -s" in message


def test_a_filter_that_is_not_installed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        del file["m/coordinates"]
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((6, 3, 3))
        made.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple((6, 3, 3))
        dataset = h5py.h5d.create(
            file["m"].id, b"coordinates", h5py.h5t.py_create(np.dtype("f4")), space, made
        )
        dataset.write_direct_chunk((0, 0, 0), bytes(216))
    message = refused(path)
    assert "'coordinates' is compressed by the filter zstd (32015), which is not installed here" in message
    assert "hdf5plugin" in message
    assert "download it again" not in message


def test_how_much_of_a_truncated_file_is_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert f"again (truncated: {len(whole) - 100:,} of {len(whole):,} bytes)" in refused(path)


def test_progress_is_reported_by_groups(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", {n: _some(n) for n in "abcd"})
    told: list[tuple[str, int, int]] = []
    read_dataset([path], progress=lambda *step: told.append(step))
    assert told[0] == ("reading a.h5", 0, 1)
    assert ("reading a.h5", 4, 4) in told
    assert told[-1] == ("checking structures", 2, 2)
