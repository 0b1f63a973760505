"""Where a training runs, and what it says when the memory there does not suffice."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainer.config import TrainConfig
from trainer.errors import ConfigError, TrainingFailed


def find_device(name: str) -> torch.device:
    """The device of the setting ``device``; auto is the first CUDA GPU, or the CPU where there is none.

    Raises
    ------
    ConfigError
        if this machine does not have it.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ConfigError(
            f"training.device: {name} is asked for, but torch sees {gpus} CUDA GPUs; use cpu or auto"
        )
    return device


def reset_peak_memory(device: torch.device) -> None:
    """Begin to measure anew on a GPU. The peak of a process cannot be taken back."""
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory of all tensors on a GPU since the reset; on the CPU, of the whole process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def memory_errors_explained(config: TrainConfig) -> Iterator[None]:
    """Let an out-of-memory error of the block name the settings that decide how much is needed."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # torch has an error of its own for GPUs only; on the CPU it is its text that tells.
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and "DefaultCPUAllocator" not in str(error):
            raise
        widths = "-".join(map(str, config.hidden))
        raise TrainingFailed(
            f"out of memory on {find_device(config.device)} "
            f"with batch size {config.batch_size} and widths {widths}: "
            "make training.batch_size or training.hidden smaller"
        ) from error
