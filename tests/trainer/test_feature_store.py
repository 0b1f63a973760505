from __future__ import annotations

import json
import logging
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainer.config import AEVConfig, FeatureConfig
from trainer.data.dataset import Dataset
from trainer.data.readers import read_dataset
from trainer.errors import DataError, FeatureStoreError
from trainer.features.aev import AEVComputer
from trainer.features.batches import AtomBatch
from trainer.features.source import ComputedFeatures, FeatureSource, StoredFeatures, open_features
from trainer.features.store import MANIFEST, open_store
from trainer.progress import no_progress

CPU = torch.device("cpu")
CONFIG = AEVConfig()
#: Opens the store argv[2] of the file argv[1]; says when it computes, and then waits for a line on stdin.
BUILDER = """
import sys
from pathlib import Path
from trainer.config import AEVConfig
from trainer.data.readers import read_dataset
from trainer.features.store import open_store

def wait(stage, done, total):
    if 0 < done < total:
        print("computing", flush=True)
        sys.stdin.readline()

open_store(read_dataset([sys.argv[1]]), AEVConfig(), Path(sys.argv[2]), wait)
"""


@pytest.fixture(scope="module")
def dataset(data_file: Path) -> Dataset:
    return read_dataset([data_file])


@pytest.fixture(scope="module")
def built(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the store of ``dataset``, which no test changes."""
    root = tmp_path_factory.mktemp("built")
    open_store(dataset, CONFIG, root, no_progress)
    return root


def store_of(root: Path) -> Path:
    (folder,) = (path for path in root.iterdir() if path.is_dir())
    return folder


def stored_values(root: Path) -> dict[str, NDArray[np.float32]]:
    return {element: np.load(store_of(root) / f"{element}.npy") for element in CONFIG.elements}


def assert_same_store(root: Path, other: Path) -> None:
    for element, values in stored_values(root).items():
        np.testing.assert_array_equal(values, stored_values(other)[element])
    assert {p.name for p in root.iterdir()} == {p.name for p in other.iterdir()}


def no_computation(stage: str, done: int, total: int) -> None:
    pytest.fail(f"{stage} {done}/{total}: the store is there")


def start_builder(data_file: Path, root: Path) -> subprocess.Popen[str]:
    """A process that has written a part of the store, and goes on when told."""
    command = [sys.executable, "-c", BUILDER, data_file, root]
    builder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert builder.stdout is not None
    assert builder.stdout.readline() == "computing\n"
    return builder


def batch(source: FeatureSource, structures: NDArray[np.int64], positions: list[int]) -> AtomBatch:
    return source.part(structures, CPU, torch.float32).batch(torch.tensor(positions))


# What a batch holds


@pytest.mark.parametrize("kind", ["stored", "computed"])
def test_a_batch_holds_the_atoms_of_its_structures(dataset: Dataset, built: Path, kind: str) -> None:
    limit = 32.0 if kind == "stored" else 0.0
    source = open_features(dataset, FeatureConfig(store_limit_gib=limit), built, no_progress)
    assert isinstance(source, StoredFeatures if kind == "stored" else ComputedFeatures)
    # Methanol, water, methane, water; every part has its own positions.
    structures = np.array([3, 17, 45, 99, 119])
    chosen = batch(source, structures, [4, 0, 2, 1])
    assert chosen.size == 4
    rows = torch.cat(chosen.aevs)
    computer = AEVComputer.like_1x()
    for b, structure in enumerate(structures[[4, 0, 2, 1]]):
        m = int(dataset.molecule_of(np.array([structure]))[0])
        molecule = dataset.molecules[m]
        species = torch.tensor([[(1, 6, 7, 8).index(n) for n in molecule.atomic_numbers]])
        coordinates = torch.from_numpy(molecule.coordinates[[structure - dataset.offsets[m]]])
        wanted = computer(species, coordinates)[0][torch.argsort(species[0], stable=True)]
        atoms = chosen.atoms[:, b][chosen.atoms[:, b] < len(rows)]
        torch.testing.assert_close(rows[atoms], wanted, rtol=0, atol=1e-5)
        assert set((chosen.owners == b).nonzero().flatten().tolist()) == set(atoms.tolist())


def test_stored_and_computed_batches_are_equal_to_the_last_bit(dataset: Dataset, built: Path) -> None:
    stored = StoredFeatures(dataset, CONFIG, open_store(dataset, CONFIG, built, no_computation))
    computed = ComputedFeatures(dataset, CONFIG)
    random = np.random.default_rng(5)
    structures = np.sort(random.choice(dataset.structures, 70, replace=False))
    for size in (1, 7, 70):
        positions = random.permutation(70)[:size].tolist()
        one, other = batch(stored, structures, positions), batch(computed, structures, positions)
        assert len(one.aevs) == len(other.aevs) == 4
        for a, b in zip(one.aevs, other.aevs, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(one.owners, other.owners)
        assert torch.equal(one.atoms, other.atoms)


def test_precision_is_that_of_the_training(dataset: Dataset, built: Path) -> None:
    source = open_features(dataset, FeatureConfig(), built, no_computation)
    everything = np.arange(dataset.structures)
    precise = source.part(everything, CPU, torch.float64).batch(torch.tensor([0, 50]))
    for aevs, rounded in zip(precise.aevs, batch(source, everything, [0, 50]).aevs, strict=True):
        assert torch.equal(aevs, rounded.double())


def test_an_element_without_features_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    config = FeatureConfig(aev=AEVConfig(elements=("H", "C")))
    with pytest.raises(DataError, match="the data holds O"):
        open_features(dataset, config, tmp_path, no_progress)
    assert list(tmp_path.iterdir()) == []


# The store


def test_a_store_is_computed_once_and_with_progress(dataset: Dataset, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    open_store(dataset, CONFIG, tmp_path, lambda *step: seen.append(step))
    assert seen[0] == ("computing features", 0, dataset.structures)
    assert seen[-1] == ("computing features", dataset.structures, dataset.structures)
    open_store(dataset, CONFIG, tmp_path, no_computation)


def test_other_data_or_constants_have_a_store_of_their_own(dataset: Dataset, tmp_path: Path) -> None:
    fewer = Dataset(dataset.molecules[:2])
    for data, config in ((dataset, CONFIG), (fewer, CONFIG), (fewer, replace(CONFIG, zeta=16.0))):
        open_store(data, config, tmp_path, no_progress)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 3


def test_changing_what_was_mapped_changes_no_file(dataset: Dataset, built: Path) -> None:
    open_store(dataset, CONFIG, built, no_computation)[0].zero_()
    open_store(dataset, CONFIG, built, no_computation)


def truncate(folder: Path) -> None:
    content = (folder / "H.npy").read_bytes()
    (folder / "H.npy").write_bytes(content[:-1000])


def flip_a_bit(folder: Path) -> None:
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
        (flip_a_bit, "O.npy has other bytes than were written"),
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
    open_store(dataset, CONFIG, tmp_path, no_progress)
    damage(store_of(tmp_path))
    open_store(dataset, CONFIG, tmp_path, no_progress)
    assert_same_store(tmp_path, built)
    (record,) = caplog.records
    assert record.name == "anitune"
    assert record.levelno == logging.WARNING
    assert re.search(rf"damaged \({fault}\): it is built anew", record.getMessage())


def test_what_a_killed_process_left_is_not_used(
    dataset: Dataset, built: Path, data_file: Path, tmp_path: Path
) -> None:
    with start_builder(data_file, tmp_path) as builder:
        builder.kill()
    (left,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert left.name.endswith(".unfinished")
    open_store(dataset, CONFIG, tmp_path, no_progress)
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
                open_store(dataset, CONFIG, tmp_path, no_computation)
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
        open_store(dataset, CONFIG, tmp_path, interrupt)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_full_disk_is_told_in_a_line_and_leaves_nothing(dataset: Dataset, tmp_path: Path) -> None:
    # A limit on the size of files fails as a full disk does: in the middle of a write.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(FeatureStoreError, match=r"cannot be built or read: .*: free space") as caught:
            open_store(dataset, CONFIG, tmp_path, no_progress)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_root_that_is_no_folder_is_told(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatureStoreError, match="Not a directory"):
        open_store(dataset, CONFIG, tmp_path / "file" / "features", no_progress)


def test_a_store_above_the_limit_is_not_built_and_a_line_says_so(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # 40 structures each of 3, 5 and 6 atoms, 384 numbers of 4 bytes an atom.
    gib = 40 * 14 * 384 * 4 / 2**30
    config = FeatureConfig(store_limit_gib=0.0005)
    open_features(dataset, config, tmp_path, no_progress)
    assert list(tmp_path.iterdir()) == []
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("anitune", logging.WARNING)
    for said in (f"{gib:.3g} GiB", "features.store_limit_gib = 0.0005", "batch by batch"):
        assert said in record.getMessage()


MEASURED_BUILD = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from trainer.config import AEVConfig
from trainer.data.dataset import Dataset
from trainer.data.readers import read_dataset
from trainer.features.store import open_store
from trainer.progress import no_progress

torch.set_num_threads(1)
water = read_dataset([sys.argv[1]]).molecules[0]
peaks = []
for times in (200, 1000):
    many = replace(
        water, coordinates=np.tile(water.coordinates, (times, 1, 1)), energies=np.tile(water.energies, times)
    )
    open_store(Dataset((many,)), AEVConfig(), Path(sys.argv[2]), no_progress)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""


def test_the_memory_of_a_build_does_not_grow_with_the_data(data_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURED_BUILD, data_file, tmp_path]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # 32,000 more structures of water take 140 MiB more in the store.
    assert int(printed) / 1024 < 40
