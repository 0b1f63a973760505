"""The feature store: build time, memory, size, and time to open."""

from __future__ import annotations

import tempfile
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks.figures import Figure, Goal, Samples, plain, rate_ratio
from benchmarks.made_sets import made_set
from benchmarks.plan import BenchmarkPlan
from benchmarks.sides import peak_memory, take_turns
from trainer.config import AEVConfig, DataConfig, FeatureConfig, TaskConfig
from trainer.data.dataset import Dataset
from trainer.data.elements import ATOMIC_NUMBERS
from trainer.data.readers import read_dataset
from trainer.features.aev import aev_length
from trainer.features.source import open_features
from trainer.progress import no_progress
from trainer.task import prepare_task

with warnings.catch_warnings():
    # torchani warns that its CUDA extensions were not compiled; neither side uses them.
    warnings.filterwarnings("ignore", message="The extensions", category=UserWarning)
    from torchani.aev import AEVComputer

TOPIC: Final = "features"

BUILD_GOAL: Final = Goal("at least", 2)

#: Structures in a padded batch of the reference; larger batches are slower on a CPU.
PADDED_BATCH: Final = 2048


@dataclass(frozen=True)
class Build:
    """One pass over all structures.

    Attributes
    ----------
    rate : structures/s
    memory : growth of the peak of the process's memory, bytes
    size : bytes written
    """

    rate: float
    memory: int
    size: int


def measure(plan: BenchmarkPlan, folder: Path) -> list[Figure]:
    """Compare building our store with computing the same AEVs in padded batches without keeping them."""
    file = made_set(folder, plan.feature_structures)
    results = take_turns(
        {"ours": partial(build_store, file, folder), "reference": partial(compute_padded, file)},
        plan.repeats,
        plan.threads,
    )
    ours: list[Build] = results["ours"]
    reference: list[Build] = results["reference"]
    opened = take_turns({"open": partial(open_store, file, folder)}, plan.repeats + 1, plan.threads)
    dense = dense_bytes(file)
    return [
        rate_ratio(
            TOPIC,
            f"building the store, {plan.feature_structures:,} structures",
            Samples("structures/s", tuple(build.rate for build in ours)),
            Samples("structures/s", tuple(build.rate for build in reference)),
            BUILD_GOAL,
            "the reference computes AEVs and writes nothing",
        ),
        plain(TOPIC, "memory for building", "MiB", [build.memory / 2**20 for build in ours]),
        plain(TOPIC, "memory of the reference", "MiB", [build.memory / 2**20 for build in reference]),
        plain(
            TOPIC,
            "size of the store, of all AEVs as float32",
            "%",
            [100 * build.size / dense for build in ours],
        ),
        plain(
            TOPIC,
            "a new process opens data and store",
            "s",
            opened["open"][1:],  # the first run built the store
            note="reading, split, self-energies and checksums",
        ),
    ]


def build_store(file: Path, folder: Path) -> Build:
    """Compute the features of a file into an empty store."""
    dataset = read_dataset([file])
    with tempfile.TemporaryDirectory(dir=folder) as root:
        before, started = peak_memory(), time.perf_counter()
        open_features(dataset, FeatureConfig(), Path(root), no_progress)
        seconds = time.perf_counter() - started
        memory = peak_memory() - before
        size = sum(path.stat().st_size for path in Path(root).rglob("*") if path.is_file())
    return Build(dataset.structures / seconds, memory, size)


def compute_padded(file: Path) -> Build:
    """Compute the features of a file in padded batches of mixed molecules, like those of a training."""
    dataset = read_dataset([file])
    computer = AEVComputer.like_1x()
    batches = padded_batches(dataset, PADDED_BATCH, seed=0)
    before, started = peak_memory(), time.perf_counter()
    with torch.no_grad():
        for species, coordinates in batches:
            computer(species, coordinates)
    seconds = time.perf_counter() - started
    return Build(dataset.structures / seconds, peak_memory() - before, 0)


def padded_batches(dataset: Dataset, batch_size: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """All structures in a random order: (B, A) positions of the elements, -1 for padding, and (B, A, 3) Å."""
    numbers = np.array([ATOMIC_NUMBERS[element] for element in AEVConfig().elements])
    kinds = [np.argmax(m.atomic_numbers[:, None] == numbers, axis=1) for m in dataset.molecules]
    order = np.random.default_rng(seed).permutation(dataset.structures)
    batches = []
    for some in np.array_split(order, range(batch_size, len(order), batch_size)):
        owners = dataset.molecule_of(some)
        most = max(dataset.molecules[m].atoms for m in owners)
        species = np.full((len(some), most), -1, dtype=np.int64)
        coordinates = np.zeros((len(some), most, 3), dtype=np.float32)
        for row, (m, within) in enumerate(zip(owners, some - dataset.offsets[owners], strict=True)):
            atoms = dataset.molecules[m].atoms
            species[row, :atoms] = kinds[m]
            coordinates[row, :atoms] = dataset.molecules[m].coordinates[within]
        batches.append((torch.from_numpy(species), torch.from_numpy(coordinates)))
    return batches


def open_store(file: Path, folder: Path) -> float:
    """Prepare what a training needs from the file and its store, s."""
    started = time.perf_counter()
    data = DataConfig(files=(str(file),))
    prepare_task(TaskConfig(data), folder / "features", no_progress)
    return time.perf_counter() - started


def dense_bytes(file: Path) -> int:
    """Size of the AEVs of all atoms with all their columns, as float32."""
    return sum(m.structures * m.atoms for m in read_dataset([file]).molecules) * aev_length(AEVConfig()) * 4
