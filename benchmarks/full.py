"""The full set of ANI-1's small molecules: does a machine with 24 GiB build features and train in memory?"""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import training
from benchmarks.figures import Figure, Goal, plain
from benchmarks.made_sets import made_set
from benchmarks.plan import BenchmarkPlan
from benchmarks.sides import peak_memory, take_turns
from trainer.config import DataConfig, TaskConfig, TrainConfig
from trainer.fitting.loop import fit
from trainer.progress import no_progress
from trainer.reporting import SilentReporter
from trainer.task import add_features, prepare_data

TOPIC: Final = "full"

#: Memory of the machine that the full set must be trained on, less the share of its system.
MEMORY_GOAL: Final = Goal("below", 22)  # GiB
SWAP_GOAL: Final = Goal("below", 1)  # pages


@dataclass(frozen=True)
class FullRun:
    """One process from the data file to the trained network.

    Attributes
    ----------
    structures, train : numbers of structures of the set and of its training set
    read_seconds : reading, split, self-energies
    build_seconds : features, into an empty store
    fit_seconds : the whole of ``fit``
    epoch_seconds : time of each epoch, with its evaluation
    store : size of the store, bytes
    memory : largest resident memory of the process, including mapped pages of the store, bytes
    major_faults : times that the process waited for a page from the disk
    swapped_out : pages swapped out meanwhile by all processes; None if the system does not report them
    """

    structures: int
    train: int
    read_seconds: float
    build_seconds: float
    fit_seconds: float
    epoch_seconds: tuple[float, ...]
    store: int
    memory: int
    major_faults: int
    swapped_out: int | None


def measure(plan: BenchmarkPlan, folder: Path) -> list[Figure]:
    """Build the features of the set and train on it, once, in one process, as a person would."""
    file = made_set(folder, plan.full_structures)
    config = replace(
        training.CONFIG,
        epochs=plan.full_epochs,
        precision="auto",
        threads=plan.threads,
        device=plan.device,
    )
    (run,) = take_turns({"full": partial(run_full, file, folder, config)}, 1, plan.threads)["full"]
    return figures_of(run, config)


def figures_of(run: FullRun, config: TrainConfig) -> list[Figure]:
    """Figures of a run."""
    network = f"384-{'-'.join(map(str, config.hidden))}-1, batch {config.batch_size}, {config.precision}"
    trained = config.epochs * run.train / run.fit_seconds
    epochs = ", ".join(f"{seconds:.1f}" for seconds in run.epoch_seconds)
    figures = [
        plain(TOPIC, f"reading {run.structures:,} structures", "s", [run.read_seconds]),
        plain(TOPIC, "building their store", "structures/s", [run.structures / run.build_seconds]),
        plain(TOPIC, "size of the store", "GiB", [run.store / 2**30]),
        plain(
            TOPIC,
            f"training {network}, {config.device}",
            "structures/s",
            [trained],
            note=f"start included; epochs of {epochs} s",
        ),
        plain(
            TOPIC,
            "peak memory of the process",
            "GiB",
            [run.memory / 2**30],
            MEMORY_GOAL,
            "with the pages of the store that it has mapped, which the system may drop at any time",
        ),
        plain(TOPIC, "major page faults of the process", "faults", [run.major_faults]),
    ]
    swapped = "pages swapped out meanwhile, on the whole machine"
    if run.swapped_out is None:
        return [*figures, Figure(TOPIC, swapped, None, "pages", SWAP_GOAL, note="no /proc/vmstat here")]
    return [*figures, plain(TOPIC, swapped, "pages", [run.swapped_out], SWAP_GOAL)]


def run_full(file: Path, folder: Path, config: TrainConfig) -> FullRun:
    """Read, build and train in this process; the store is removed at the end."""
    swapped = swapped_out()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        started = time.perf_counter()
        data = prepare_data(TaskConfig(DataConfig(files=(str(file),))), no_progress)
        read = time.perf_counter()
        task = add_features(data, Path(place) / "features", no_progress)
        built = time.perf_counter()
        store = sum(p.stat().st_size for p in (Path(place) / "features").rglob("*") if p.is_file())
        result = fit(task, config, Path(place) / "training", SilentReporter())
        ended = time.perf_counter()
    after = swapped_out()
    return FullRun(
        structures=data.dataset.structures,
        train=len(data.split.train),
        read_seconds=read - started,
        build_seconds=built - read,
        fit_seconds=ended - built,
        epoch_seconds=tuple(record.seconds for record in result.history),
        store=store,
        memory=peak_memory(),
        major_faults=resource.getrusage(resource.RUSAGE_SELF).ru_majflt,
        swapped_out=after - swapped if after is not None and swapped is not None else None,
    )


def swapped_out() -> int | None:
    """Pages that this machine has swapped out since it started; None where there is no ``/proc/vmstat``."""
    counters = Path("/proc/vmstat")
    if not counters.exists():
        return None
    (pages,) = (line.split()[1] for line in counters.read_text().splitlines() if line.startswith("pswpout "))
    return int(pages)
