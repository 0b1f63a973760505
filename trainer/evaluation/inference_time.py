"""Time that a network takes to predict, measured in the same way for every training."""

from __future__ import annotations

import statistics
import time
from typing import Final

import numpy as np
import torch

from trainer.fitting.threads import Threads
from trainer.networks.model import ElementNetworks
from trainer.task import Task

STRUCTURES: Final = 128
"""Number of validation structures that are predicted in one batch."""

REPEATS: Final = 5


@torch.no_grad()
def inference_time(model: ElementNetworks, task: Task) -> float:
    """Measure how long a network on the CPU takes to predict energies from AEVs, in microseconds per atom.

    It is the median of :data:`REPEATS` predictions of the same structures, which are spread over the
    validation set, after one that is not counted. The time is that of the processor in one thread, so a busy
    core does not lengthen it, and a GPU that the network was trained on plays no part. The AEVs are loaded
    before, as they cost the same for all networks of a study. Times of different processors differ.
    """
    validation = task.split.validation
    count = min(len(validation), STRUCTURES)
    structures = validation[np.linspace(0, len(validation) - 1, count).astype(np.int64)]
    Threads(1)  # operations of this thread are not divided
    subset = task.features.subset(structures, next(model.parameters()).dtype, count)
    batches = [load() for loads in subset.steps(torch.arange(count), count) for load in loads]
    seconds = []
    for _ in range(1 + REPEATS):
        began = time.thread_time()
        for batch in batches:
            model(batch)
        seconds.append(time.thread_time() - began)
    atoms = sum(len(aevs) for batch in batches for aevs in batch.aevs)
    return 1e6 * statistics.median(seconds[1:]) / atoms
