"""Operations and bytes of training steps on a GPU, counted on the emulated device: no card is needed.

An operation of a CUDA graph takes some microseconds however small it is, and moving bytes takes time at the
memory's rate: both bound the time of a step from below. The count cannot tell the time on a real card.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.figures import Figure, Goal
from benchmarks.gpu_traffic import TRAFFIC
from benchmarks.made_sets import made_set
from benchmarks.plan import BenchmarkPlan
from benchmarks.sides import SideTask, take_turns
from benchmarks.training import CONFIG, EPOCH_STRUCTURES
from benchmarks.trial_networks import trial_network
from trainer.config import DataConfig, Precision, TaskConfig, TrainConfig
from trainer.fitting.device_epochs import DeviceEpochs
from trainer.fitting.device_predictions import BATCH
from trainer.fitting.gradients import OPERAND_DTYPES
from trainer.fitting.training import Training
from trainer.progress import no_progress
from trainer.task import Task, prepare_task

TOPIC: Final = "gpu-count"

PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "tf32", "bfloat16")
NETWORKS: Final = (1, 8, 16)
BATCH_SIZES: Final = (8192, 24)

#: Structures of the made set for each batch size: enough for a few batches and a validation set. Work that is
#: done once an epoch is scaled by the number of batches, since it lays them out.
STRUCTURES: Final = {8192: 12_288, 24: 960}

#: Structures of the validation set that belongs to :data:`EPOCH_STRUCTURES`.
VALIDATION_STRUCTURES: Final = 86_489

OPERATIONS_GOAL: Final = {8192: Goal("at most", 45), 24: Goal("at most", 40)}
GIGABYTES_GOAL: Final = {"tf32": Goal("at most", 45), "bfloat16": Goal("at most", 30)}
RATIO_GOAL: Final = Goal("at most", 2.5)


@dataclass(frozen=True)
class Count:
    """Operations and bytes of the training of one pack.

    Attributes
    ----------
    operations, moved : operations and bytes of a step
    epoch_operations, epoch_moved : those of an epoch of :data:`EPOCH_STRUCTURES` with its evaluation
    floor : bytes of an epoch that only reads each AEV, twice for training and once for validation
    """

    operations: int
    moved: int
    epoch_operations: float
    epoch_moved: float
    floor: float


def measure(plan: BenchmarkPlan, folder: Path) -> list[Figure]:
    """Count a step and an epoch of each kind, and compare packs with one network."""
    figures = []
    for batch_size in BATCH_SIZES:
        file = made_set(folder, STRUCTURES[batch_size])
        for precision in PRECISIONS:
            configs = [_configs(number, batch_size, precision) for number in NETWORKS]
            sides: dict[str, SideTask] = {
                str(len(some)): partial(count_on_emulated_device, file, folder, some) for some in configs
            }
            counts: dict[str, list[Count]] = take_turns(sides, 1, 2)
            for number in NETWORKS:
                figures += _figures(counts[str(number)][0], number, batch_size, precision)
            figures.append(
                Figure(
                    TOPIC,
                    f"operations of {NETWORKS[-1]} networks of mixed shapes, batch {batch_size}, {precision}",
                    counts[str(NETWORKS[-1])][0].operations / counts["1"][0].operations,
                    "times one",
                    RATIO_GOAL,
                )
            )
    return figures


def _configs(number: int, batch_size: int, precision: Precision) -> list[TrainConfig]:
    """The network of the topic ``training``, or several networks of mixed shapes."""
    config = replace(CONFIG, batch_size=batch_size, precision=precision, device="cuda:0")
    if number == 1:
        return [config]
    return [replace(config, **trial_network(n), seed=n) for n in range(number)]


def _figures(count: Count, number: int, batch_size: int, precision: Precision) -> list[Figure]:
    networks = "384-128-1" if number == 1 else f"{number} networks"
    name = f"{networks}, batch {batch_size}, {precision}"
    alone = number == 1
    return [
        Figure(
            TOPIC,
            f"a step: {name}",
            count.operations,
            "operations",
            OPERATIONS_GOAL[batch_size] if alone else None,
            note=f"{count.moved / 1e6:.4g} MB",
        ),
        Figure(
            TOPIC,
            f"an epoch of {EPOCH_STRUCTURES:,} structures: {name}",
            count.epoch_moved / 1e9,
            "GB",
            GIGABYTES_GOAL.get(precision) if alone and batch_size == BATCH_SIZES[0] else None,
            note=f"floor {count.floor / 1e9:.3g} GB; {count.epoch_operations:,.0f} operations",
        ),
    ]


def count_on_emulated_device(file: Path, folder: Path, configs: Sequence[TrainConfig]) -> Count:
    """Train a pack for some epochs on the emulated device. The process can use no real one afterwards."""
    from tools.emulated_cuda.install import install
    from tools.emulated_cuda.traffic import TRAFFIC as OF_DEVICE

    install()
    OF_DEVICE.update(TRAFFIC)
    task = prepare_task(TaskConfig(DataConfig(files=(str(file),))), folder / "features", no_progress)
    return count_epochs(task, configs)


def count_epochs(task: Task, configs: Sequence[TrainConfig]) -> Count:
    """Count an epoch, after the two epochs in which its graphs are captured."""
    from tools.emulated_cuda.traffic import counting

    trainings = [Training(task, config, None) for config in configs]
    epochs = DeviceEpochs(trainings)
    for order in range(2):
        epochs.run(order)
    with counting() as epoch:
        epochs.run(2)
    # Graphs of the emulated device have the counts of their operations.
    graphs: Any = epochs.graphs()
    (step_graph, steps), (prediction_graph, predictions) = graphs
    step, prediction = _total(step_graph.counts), _total(prediction_graph.counts)
    # Work that is done once an epoch, for all its structures: batches are laid out, errors are summed up.
    once = _total(epoch) - step * steps - prediction * predictions
    batch_size = configs[0].batch_size
    validation = len(trainings[0].validation)
    atoms = sum(m.atoms * m.structures for m in task.dataset.molecules) / task.dataset.structures
    length = task.features.length
    itemsize = OPERAND_DTYPES.get(configs[0].precision, torch.float32).itemsize
    return Count(
        operations=step.operations,
        moved=step.moved,
        epoch_operations=step.operations * math.ceil(EPOCH_STRUCTURES / batch_size)
        + prediction.operations * math.ceil(VALIDATION_STRUCTURES / BATCH)
        + once.operations,
        epoch_moved=step.moved * EPOCH_STRUCTURES / batch_size
        + prediction.moved * predictions * VALIDATION_STRUCTURES / validation
        + once.moved * math.ceil(EPOCH_STRUCTURES / batch_size) / steps,
        floor=atoms * length * (2 * EPOCH_STRUCTURES * itemsize + VALIDATION_STRUCTURES * 4),
    )


@dataclass(frozen=True)
class _Total:
    operations: int
    moved: int

    def __sub__(self, other: _Total) -> _Total:
        return _Total(self.operations - other.operations, self.moved - other.moved)

    def __mul__(self, times: int) -> _Total:
        return _Total(self.operations * times, self.moved * times)


def _total(counts: Any) -> _Total:
    return _Total(sum(counts.operations.values()), sum(counts.bytes.values()))
