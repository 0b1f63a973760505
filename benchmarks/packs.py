"""Training many networks: one after another, in a process for each core, and in one pack on a GPU."""

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
from trainer.config import TaskConfig, TrainConfig
from trainer.fitting.loop import fit
from trainer.fitting.scheduler import PackScheduler
from trainer.progress import no_progress
from trainer.reporting import SilentReporter
from trainer.task import Task, prepare_task

TOPIC: Final = "packs"

CPU_GOAL: Final = Goal("at least", 1.2)
GPU_GOAL: Final = Goal("at least", 5)

#: Small batches, where calls dominate the cost of a step, and large ones, where arithmetic does.
BATCH_SIZES: Final = (64, 1024)


def measure(plan: BenchmarkPlan, folder: Path) -> list[Figure]:
    """Train the same networks on the shipped sample, one at a time and together."""
    figures = []
    for batch_size in BATCH_SIZES:
        configs = [
            TrainConfig(
                **trial_network(n), batch_size=batch_size, epochs=plan.pack_epochs, seed=n, device=plan.device
            )
            for n in range(plan.pack_trials)
        ]
        # A single training may use all threads, which pays off only in large batches.
        alone = [replace(c, threads=plan.threads if batch_size >= 1024 else 1) for c in configs]
        # This is what `--pack auto` does.
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
    """Time the trainings one after another, s."""
    task = open_task(folder)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        fit(task, replace(configs[0], epochs=1), Path(place) / "first", SilentReporter())
        started = time.perf_counter()
        for number, config in enumerate(configs):
            fit(task, config, Path(place) / str(number), SilentReporter())
        return time.perf_counter() - started


def train_in_processes(configs: Sequence[TrainConfig], folder: Path, count: int) -> float:
    """Time the trainings in ``count`` processes at once, s."""
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
            free.put(stack.enter_context(TrainingProcess(task.config, folder / "features")))
        # A process starts with its first training.
        list(pool.map(train, range(-count, 0), [replace(configs[0], epochs=1)] * count))
        started = time.perf_counter()
        list(pool.map(train, range(len(configs)), configs))
        return time.perf_counter() - started


def train_side_by_side(configs: Sequence[TrainConfig], folder: Path) -> float:
    """Time the trainings in one pack, s."""
    task, scheduler = open_task(folder), PackScheduler()
    with tempfile.TemporaryDirectory(dir=folder) as place, ThreadPoolExecutor(len(configs)) as pool:

        def train(number: int) -> None:
            fit(task, configs[number], Path(place) / str(number), SilentReporter(), scheduler=scheduler)

        fit(task, replace(configs[0], epochs=1), Path(place) / "first", SilentReporter())
        started = time.perf_counter()
        list(pool.map(train, range(len(configs))))
        return time.perf_counter() - started


def open_task(folder: Path) -> Task:
    """The task of the shipped sample."""
    return prepare_task(TaskConfig(), folder / "features", no_progress)
