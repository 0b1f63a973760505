"""Loading a data file, compared with the chain of ``torchani.legacy_data`` that the notebook uses."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.figures import Figure, Goal, Samples, cost_ratio
from benchmarks.made_sets import made_set
from benchmarks.plan import BenchmarkPlan
from benchmarks.reference_loop import load_subsets
from benchmarks.sides import take_turns
from trainer.config import AEVConfig, SplitConfig
from trainer.data.readers import read_dataset
from trainer.data.self_energies import fit_self_energies, subtract
from trainer.data.splits import split_dataset

TOPIC: Final = "loading"

GOAL: Final = Goal("at least", 5)


def measure(plan: BenchmarkPlan, folder: Path) -> list[Figure]:
    """Read a made set, fit and subtract self-energies, and split it into subsets."""
    file = made_set(folder, plan.load_structures)
    sides = {"ours": partial(load_ours, file), "reference": partial(load_reference, file)}
    results = take_turns(sides, plan.repeats, plan.threads)
    return [
        cost_ratio(
            TOPIC,
            f"{plan.load_structures:,} structures: read, divided, self-energies subtracted",
            Samples("s", tuple(results["ours"])),
            Samples("s", tuple(results["reference"])),
            GOAL,
            "the reference's later padding to batches is not counted",
        )
    ]


def load_ours(file: Path) -> float:
    """Time our reader, s."""
    started = time.perf_counter()
    dataset = read_dataset([file])
    split = split_dataset(dataset, SplitConfig())
    subtract(dataset, fit_self_energies(dataset, split, AEVConfig().elements))
    return time.perf_counter() - started


def load_reference(file: Path) -> float:
    """Time torchani's chain, s."""
    started = time.perf_counter()
    load_subsets(file)
    return time.perf_counter() - started
