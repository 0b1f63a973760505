"""Data files that were made to read other files, to take all memory, or to write on a person's terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5d, h5s, h5t

import trainer.data.arrays
from trainer.data.readers import read_dataset
from trainer.errors import DataError
from trainer.inference.files import read_structures

WATER = np.array([(0, 0, 0.12), (0, 0.76, -0.47), (0, -0.76, -0.47)])


def water(count: int = 4) -> dict[str, Any]:
    random = np.random.default_rng(1)
    return {
        "species": np.array(list("OHH"), "S1"),
        "coordinates": (WATER + random.normal(scale=0.05, size=(count, 3, 3))).astype(np.float32),
        "energies": -76.0 + random.normal(scale=0.05, size=count),
    }


def write(path: Path, *names: str) -> Path:
    with h5py.File(path, "w") as file:
        for name in names or ("water",):
            for key, values in water().items():
                file[f"{name}/{key}"] = values
    return path


def refused(path: Path, **options: Any) -> str:
    """The message, one line that no terminal would obey, also of the reader of structures alone."""
    with pytest.raises(DataError) as caught:
        read_dataset([path], **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """What the person may read and the file shall not: text, and molecules beside it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "passwords").write_text(
        "root:x:0:0:a secret that is long enough to be read as numbers:/root\n" * 4
    )
    write(outside / "private.h5")
    return outside


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


# Other files.


@pytest.mark.parametrize(("key", "dtype", "shape"), [("species", "S3", (3,)), ("energies", "f8", (4,))])
def test_external_storage_is_not_read(
    key: str, dtype: str, shape: tuple[int, ...], folder: Path, secret: Path
) -> None:
    path = write(folder / "a.h5")
    with h5py.File(path, "a") as file:
        del file["water"][key]
        file["water"].create_dataset(
            key, shape=shape, dtype=dtype, external=[(str(secret / "passwords"), 0, h5py.h5f.UNLIMITED)]
        )
    message = refused(path, links_outside=True)
    assert f"'{key}' has its values in another file" in message
    assert "root:x" not in message
    if key == "species":
        with pytest.raises(DataError, match="has its values in another file"):
            read_structures(path)


@pytest.mark.parametrize("form", ["absolute", "relative", "through a folder", "through a symbolic link"])
@pytest.mark.parametrize("of", ["group", "dataset"])
def test_an_external_link_leads_nowhere_outside_the_folder(
    form: str, of: str, folder: Path, secret: Path
) -> None:
    name = {
        "absolute": str(secret / "private.h5"),
        "relative": "../outside/private.h5",
        "through a folder": "sub/../../outside/private.h5",
        "through a symbolic link": "innocent.h5",
    }[form]
    (folder / "sub").mkdir()
    (folder / "innocent.h5").symlink_to(secret / "private.h5")
    path = write(folder / "a.h5", "first")
    with h5py.File(path, "a") as file:
        if of == "group":
            file["linked"] = h5py.ExternalLink(name, "/water")
        else:
            del file["first/energies"]
            file["first/energies"] = h5py.ExternalLink(name, "/water/energies")
    message = refused(path)
    assert (
        f"a.h5, link /{'linked' if of == 'group' else 'first/energies'}: it leads to {name}, outside"
        in message
    )
    assert "--links-outside" in message
    with pytest.raises(DataError, match="outside the folder"):
        read_structures(path)
    if form != "through a folder" and of == "group":
        kept = read_dataset([path], links_outside=True, duplicates="keep")
        assert [m.name for m in kept.molecules] == ["first", "linked"]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_soft_link_is_no_way_around(steps: int, folder: Path, secret: Path) -> None:
    path = write(folder / "a.h5", "first")
    with h5py.File(path, "a") as file:
        file["door"] = h5py.ExternalLink("../outside/private.h5", "/")
        del file["first/energies"]
        file["between"] = h5py.SoftLink("/door/water/energies")
        file["first/energies"] = h5py.SoftLink("/door/water/energies" if steps == 1 else "/between")
    assert "outside the folder" in refused(path)


def test_neither_is_a_file_of_the_folder(folder: Path, secret: Path) -> None:
    with h5py.File(folder / "between.h5", "w") as file:
        file["water"] = h5py.ExternalLink("../outside/private.h5", "/water")
    path = write(folder / "a.h5", "first")
    with h5py.File(path, "a") as file:
        file["linked"] = h5py.ExternalLink("between.h5", "/water")
    assert "outside the folder" in refused(path)


@pytest.mark.parametrize("steps", [1, 3])
def test_files_that_lead_to_each_other_in_a_circle(
    steps: int, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [write(folder / f"{n}.h5", f"own-{n}") for n in range(steps + 1)]
    for n, path in enumerate(files):
        with h5py.File(path, "a") as file:
            file["next"] = h5py.ExternalLink(f"{(n + 1) % len(files)}.h5", "/")
            file["sub/next"] = h5py.SoftLink("/next")
            file["sub/loop"] = file["sub"]
            file["sub/on"] = h5py.SoftLink("loop/loop/on")
    data = read_dataset([files[0]], duplicates="keep")
    assert len(data.molecules) == steps + 1
    assert "in a circle" in caplog.text


def virtual(path: Path, *sources: tuple[str, slice], key: str = "energies", fill: float = 0.0) -> None:
    """Make a dataset virtual: of four values, a source gives those of the slice."""
    with h5py.File(path, "a") as file:
        shape, dtype = file["water"][key].shape, file["water"][key].dtype
        layout = h5py.VirtualLayout(shape, dtype)
        for name, part in sources:
            layout[part] = h5py.VirtualSource(name, f"water/{key}", shape=shape)[part]
        del file["water"][key]
        file["water"].create_virtual_dataset(key, layout, fillvalue=fill)


def test_a_virtual_data_set_has_no_sources_outside_the_folder(folder: Path, secret: Path) -> None:
    path = write(folder / "a.h5")
    virtual(path, ("../outside/private.h5", np.s_[:]))
    assert "../outside/private.h5, outside the folder" in refused(path)
    assert read_dataset([path], links_outside=True).structures == 4


@pytest.mark.parametrize("key", ["energies", "coordinates"])
def test_a_virtual_data_set_without_its_source_is_not_filled(key: str, folder: Path) -> None:
    path = write(folder / "a.h5")
    virtual(path, ("lost.h5", np.s_[:]), key=key, fill=-76.0)
    assert f"'{key}': it leads to lost.h5, which is missing" in refused(path)


def test_a_virtual_data_set_whose_sources_leave_a_gap_is_not_filled(folder: Path) -> None:
    path = write(folder / "a.h5")
    write(folder / "b.h5")
    virtual(path, ("b.h5", np.s_[:2]), ("b.h5", np.s_[3:]), fill=-76.0)
    assert "its sources give 3 of its 4 values" in refused(path)


def test_sources_that_overlap_and_leave_a_gap_are_not_filled(folder: Path) -> None:
    path = write(folder / "a.h5")
    write(folder / "b.h5")
    virtual(path, ("b.h5", np.s_[:2]), ("b.h5", np.s_[1:3]))
    assert "its sources give 3 of its 4 values" in refused(path)


def test_a_source_that_was_cut_short_is_not_filled(folder: Path) -> None:
    path = write(folder / "a.h5")
    write(folder / "b.h5")
    virtual(path, ("b.h5", np.s_[:]), fill=-76.0)
    with h5py.File(folder / "b.h5", "a") as file:
        del file["water/energies"]
        file["water/energies"] = [-76.0, -76.1]
    assert "other values than it needs" in refused(path)


def test_a_source_has_no_external_storage_either(folder: Path, secret: Path) -> None:
    path = write(folder / "a.h5")
    write(folder / "b.h5")
    virtual(path, ("b.h5", np.s_[:]))
    with h5py.File(folder / "b.h5", "a") as file:
        del file["water/energies"]
        file["water"].create_dataset(
            "energies", (4,), "f8", external=[(str(secret / "passwords"), 0, h5py.h5f.UNLIMITED)]
        )
    assert "has its values in another file" in refused(path)


def test_virtual_data_sets_in_a_circle(folder: Path) -> None:
    write(folder / "a.h5")
    write(folder / "b.h5")
    virtual(folder / "a.h5", ("b.h5", np.s_[:]))
    virtual(folder / "b.h5", ("a.h5", np.s_[:]))
    assert "in a circle" in refused(folder / "a.h5")


def test_the_environment_does_not_say_where_files_are(
    folder: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(secret / "part.h5")
    for variable in ("HDF5_EXT_PREFIX", "HDF5_VDS_PREFIX"):
        monkeypatch.setenv(variable, str(secret))
    monkeypatch.chdir(secret)
    path = write(folder / "a.h5")
    virtual(path, ("part.h5", np.s_[:]))
    assert "part.h5, which is missing" in refused(path)


# Sizes.


def contiguous(group: h5py.Group, key: str, shape: tuple[int, ...], dtype: str) -> None:
    group.create_dataset(key, shape, dtype)


def chunked(group: h5py.Group, key: str, shape: tuple[int, ...], dtype: str) -> None:
    group.create_dataset(key, shape, dtype, chunks=(1, *shape[1:]))[0] = 1


def one_large_chunk(group: h5py.Group, key: str, shape: tuple[int, ...], dtype: str) -> None:
    """A compressed chunk that is far larger than the bytes that are there, as only a hostile file has it."""
    large = (2**26, *shape[1:])
    dataset = group.create_dataset(key, large, dtype, chunks=large, compression="gzip")
    dataset.id.write_direct_chunk((0,) * len(large), b"x\x9c" + bytes(100))


def filled_with_nan(group: h5py.Group, key: str, shape: tuple[int, ...], dtype: str) -> None:
    group.create_dataset(key, shape, dtype, chunks=(64, *shape[1:]), fillvalue=np.nan)


def virtual_of_little(group: h5py.Group, key: str, shape: tuple[int, ...], dtype: str) -> None:
    group.create_dataset("little", data=np.ones((1, *shape[1:]), dtype))
    layout = h5py.VirtualLayout(shape, dtype)
    layout[:1] = h5py.VirtualSource(".", f"{group.name}/little", shape=(1, *shape[1:]))
    group.create_virtual_dataset(key, layout)


@pytest.mark.parametrize("form", [contiguous, chunked, one_large_chunk, filled_with_nan, virtual_of_little])
@pytest.mark.parametrize("key", ["energies", "coordinates"])
def test_a_small_file_that_claims_ten_gigabytes(
    form: Any, key: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder / "a.h5")
    rows = 10 * 2**30 // 8
    with h5py.File(path, "a") as file:
        del file["water"][key]
        form(file["water"], key, (rows,) if key == "energies" else (rows // 9, 3, 3), "f8")
    assert path.stat().st_size < 50_000
    allocated: list[int] = []
    empty = np.empty
    monkeypatch.setattr(
        trainer.data.arrays.np,
        "empty",
        lambda shape, *more: allocated.append(int(np.prod(shape))) or empty(shape, *more),
    )
    message = refused(path)
    assert f"'{key}' " in message
    assert any(words in message for words in ("claims", "was not written", "a chunk"))
    assert max(allocated, default=0) < 1_000


def test_text_of_a_gigabyte_a_symbol(folder: Path) -> None:
    path = write(folder / "a.h5")
    with h5py.File(path, "a") as file:
        del file["water/species"]
        file["water"].create_dataset("species", (3,), f"S{2**30}")
    assert "'species' claims 3,221,225,472 bytes" in refused(path)


def test_arrays_that_together_take_more_than_the_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One array under many names takes its size each time."""
    path = write(folder / "a.h5")
    with h5py.File(path, "a") as file:
        for number in range(100):
            file[f"more-{number}"] = file.create_group(f"g{number}")
            for key in water():
                file[f"g{number}/{key}"] = file["water"][key]
    monkeypatch.setattr(trainer.data.arrays, "MEMORY", 2_000)
    assert "this machine has" in refused(path)


@pytest.mark.parametrize("at", ["read", "find"])
def test_a_lack_of_memory_is_one_line(at: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    target = "Arrays.read" if at == "read" else "Arrays._check_size"
    monkeypatch.setattr(f"trainer.data.arrays.{target}", fails)
    assert "do not fit into the memory" in refused(write(folder / "a.h5"))


def test_arrays_that_are_well_compressed_are_read(folder: Path) -> None:
    path = folder / "a.h5"
    arrays = water(50_000)
    arrays["coordinates"][:] = np.round(arrays["coordinates"], 1)
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file.create_dataset(f"water/{key}", data=values, compression="gzip", shuffle=True)
    assert read_dataset([path], duplicates="keep").structures == 50_000


def test_groups_in_groups_overflow_no_stack(folder: Path) -> None:
    with h5py.File(folder / "a.h5", "w", libver="latest") as file:
        group = file.id
        for _ in range(30_000):
            group = h5py.h5g.create(group, b"a")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from trainer.data.readers import *; read_dataset([{str(folder / 'a.h5')!r}])",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr.splitlines()[-1].endswith("its groups are nested more than 100 deep")


# Terminals, and names.


@pytest.mark.parametrize("name", ["evil\x1b]0;owned\x07", "two\nlines", "right\u202eleft"])
def test_names_write_nothing_on_a_terminal(name: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(folder / "a.h5", name)
    with h5py.File(path, "a") as file:
        del file[name]["energies"]
    assert "there is no dataset 'energies'" in refused(path)
    with h5py.File(path, "a") as file:
        file[f"{name}/energies"] = h5py.ExternalLink(f"{name}.h5", "/")
    assert "which is missing" in refused(path)
    with h5py.File(path, "a") as file:
        del file[f"{name}/energies"]
        file[f"{name}/energies"] = water()["energies"]
        file["link"] = h5py.ExternalLink(f"{name}.h5", "/")
    read_dataset([path])
    assert [record.getMessage().isprintable() for record in caplog.records] == [True]


def test_a_name_that_is_no_text(folder: Path) -> None:
    path = write(folder / "a.h5")
    with h5py.File(path, "a") as file:
        file.id.links.move(b"water", file.id, b"\xff\xfewater")
    data = read_dataset([path])
    assert data.structures == 4
    assert len(data.fingerprint) == 64


def test_a_type_that_numpy_does_not_have(folder: Path) -> None:
    """Integers of three bytes."""
    path = write(folder / "a.h5")
    with h5py.File(path, "a") as file:
        del file["water/species"]
        kind = h5t.STD_I32LE.copy()
        kind.set_precision(24)
        kind.set_size(3)
        numbers = np.array([8, 1, 1], np.int32)
        made = h5d.create(file["water"].id, b"species", kind, h5s.create_simple((3,)))
        made.write(h5s.ALL, h5s.ALL, numbers)
    assert "'species' holds a type that NumPy does not have" in refused(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(folder: Path) -> None:
    path = write(folder / "a.h5")
    path.chmod(0)
    assert "no permission to read this file" in refused(path)
