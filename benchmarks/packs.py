"""Training many networks: one after another, and at once: a process a core, or in one pack on a GPU."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from benchmarks.figures import Figure, Goal, Samples, cost_ratio
from benchmarks.plan import BenchmarkPlan
from benchmarks.sides import SideTask, take_turns
from benchmarks.trial_networks import trial_network
from search.work.processes import TrainingProcess
from trainer.config import DataConfig, FeatureConfig, SplitConfig, TrainConfig
from trainer.fitting.loop import fit
from trainer.fitting.scheduler import PackScheduler
from trainer.progress import no_progress
from trainer.reporting import SilentReporter
from trainer.task import Task, prepare_task

TOPIC: Final = "packs"

CPU_GOAL: Final = Goal("at least", 1.2)
GPU_GOAL: Final = Goal("at least", 5)

#: Small batches, where the cost of a step is that of its calls, and large ones, where it is the arithmetic.
BATCH_SIZES: Final = (64, 1024)


def measure(plan: BenchmarkPlan, folder: Path) -> list[Figure]:
    """Train the same networks on the shipped sample in both ways."""
    figures = []
    for batch_size in BATCH_SIZES:
        configs = [
            TrainConfig(
                **trial_network(n), batch_size=batch_size, epochs=plan.pack_epochs, seed=n, device=plan.device
            )
            for n in range(plan.pack_trials)
        ]
        # By itself a training may have all threads, which pays in large batches only.
        alone = [replace(c, threads=plan.threads if batch_size >= 1024 else 1) for c in configs]
        # What `--pack auto` does.
        way: str
        together: SideTask
        if plan.device == "cpu":
            way, goal = f"in {plan.threads} processes", CPU_GOAL
            together = partial(train_in_processes, configs, folder, plan.threads)
        else:
            way, goal = "side by side", GPU_GOAL
            together = partial(train_side_by_side, configs, folder)
        one_by_one = partial(train_one_by_one, alone, folder)
        results = take_turns({"one at a time": one_by_one, way: together}, plan.repeats, plan.threads)
        figures.append(
            cost_ratio(
                TOPIC,
                f"{len(configs)} trials of batch {batch_size}, {way}, {plan.device}",
                Samples("s", tuple(results[way])),
                Samples("s", tuple(results["one at a time"])),
                goal,
                "what `--pack auto` does",
            )
        )
    return figures


def train_one_by_one(configs: Sequence[TrainConfig], folder: Path) -> float:
    """Seconds that the trainings take one after another."""
    task = open_task(folder)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        fit(task, replace(configs[0], epochs=1), Path(place) / "first", SilentReporter())
        started = time.perf_counter()
        for number, config in enumerate(configs):
            fit(task, config, Path(place) / str(number), SilentReporter())
        return time.perf_counter() - started


def train_in_processes(configs: Sequence[TrainConfig], folder: Path, count: int) -> float:
    """Seconds that the trainings take in the processes of so many slots."""
    task = open_task(folder)
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        free: SimpleQueue[TrainingProcess] = SimpleQueue()
        pool = stack.enter_context(ThreadPoolExecutor(count))

        def train(number: int, config: TrainConfig) -> None:
            process = free.get()
            process.train(
                config, place / str(number), SilentReporter(), rungs=(), warm_start=None, progress=no_progress
            )
            free.put(process)

        for _ in range(count):
            free.put(stack.enter_context(TrainingProcess(task.settings, folder / "features")))
        # A process starts with its first training.
        list(pool.map(train, range(-count, 0), [replace(configs[0], epochs=1)] * count))
        started = time.perf_counter()
        list(pool.map(train, range(len(configs)), configs))
        return time.perf_counter() - started


def train_side_by_side(configs: Sequence[TrainConfig], folder: Path) -> float:
    """Seconds that the trainings take in one pack."""
    task, scheduler = open_task(folder), PackScheduler()
    with tempfile.TemporaryDirectory(dir=folder) as place, ThreadPoolExecutor(len(configs)) as pool:

        def train(number: int) -> None:
            fit(task, configs[number], Path(place) / str(number), SilentReporter(), scheduler=scheduler)

        fit(task, replace(configs[0], epochs=1), Path(place) / "first", SilentReporter())
        started = time.perf_counter()
        list(pool.map(train, range(len(configs))))
        return time.perf_counter() - started


def open_task(folder: Path) -> Task:
    """The shipped sample."""
    return prepare_task(DataConfig(), SplitConfig(), FeatureConfig(), folder / "features", no_progress)
