"""How many trials a worker trains at once where it is not told."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
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

#: Of the memory of a GPU what a process can have: the rest is that of contexts, and of fragments.
OWN_SHARE: Final = 0.9

#: Numbers for each neuron and atom that a step holds: before and after the activation, which are dropped, and
#: the gradients over all of these.
NEURON_STATES: Final = 6


@dataclass(frozen=True)
class _Room:
    """How many trainings have room on a GPU.

    Attributes
    ----------
    need : bytes of one of them
    features : bytes that all of them share
    words : the reason for ``trials``
    """

    trials: int
    need: int
    features: int
    words: str

    def bytes_of(self, trials: int) -> int:
        """Memory of so many trainings, and of what they share."""
        return self.features + trials * self.need


def choose_concurrent_trials(
    config: StudyConfig, task: Task, device: torch.device, most: int, memory: CardMemory | None = None
) -> int:
    """How many trials of a study keep this machine busy; the reason is logged.

    On the CPU: one for each core that this process may use and that its memory allows, less where a trial
    has several threads. Each has a process of its own. On two cores this trained 8 small networks 1.5 times
    as fast as one at a time in batches of 64 and 1.3 times in batches of 1,024; in one pack they were 0.9
    and 1.04 times as fast (``docs/benchmarks.md``, packs), so the CPU has none.

    On a GPU, where trainings go through the data together: as many as a measurement finds worthwhile, of
    those for which its memory suffices beside what other workers have announced.

    Parameters
    ----------
    most : trials that are left to train, 1 or more
    memory : of the GPU, as it is shared with other workers
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
    """How many of these trainings, 1 or more, have room at once on the device that they are for.

    On the CPU each has a process and its threads cores of their own; on a GPU they share its memory.
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
    """Announce to other workers on a GPU what so many trials at once, as a person chose, will take."""
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
    return worthwhile(seconds), f"trials an hour by their number at once are as {measured}; {room.words}"


def _room_on_gpu(
    task: Task, device: torch.device, configs: Sequence[TrainConfig], memory: CardMemory | None
) -> _Room:
    """Divide what is free on a GPU, less what other workers have announced, and announce it."""
    need = max(training_gib(task, each, device) for each in configs)
    with memory.planning() if memory is not None else nullcontext(0) as others:
        if memory is not None:
            _leave_to_others(device, others)
        # The features, which all trainings share, take their place before the rest is divided.
        fits = True
        try:
            Training(task, configs[-1], None)
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
                f"{describe_card(device)}: {words}: other processes have the rest of its memory;"
                " start this worker when they have ended, or on another GPU"
            )
        room = _Room(trials, int(need * 2**30), features, words if fits else f"out of memory; {words}")
        if memory is not None:
            memory.announce(room.bytes_of(max(1, trials)))
    return room


def _leave_to_others(device: torch.device, others: int) -> None:
    """Limit this process to what is free on a GPU, less so many bytes for other workers."""
    share = 1.0
    if others:
        free, total = torch.cuda.mem_get_info(device)
        share = max(0.0, min(1.0, (free - others + torch.cuda.memory_reserved(device)) / total))
    torch.cuda.set_per_process_memory_fraction(share, device)


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
    labels = np.full_like(task.split.labels, TEST)
    random = np.random.default_rng(0)
    for label, indices, count in (
        (TRAINING, task.split.train, structures),
        (VALIDATION, task.split.validation, math.ceil(structures / 8)),
    ):
        labels[random.permutation(indices)[:count]] = label
    return replace(task, split=Split(labels))


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
    dtype = OPERAND_DTYPES.get(config.precision, WEIGHT_DTYPES[config.precision])
    gib = len(task.split.train) * atoms * task.features.length * dtype.itemsize / 2**30
    return gib if config.batch_size < GROUPED_FROM[dtype] and gib <= CPU_LIMIT_GIB else 0.0
