"""Automatic choice of how many trials a worker trains at once."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from search.propose.space import example_configs, extreme_configs
from search.study import StudyConfig
from search.work.card_memory import CardMemory
from search.work.machine import free_gib, usable_cores
from trainer.config import TrainConfig
from trainer.data.splits import TEST, TRAINING, VALIDATION, Split
from trainer.errors import MemoryTakenError
from trainer.features.micro_batches import WHOLE
from trainer.features.source import CPU_LIMIT_GIB, GROUPED_FROM
from trainer.fitting.device_predictions import BATCH
from trainer.fitting.devices import (
    current_device,
    describe_card,
    device_errors_explained,
    exhausted_memory,
    find_device,
    release_memory,
    resolve_precision,
)
from trainer.fitting.gradients import OPERAND_DTYPES
from trainer.fitting.scheduler import make_packs
from trainer.fitting.training import Training
from trainer.networks.model import WEIGHT_DTYPES, weight_shapes
from trainer.networks.widths import widest
from trainer.task import Task

logger = logging.getLogger("anitune")

#: Maximum number of trainings in a pack on a GPU.
LARGEST: Final = 16

#: Number of steps of the largest batch in a measured epoch.
STEPS: Final = 2

#: Speed-up that more trials at once must bring. With fewer at once, samplers and pruners know more results.
WORTHWHILE: Final = 1.05

#: Memory of a training process without its data and network: Python, torch and matplotlib. 0.4 was measured.
PROCESS_GIB: Final = 0.5

#: Copies of the weights in a training: the weights, gradient, two moments, their average, the best ones. And
#: in each of its threads: a gradient, and weights and gradient once more where networks are joined.
STATES: Final = 6
THREAD_STATES: Final = 3

#: Share of a GPU's memory that a process can use; the rest is lost to contexts and fragmentation.
OWN_SHARE: Final = 0.9

#: Numbers per neuron and atom that a step holds: values before the activation, after it and after dropout,
#: and the gradients with respect to these.
NEURON_STATES: Final = 6


@dataclass(frozen=True)
class _Room:
    """How many trainings fit into the memory of a GPU.

    Attributes
    ----------
    trials : number of trainings
    need : bytes of one training
    features : bytes that all trainings share
    words : the reason for ``trials``
    """

    trials: int
    need: int
    features: int
    words: str

    def bytes_of(self, trials: int) -> int:
        """Return the memory of a number of trainings, including what they share."""
        return self.features + trials * self.need


def choose_concurrent_trials(
    config: StudyConfig, task: Task, device: torch.device, most: int, memory: CardMemory | None = None
) -> int:
    """Choose how many trials of a study to train at once on this machine, and log the reason.

    On the CPU: one per core that this process may use, as far as memory allows, and fewer if a trial has
    several threads. Each trial has its own process. On two cores this trained 8 small networks 1.5 times as
    fast as one at a time in batches of 64, and 1.3 times in batches of 1,024; in one pack they were 0.9 and
    1.04 times as fast (``docs/benchmarks.md``, packs), so there are no packs on the CPU.

    On a GPU, where trainings share batches: as many as a measurement finds worthwhile, among the numbers that
    fit into the memory besides what other workers have announced.

    Parameters
    ----------
    most : number of trials that are left to train, 1 or more
    memory : memory of the GPU, shared with other workers
    """
    extremes = [resolve_precision(each) for each in extreme_configs(config)]
    if device.type == "cuda":
        concurrent_trials, reason = _concurrent_trials_on_gpu(config, task, device, extremes, most, memory)
    else:
        concurrent_trials, reason = _concurrent_trials_on_cpu(task, device, extremes)
    concurrent_trials = max(1, min(concurrent_trials, most))
    at_once = f"{concurrent_trials} trials at once" if concurrent_trials > 1 else "one trial at a time"
    logger.info("%s: %s: %s", config.name, at_once, reason)
    return concurrent_trials


def concurrent_trials_by_memory(
    task: Task, configs: Sequence[TrainConfig], memory: CardMemory | None = None
) -> int:
    """Return how many of these trainings, 1 or more, fit at once on their device.

    On the CPU each training has its own process and a core for each of its threads. On a GPU the trainings
    share the memory.
    """
    resolved = [resolve_precision(each) for each in configs]
    device = find_device(resolved[0].device)
    if device.type != "cuda":
        concurrent_trials, _ = _concurrent_trials_on_cpu(task, device, resolved)
        return max(1, min(concurrent_trials, len(configs)))
    with device_errors_explained(device), current_device(device):
        room = _room_on_gpu(task, device, resolved, memory)
    concurrent_trials = max(1, min(room.trials, len(configs)))
    if memory is not None:
        memory.announce(room.bytes_of(concurrent_trials))
    return concurrent_trials


def announce_concurrent_trials(
    config: StudyConfig, task: Task, device: torch.device, concurrent_trials: int, memory: CardMemory
) -> None:
    """Announce to other workers on a GPU how much memory a chosen number of concurrent trials will take."""
    extremes = [resolve_precision(each) for each in extreme_configs(config)]
    room = _room_on_gpu(task, device, extremes, memory)
    memory.announce(room.bytes_of(concurrent_trials))
    if room.trials < concurrent_trials:
        logger.warning("%s: %d trials at once may not fit: %s", config.name, concurrent_trials, room.words)


def _concurrent_trials_on_cpu(
    task: Task, device: torch.device, configs: Sequence[TrainConfig]
) -> tuple[int, str]:
    threads = max(each.threads for each in configs)
    dataset = sum(m.coordinates.nbytes + m.energies.nbytes for m in task.dataset.molecules) / 2**30
    need = PROCESS_GIB + dataset + max(training_gib(task, each, device) for each in configs)
    cores, free = usable_cores(), free_gib()
    return int(
        min(cores // threads, free / need)
    ), f"{cores} cores, {threads} for a trial; {free:.3g} GiB free, {need:.3g} for a trial"


def _concurrent_trials_on_gpu(
    config: StudyConfig,
    task: Task,
    device: torch.device,
    extremes: Sequence[TrainConfig],
    most: int,
    memory: CardMemory | None,
) -> tuple[int, str]:
    room = _room_on_gpu(task, device, extremes, memory)
    concurrent_trials, reason = _worthwhile_on_gpu(config, task, room, most)
    if memory is not None:
        memory.announce(room.bytes_of(max(1, concurrent_trials)))
    return concurrent_trials, reason


def _worthwhile_on_gpu(config: StudyConfig, task: Task, room: _Room, most: int) -> tuple[int, str]:
    limit = min(most, room.trials)
    if limit <= 1:
        return limit, room.words
    sizes = [2**n for n in range(limit.bit_length())]
    seconds = measure_sizes(
        task, [resolve_precision(each) for each in example_configs(config, sizes[-1])], sizes
    )
    measured = ", ".join(f"{size}: {seconds[1] / took:.2f}" for size, took in seconds.items())
    if not seconds:
        return 1, f"out of memory with one trial; {room.words}"
    return worthwhile(seconds), f"relative throughput by number of trials at once: {measured}; {room.words}"


def _room_on_gpu(
    task: Task, device: torch.device, configs: Sequence[TrainConfig], memory: CardMemory | None
) -> _Room:
    """Divide the free memory of a GPU, less what others have announced, and announce the result."""
    need = max(training_gib(task, each, device) for each in configs)
    with memory.planning() if memory is not None else nullcontext(0) as others:
        if memory is not None:
            _leave_to_others(device, others)
        # The features, which all trainings share, are loaded before the rest of the memory is divided.
        fits = True
        try:
            for each in task.choices.values() or (task,):
                Training(each, configs[-1], None)
        except BaseException as error:
            if exhausted_memory(error) != "device":
                raise
            fits = False
        release_memory(device)
        features = torch.cuda.memory_reserved(device)
        free = (torch.cuda.mem_get_info(device)[0] - others) / 2**30
        words = f"{free:.3g} GiB free, {need:.3g} for a trial"
        if others:
            words += f"; other workers will take {others / 2**30:.3g}"
        trials = int(min(LARGEST, free / need)) if fits else 0
        if trials < 1 and need * 2**30 <= OWN_SHARE * (torch.cuda.mem_get_info(device)[1] - features):
            raise MemoryTakenError(
                f"{describe_card(device)}: {words}: other processes use the rest of its memory; start this"
                " worker when they have ended, or on another GPU"
            )
        room = _Room(trials, int(need * 2**30), features, words if fits else f"out of memory; {words}")
        if memory is not None:
            memory.announce(room.bytes_of(max(1, trials)))
    return room


def _leave_to_others(device: torch.device, others: int) -> None:
    """Limit this process to the free memory of a GPU less a number of bytes for other workers."""
    share = 1.0
    if others:
        free, total = torch.cuda.mem_get_info(device)
        share = max(0.0, min(1.0, (free - others + torch.cuda.memory_reserved(device)) / total))
    torch.cuda.set_per_process_memory_fraction(share, device)


def worthwhile(seconds: Mapping[int, float]) -> int:
    """Return the least number at once beyond which the same trials do not become faster by ``WORTHWHILE``.

    Parameters
    ----------
    seconds : time that the same trials took, by how many of them were trained at once
    """
    least = min(seconds.values())
    return min(size for size, took in seconds.items() if took <= WORTHWHILE * least)


def measure_sizes(task: Task, configs: Sequence[TrainConfig], sizes: Sequence[int]) -> dict[int, float]:
    """Measure the time of an epoch of all ``configs`` on a little of the data, by how many train at once, s.

    All sizes do the same work on the same data, so trials per hour are inversely proportional to these times,
    also on all of the data. Configurations with different batch sizes cannot share batches; they take turns,
    as in the worker. The measurement ends before the first size that does not fit into the memory.

    Parameters
    ----------
    configs : configurations with their precision resolved, for the device to measure
    sizes : numbers of trainings at once, ascending
    """
    little = _little(task, STEPS * max(config.batch_size for config in configs))
    seconds: dict[int, float] = {}
    for size in sizes:
        try:
            seconds[size] = sum(_epoch_seconds(little, some) for some in _chunks(configs, size))
        except BaseException as error:
            if exhausted_memory(error) != "device":
                raise
            logger.info("out of memory with %d trials at once: fewer will be used", size)
        if size not in seconds:
            release_memory(find_device(configs[0].device))
            break
    return seconds


def _chunks(configs: Sequence[TrainConfig], size: int) -> list[Sequence[TrainConfig]]:
    return [configs[begin : begin + size] for begin in range(0, len(configs), size)]


def _epoch_seconds(task: Task, configs: Sequence[TrainConfig]) -> float:
    seconds = 0.0
    for pack in make_packs([Training(task, config, None) for config in configs]):
        pack.train_epoch(0)  # the first epoch allocates memory and chooses kernels
        started = time.perf_counter()
        pack.train_epoch(1)
        seconds += time.perf_counter() - started
    return seconds


def _little(task: Task, structures: int) -> Task:
    """Reduce the task to a number of training structures, and an eighth of that number for validation."""
    labels = np.full_like(task.split.labels, TEST)
    random = np.random.default_rng(0)
    for label, indices, count in (
        (TRAINING, task.split.train, structures),
        (VALIDATION, task.split.validation, math.ceil(structures / 8)),
    ):
        labels[random.permutation(indices)[:count]] = label
    return task.with_split(Split(labels))


def training_gib(task: Task, config: TrainConfig, device: torch.device) -> float:
    """Estimate from above the memory that a training needs for itself, GiB."""
    task = task.of(config)
    inputs = task.features.length
    weights = sum(map(math.prod, weight_shapes(config, task.features.elements, inputs).values()))
    numbers = weights * (STATES + THREAD_STATES * config.threads)
    # On the CPU a batch is processed in micro-batches; on a GPU as a whole, also in evaluation.
    on_gpu = device.type == "cuda"
    structures = max(config.batch_size, BATCH) if on_gpu else min(config.batch_size, WHOLE) * config.threads
    atoms = sum(m.structures * m.atoms for m in task.dataset.molecules) / task.dataset.structures
    numbers += math.ceil(structures * atoms) * (inputs + NEURON_STATES * sum(widest(config.hidden)))
    gib = numbers * WEIGHT_DTYPES[config.precision].itemsize / 2**30
    return gib if on_gpu else gib + _dense_gib(task, config, atoms)


def _dense_gib(task: Task, config: TrainConfig, atoms: float) -> float:
    """Return the size of the training set's dense AEVs, GiB, if a process on the CPU copies them, else 0."""
    dtype = OPERAND_DTYPES.get(config.precision, WEIGHT_DTYPES[config.precision])
    gib = len(task.split.train) * atoms * task.features.length * dtype.itemsize / 2**30
    return gib if config.batch_size < GROUPED_FROM[dtype] and gib <= CPU_LIMIT_GIB else 0.0
