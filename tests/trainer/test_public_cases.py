"""Small files like those that people reported problems of, elsewhere: what anitune makes of each."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import h5py
import pytest

from trainer.data.readers import read_dataset
from trainer.errors import DataError

CASES = Path(__file__).parents[3] / "shared" / "cases"

pytestmark = pytest.mark.skipif(not CASES.exists(), reason="the files are not here")

#: Structures that are read, or words of the line that is said.
EXPECTED: dict[str, int | str] = {
    "01-hdf5-links/master_groups.h5": 360,
    "01-hdf5-links/mixed.h5": 360,
    "01-hdf5-links/softlink.h5": 240,
    "02-vds-lost-source/vds.h5": 360,
    "02-vds-lost-source/vds_ok.h5": 360,
    "02-vds-lost-source/lost/vds.h5": "'coordinates': it leads to src.h5, which is missing",
    "02-vds-lost-source/lost/vds_coords.h5": "'coordinates': it leads to src.h5, which is missing",
    "03-overlapping-atoms/one_overlap.h5": "group /water, structure 3 (from 0): its atoms 0 and 1 (O "
    "and H) are 0.000",
    "05-hdf5-lock-filter/locked.h5": 360,
    "05-hdf5-lock-filter/blosc.h5": "group /water: 'coordinates' is compressed by the filter blosc (32001)",
    "06-torchani-layouts/ani2x_flat.h5": 120,
    "06-torchani-layouts/energies_n1.h5": 240,
    "06-torchani-layouts/he_only.h5": "there are only high-energy structures",
    "06-torchani-layouts/lower.h5": 240,
    "06-torchani-layouts/species_ints.h5": 240,
    "06-torchani-layouts/species_per_conformer.h5": 240,
    "06-torchani-layouts/torchani2.h5": 240,
    "06-torchani-layouts/vlen_str.h5": 240,
    "27-duplicates/a.h5": 360,
    "27-duplicates/one_file.h5": 360,
}


@pytest.mark.parametrize("case", EXPECTED)
def test_a_file(case: str) -> None:
    expected = EXPECTED[case]
    if isinstance(expected, int):
        assert read_dataset([CASES / case]).structures == expected
        return
    with pytest.raises(DataError) as caught:
        read_dataset([CASES / case])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("other", ["b.h5", "b_f32e.h5", "b_perm.h5"])
def test_the_same_structures_in_another_release(other: str) -> None:
    files = [CASES / "27-duplicates" / name for name in ("a.h5", other)]
    with pytest.raises(DataError, match="360 of 720 structures are duplicates"):
        read_dataset(files, duplicates="refuse")
    assert read_dataset(files).fingerprint == read_dataset(files[:1]).fingerprint


def test_variants_of_a_layout_hold_the_same() -> None:
    folder = CASES / "06-torchani-layouts"
    variants = ["energies_n1", "lower", "species_ints", "species_per_conformer", "torchani2", "vlen_str"]
    assert len({read_dataset([folder / f"{name}.h5"]).fingerprint for name in variants}) == 1
    assert read_dataset([folder / "he_only.h5"], high_energy=True).structures == 240


def _hold(path: str, opened: Any, done: Any) -> None:
    with h5py.File(path, "r+"):
        opened.set()
        done.wait(60)


def test_a_file_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    path = Path(shutil.copy(CASES / "05-hdf5-lock-filter" / "locked.h5", tmp_path))
    context = multiprocessing.get_context("spawn")
    opened, done = context.Event(), context.Event()
    writer = context.Process(target=_hold, args=(str(path), opened, done))
    writer.start()
    try:
        assert opened.wait(60)
        with pytest.raises(DataError, match="another program has it open for writing"):
            read_dataset([path])
    finally:
        done.set()
        writer.join(60)
