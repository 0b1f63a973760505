"""How many trials a worker trains at once where it is not told."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch

from search.propose.space import example_configs, extreme_configs
from search.study import StudyConfig
from search.work.machine import free_gib, usable_cores
from trainer.config import TrainConfig
from trainer.data.splits import TEST, TRAINING, VALIDATION, Split
from trainer.evaluation.evaluate import BATCH
from trainer.features.parts import WHOLE
from trainer.features.source import CPU_LIMIT_GIB, GROUPED_FROM
from trainer.fitting.devices import (
    exhausted_memory,
    find_device,
    release_memory,
    resolve_precision,
)
from trainer.fitting.gradients import FACTOR_DTYPES
from trainer.fitting.scheduler import make_packs
from trainer.fitting.training import Training
from trainer.networks.model import WEIGHT_DTYPES
from trainer.task import Task

logger = logging.getLogger("anitune")

#: Trainings at most that go through the data together on a GPU.
LARGEST: Final = 16

#: Steps of the largest batch in an epoch that is measured.
STEPS: Final = 2

#: More trials at once must make all of them faster by this factor: the less there are, the more do their
#: samplers and pruners know.
WORTHWHILE: Final = 1.05

#: A process that trains, without its data and network: Python, torch and what draws plots. 0.4 was measured.
PROCESS_GIB: Final = 0.5

#: Copies of the weights in a training: themselves, their gradient, two moments, their average, the best ones;
#: and in each of its threads: a gradient, and both once more where networks are joined.
STATES: Final = 6
THREAD_STATES: Final = 3

#: Numbers for each neuron and atom that a step holds: before and after the activation, which are dropped, and
#: the gradients over all of these.
NEURON_STATES: Final = 6


def automatic_slots(config: StudyConfig, task: Task, device: torch.device, most: int) -> int:
    """How many trials of a study keep this machine busy; the reason is logged.

    On the CPU: one for each core that this process may use and that its memory allows, less where a trial
    has several threads. Each has a process of its own. On two cores this trained 8 small networks 1.5 times
    as fast as one at a time in batches of 64 and 1.3 times in batches of 1,024; in one pack they were 0.9
    and 1.04 times as fast (``docs/benchmarks.md``, packs), so the CPU has none.

    On a GPU, where trainings go through the data together: as many as a measurement finds worthwhile, of
    those that its memory allows.

    Parameters
    ----------
    most : trials that are left to train, 1 or more
    """
    extremes = [resolve_precision(each) for each in extreme_configs(config)]
    if device.type == "cuda":
        slots, reason = _slots_of_gpu(config, task, device, extremes, most)
    else:
        slots, reason = _slots_of_cpu(task, device, extremes)
    slots = max(1, min(slots, most))
    at_once = f"{slots} trials at once" if slots > 1 else "one trial at a time"
    logger.info("%s: %s: %s", config.name, at_once, reason)
    return slots


def slots_by_room(task: Task, configs: Sequence[TrainConfig]) -> int:
    """How many of these trainings, 1 or more, have room at once on the device that they are for.

    On the CPU each has a process and its threads cores of their own; on a GPU they share its memory.
    """
    resolved = [resolve_precision(each) for each in configs]
    device = find_device(resolved[0].device)
    if device.type == "cuda":
        slots, _ = _room_on_gpu(task, device, resolved)
    else:
        slots, _ = _slots_of_cpu(task, device, resolved)
    return max(1, min(slots, len(configs)))


def _slots_of_cpu(task: Task, device: torch.device, configs: Sequence[TrainConfig]) -> tuple[int, str]:
    threads = max(each.threads for each in configs)
    dataset = sum(m.coordinates.nbytes + m.energies.nbytes for m in task.dataset.molecules) / 2**30
    need = PROCESS_GIB + dataset + max(training_gib(task, each, device) for each in configs)
    cores, free = usable_cores(), free_gib()
    return int(
        min(cores // threads, free / need)
    ), f"{cores} cores, {threads} for a trial; {free:.3g} GiB free, {need:.3g} for a trial"


def _slots_of_gpu(
    config: StudyConfig, task: Task, device: torch.device, extremes: Sequence[TrainConfig], most: int
) -> tuple[int, str]:
    room, memory = _room_on_gpu(task, device, extremes)
    limit = min(most, room)
    if limit <= 1:
        return limit, memory
    sizes = [2**n for n in range(limit.bit_length())]
    seconds = measure_sizes(
        task, [resolve_precision(each) for each in example_configs(config, sizes[-1])], sizes
    )
    measured = ", ".join(f"{size}: {seconds[1] / took:.2f}" for size, took in seconds.items())
    if not seconds:
        return 1, f"out of memory with one trial; {memory}"
    return worthwhile(seconds), f"trials an hour by their number at once are as {measured}; {memory}"


def _room_on_gpu(task: Task, device: torch.device, configs: Sequence[TrainConfig]) -> tuple[int, str]:
    need = max(training_gib(task, each, device) for each in configs)
    # The features, which all trainings share, take their place before the rest is divided.
    try:
        Training(task, configs[-1], None)
    except BaseException as error:
        if exhausted_memory(error) != "device":
            raise
        return 1, f"out of memory with one trial, {need:.3g} GiB for it"
    finally:
        torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0] / 2**30
    return int(min(LARGEST, free / need)), f"{free:.3g} GiB free, {need:.3g} for a trial"


def worthwhile(seconds: Mapping[int, float]) -> int:
    """The least number at once beyond which the same trials do not become faster by ``WORTHWHILE``.

    Parameters
    ----------
    seconds : that the same trials took, by how many of them were trained at once
    """
    least = min(seconds.values())
    return min(size for size, took in seconds.items() if took <= WORTHWHILE * least)


def measure_sizes(task: Task, configs: Sequence[TrainConfig], sizes: Sequence[int]) -> dict[int, float]:
    """Seconds that an epoch on a little of the data takes all of ``configs``, by how many train at once.

    All sizes do the same work on the same data, so the trials an hour are in the inverse ratio, also on all
    of it. Those with different batches do not share them: they take turns, as in the worker. It ends before
    the first size that does not fit into the memory of the device.

    Parameters
    ----------
    configs : with their precision resolved, on the device that is measured
    sizes : trainings that go through the data at once, ascending
    """
    little = _little(task, STEPS * max(config.batch_size for config in configs))
    seconds: dict[int, float] = {}
    for size in sizes:
        try:
            seconds[size] = sum(_epoch_seconds(little, some) for some in _chunks(configs, size))
        except BaseException as error:
            if exhausted_memory(error) != "device":
                raise
            logger.info("out of memory with %d trials at once: as many are not tried", size)
        if size not in seconds:
            release_memory(find_device(configs[0].device))
            break
    return seconds


def _chunks(configs: Sequence[TrainConfig], size: int) -> list[Sequence[TrainConfig]]:
    return [configs[begin : begin + size] for begin in range(0, len(configs), size)]


def _epoch_seconds(task: Task, configs: Sequence[TrainConfig]) -> float:
    seconds = 0.0
    for pack in make_packs([Training(task, config, None) for config in configs]):
        pack.train_epoch(0)  # memory is taken and kernels are chosen in the first one
        started = time.perf_counter()
        pack.train_epoch(1)
        seconds += time.perf_counter() - started
    return seconds


def _little(task: Task, structures: int) -> Task:
    """The task with so many of its training structures, and an eighth of that to validate."""
    parts = np.full_like(task.split.parts, TEST)
    random = np.random.default_rng(0)
    for label, indices, count in (
        (TRAINING, task.split.train, structures),
        (VALIDATION, task.split.validation, math.ceil(structures / 8)),
    ):
        parts[random.permutation(indices)[:count]] = label
    return replace(task, split=Split(parts))


def training_gib(task: Task, config: TrainConfig, device: torch.device) -> float:
    """Memory that a training needs for itself, GiB, by an estimate from above."""
    inputs = task.features.length
    sizes = (inputs, *config.hidden, 1)
    weights = len(task.features.elements) * sum((i + 1) * o for i, o in itertools.pairwise(sizes))
    numbers = weights * (STATES + THREAD_STATES * config.threads)
    # On the CPU a batch is worked on in pieces; on a GPU as a whole, also in evaluation.
    on_gpu = device.type == "cuda"
    structures = max(config.batch_size, BATCH) if on_gpu else min(config.batch_size, WHOLE) * config.threads
    atoms = sum(m.structures * m.atoms for m in task.dataset.molecules) / task.dataset.structures
    numbers += math.ceil(structures * atoms) * (inputs + NEURON_STATES * sum(config.hidden))
    gib = numbers * WEIGHT_DTYPES[config.precision].itemsize / 2**30
    return gib if on_gpu else gib + _dense_gib(task, config, atoms)


def _dense_gib(task: Task, config: TrainConfig, atoms: float) -> float:
    """The training part's AEVs with all their columns, GiB, where a process on the CPU copies them."""
    dtype = FACTOR_DTYPES.get(config.precision, WEIGHT_DTYPES[config.precision])
    gib = len(task.split.train) * atoms * task.features.length * dtype.itemsize / 2**30
    return gib if config.batch_size < GROUPED_FROM[dtype] and gib <= CPU_LIMIT_GIB else 0.0
