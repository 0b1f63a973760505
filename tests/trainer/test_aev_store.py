from __future__ import annotations

import json
import logging
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from select import select

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainer.config import AEVConfig
from trainer.data.dataset import Dataset
from trainer.data.readers import read_dataset
from trainer.errors import FeatureStoreError
from trainer.features import aev_store
from trainer.features.aev import MoleculeFeatures
from trainer.features.aev_store import CHECKED, MANIFEST, open_tables, store_bytes
from trainer.progress import no_progress

CPU = torch.device("cpu")
CONFIG = AEVConfig()
FILES = {"H", "C", "O"}

#: Opens the store argv[2] of the file argv[1]; says when it computes, and then waits for a line on stdin.
BUILDER = """
import sys
from pathlib import Path
from trainer.config import AEVConfig
from trainer.data.readers import read_dataset
from trainer.features.aev_store import open_tables

def wait(stage, done, total):
    if 0 < done < total:
        print("computing", flush=True)
        sys.stdin.readline()

open_tables(read_dataset([sys.argv[1]]), AEVConfig(), Path(sys.argv[2]), wait)
"""


@pytest.fixture(scope="module")
def dataset(data_file: Path) -> Dataset:
    return read_dataset([data_file])


@pytest.fixture(scope="module")
def built(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the store of ``dataset``, which no test changes."""
    root = tmp_path_factory.mktemp("built")
    open_tables(dataset, CONFIG, root, no_progress)
    return root


def store_of(root: Path) -> Path:
    (folder,) = (path for path in root.iterdir() if path.is_dir())
    return folder


def stored_values(root: Path) -> dict[str, NDArray[np.float32]]:
    return {path.stem: np.load(path) for path in store_of(root).glob("*.npy")}


def assert_same_store(root: Path, other: Path) -> None:
    ours, theirs = stored_values(root), stored_values(other)
    assert ours.keys() == theirs.keys() == FILES
    for name in FILES:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert {p.name for p in root.iterdir()} == {p.name for p in other.iterdir()}


def no_computation(stage: str, done: int, total: int) -> None:
    pytest.fail(f"{stage} {done}/{total}: the store is there")


def start_builder(data_file: Path, root: Path) -> subprocess.Popen[str]:
    """A process that has written a part of the store, and goes on when told."""
    command = [sys.executable, "-c", BUILDER, data_file, root]
    builder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert builder.stdout is not None
    assert select([builder.stdout], [], [], 120)[0], "no part of the store is written"
    assert builder.stdout.readline() == "computing\n"
    return builder


# What the tables hold


def test_tables_hold_the_atoms_of_a_compositions_structures_in_their_order(
    dataset: Dataset, tmp_path: Path
) -> None:
    water, methane, methanol = dataset.molecules
    mixed = Dataset((methanol, water, methane, replace(water, coordinates=water.coordinates + 1)))
    opened = open_tables(mixed, CONFIG, tmp_path, no_progress)
    features = MoleculeFeatures(CONFIG, CPU)
    found = opened.compositions
    assert [some.elements for some in found.each] == [(0, 3), (0, 1), (0, 1, 3)]
    assert found.of_molecule.tolist() == [2, 0, 1, 0]
    assert opened.tables.keys() == {(0, 0), (0, 3), (1, 0), (1, 1), (2, 0), (2, 1), (2, 3)}
    for (c, e), table in opened.tables.items():
        wanted = []
        for molecule, of in zip(mixed.molecules, found.of_molecule, strict=True):
            kinds = np.sort([(1, 6, 7, 8).index(n) for n in molecule.atomic_numbers])
            if of == c:
                aevs = features.compute(molecule, slice(None))[:, kinds == e]
                kept = found.each[c].columns[found.each[c].elements.index(e)]
                wanted.append(aevs[..., kept])
        assert table.dtype == torch.float32
        assert torch.equal(table, torch.cat(wanted))


def test_the_size_is_known_before(dataset: Dataset, built: Path) -> None:
    values = stored_values(built)
    assert store_bytes(dataset, CONFIG) == sum(value.nbytes for value in values.values())
    # 40 structures each of water, methane and methanol: atoms of an element times the columns that each has.
    of_water, of_methane = 2 * 64 + 48, 4 * 96 + 48
    of_methanol = 4 * (3 * 16 + 4 * 32) + (2 * 16 + 2 * 32) + (2 * 16 + 2 * 32)
    assert store_bytes(dataset, CONFIG) == 40 * (of_water + of_methane + of_methanol) * 4


def test_threads_and_chunks_change_no_byte(
    dataset: Dataset, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aev_store, "CHUNK_BYTES", 20_000)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        open_tables(dataset, CONFIG, tmp_path, no_progress)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert_same_store(tmp_path, built)


def test_changing_what_was_mapped_changes_no_file(dataset: Dataset, built: Path) -> None:
    for table in open_tables(dataset, CONFIG, built, no_computation).tables.values():
        table.zero_()
    open_tables(dataset, CONFIG, built, no_computation, check=True)


# When it is built


def test_a_store_is_computed_once_and_with_progress(dataset: Dataset, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    open_tables(dataset, CONFIG, tmp_path, lambda *step: seen.append(step))
    assert seen[0] == ("computing features", 0, dataset.structures)
    assert seen[-1] == ("computing features", dataset.structures, dataset.structures)
    open_tables(dataset, CONFIG, tmp_path, no_computation)


def test_other_data_or_constants_have_a_store_of_their_own(dataset: Dataset, tmp_path: Path) -> None:
    fewer = Dataset(dataset.molecules[:2])
    for data, config in ((dataset, CONFIG), (fewer, CONFIG), (fewer, replace(CONFIG, zeta=16.0))):
        open_tables(data, config, tmp_path, no_progress)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 3


def truncate(folder: Path) -> None:
    content = (folder / "H.npy").read_bytes()
    (folder / "H.npy").write_bytes(content[:-1000])


def flip_a_bit(folder: Path) -> None:
    # The clock that files are stamped with may take as long for its next tick.
    time.sleep(0.02)
    content = bytearray((folder / "O.npy").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "O.npy").write_bytes(content)


def describe_other_features(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["content"]["aev"]["zeta"] = 1.0
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (truncate, r"H.npy has \d+ bytes instead of \d+"),
        (flip_a_bit, "O.npy has other content than was written"),
        (lambda folder: (folder / "C.npy").unlink(), "C.npy is missing"),
        (lambda folder: (folder / MANIFEST).unlink(), f"{MANIFEST} is missing"),
        (lambda folder: (folder / MANIFEST).write_text('{"content"'), f"{MANIFEST} cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), f"{MANIFEST} cannot be read"),
        (describe_other_features, f"{MANIFEST} describes other features"),
    ],
    ids=["truncated", "bit", "table", "no manifest", "half a manifest", "no record", "other features"],
)
def test_a_damaged_store_is_noticed_and_built_anew(
    dataset: Dataset,
    built: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], object],
    fault: str,
) -> None:
    open_tables(dataset, CONFIG, tmp_path, no_progress)
    damage(store_of(tmp_path))
    open_tables(dataset, CONFIG, tmp_path, no_progress)
    assert_same_store(tmp_path, built)
    (record,) = caplog.records
    assert record.name == "anitune"
    assert record.levelno == logging.WARNING
    assert re.search(rf"damaged \({fault}\): it is built again", record.getMessage())


# What is remembered of a check


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose digests were computed so far."""
    names: list[str] = []
    digest = aev_store._sha256
    monkeypatch.setattr(aev_store, "_sha256", lambda path: names.append(path.stem) or digest(path))
    return names


def test_files_that_were_checked_are_not_read_again(
    dataset: Dataset, tmp_path: Path, digests: list[str]
) -> None:
    open_tables(dataset, CONFIG, tmp_path, no_progress)
    open_tables(dataset, CONFIG, tmp_path, no_computation)
    assert not digests
    open_tables(dataset, CONFIG, tmp_path, no_computation, check=True)
    assert set(digests) == FILES


def test_after_a_start_of_the_system_they_are_read_once(
    dataset: Dataset, tmp_path: Path, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (boot := tmp_path / "boot_id").write_text("one\n")
    monkeypatch.setattr(aev_store, "BOOT_ID", boot)
    open_tables(dataset, CONFIG, tmp_path, no_progress)
    boot.write_text("another\n")
    for _ in range(3):
        open_tables(dataset, CONFIG, tmp_path, no_computation)
    assert len(digests) == len(FILES)


def test_where_starts_of_the_system_have_no_name_they_are_always_read(
    dataset: Dataset, tmp_path: Path, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aev_store, "BOOT_ID", tmp_path / "nothing")
    open_tables(dataset, CONFIG, tmp_path, no_progress)
    for _ in range(3):
        open_tables(dataset, CONFIG, tmp_path, no_computation)
    assert len(digests) == 3 * len(FILES)


@pytest.mark.parametrize("remembered", ["", "{", "[]"])
def test_what_is_remembered_may_be_lost(
    dataset: Dataset, tmp_path: Path, digests: list[str], remembered: str
) -> None:
    open_tables(dataset, CONFIG, tmp_path, no_progress)
    (store_of(tmp_path) / CHECKED).write_text(remembered)
    for _ in range(2):
        open_tables(dataset, CONFIG, tmp_path, no_computation)
    assert len(digests) == len(FILES)


def test_a_store_where_nothing_can_be_remembered_is_used(
    dataset: Dataset, tmp_path: Path, digests: list[str]
) -> None:
    open_tables(dataset, CONFIG, tmp_path, no_progress)
    (store_of(tmp_path) / CHECKED).unlink()
    (store_of(tmp_path) / CHECKED).mkdir()
    for _ in range(2):
        open_tables(dataset, CONFIG, tmp_path, no_computation)
    assert len(digests) == 2 * len(FILES)


def test_rot_that_changes_no_time_is_found_by_a_full_check(
    dataset: Dataset, built: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_tables(dataset, CONFIG, tmp_path, no_progress)
    flip_a_bit(folder := store_of(tmp_path))
    state = aev_store._state(sorted(folder.glob("*.npy")))
    (folder / CHECKED).write_text(json.dumps(state))
    open_tables(dataset, CONFIG, tmp_path, no_computation)
    assert not caplog.records
    open_tables(dataset, CONFIG, tmp_path, no_progress, check=True)
    assert "O.npy has other content than was written" in caplog.text
    assert_same_store(tmp_path, built)


# Other processes, and an end in the middle


def test_what_a_killed_process_left_is_not_used(
    dataset: Dataset, built: Path, data_file: Path, tmp_path: Path
) -> None:
    with start_builder(data_file, tmp_path) as builder:
        builder.kill()
    (left,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert left.name.endswith(".unfinished")
    open_tables(dataset, CONFIG, tmp_path, no_progress)
    assert_same_store(tmp_path, built)


def test_a_process_waits_for_another_that_builds(
    dataset: Dataset, built: Path, data_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with start_builder(data_file, tmp_path) as builder:

        class GoOn(logging.Handler):
            """Lets the other process go on as soon as this one says that it waits."""

            def emit(self, record: logging.LogRecord) -> None:
                assert "waiting for another process that builds the feature store" in record.getMessage()
                assert builder.stdin is not None
                builder.stdin.close()

        handler = GoOn()
        logger = logging.getLogger("anitune")
        logger.addHandler(handler)
        try:
            with caplog.at_level(logging.INFO, "anitune"):
                open_tables(dataset, CONFIG, tmp_path, no_computation)
        finally:
            logger.removeHandler(handler)
        assert len(caplog.records) == 1
    assert builder.returncode == 0
    assert_same_store(tmp_path, built)


def test_an_interrupted_build_leaves_nothing(dataset: Dataset, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_tables(dataset, CONFIG, tmp_path, interrupt)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_full_disk_is_reported_in_a_line_and_leaves_nothing(dataset: Dataset, tmp_path: Path) -> None:
    # A limit on the size of files fails as a full disk does: in the middle of a write.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(FeatureStoreError, match=r"cannot be built or read: .*: free space") as caught:
            open_tables(dataset, CONFIG, tmp_path, no_progress)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_root_that_is_no_folder_is_reported(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatureStoreError, match="Not a directory"):
        open_tables(dataset, CONFIG, tmp_path / "file" / "features", no_progress)


MEASURED_BUILD = """
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from trainer.config import AEVConfig
from trainer.data.dataset import Dataset
from trainer.data.readers import read_dataset
from trainer.features.aev_store import open_tables, store_bytes
from trainer.progress import no_progress

def peak():
    # Unlike resource usage, it knows nothing of the process that this one was forked from.
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 2**10

torch.set_num_threads(2)
water = read_dataset([sys.argv[1]]).molecules[0]
coordinates = np.tile(water.coordinates, (5500, 1, 1))
many = Dataset((replace(water, coordinates=coordinates, energies=np.tile(water.energies, 5500)),))
before = peak()
open_tables(many, AEVConfig(), Path(sys.argv[2]), no_progress, memory=2**27)
print((peak() - before) / 2**20, store_bytes(many, AEVConfig()) / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no peak of the memory is known")
def test_building_stays_within_its_memory(data_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURED_BUILD, data_file, tmp_path]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    taken, stored = map(float, printed.split())
    assert taken < 128 < 147 < stored
