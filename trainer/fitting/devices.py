"""Where a training runs, and what it says when the memory there does not suffice."""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import torch

from trainer.config import Precision, TrainConfig
from trainer.errors import ConfigError, TrainingCutOff

#: In smaller batches the products of a CPU are so small that rounding their factors costs what it saves.
BFLOAT16_FROM: Final = 512


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
    if device.type == "cuda" and device.index is None:
        # Some functions of torch.cuda take a device with an index only.
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def settle(config: TrainConfig) -> TrainConfig:
    """The configuration with the precision that ``auto`` means on this machine: what is to be recorded.

    Raises
    ------
    ConfigError
        if this machine does not have the device or the precision.
    """
    device = find_device(config.device)
    on_gpu = device.type == "cuda"
    if config.precision == "tf32" and not on_gpu:
        raise ConfigError("training.precision: tf32 needs a CUDA GPU; use auto")
    if config.precision != "auto":
        return config
    if on_gpu:
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
        return replace(config, precision="tf32" if fast else "float32")
    fast = torch.cpu._is_avx512_bf16_supported() and config.batch_size >= BFLOAT16_FROM
    return replace(config, precision="bfloat16" if fast else "float32")


#: Held while operations on a GPU are begun or recorded whose precision is a setting of the whole process.
_BEGINNING: Final = threading.RLock()


@contextmanager
def products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Give the matrix products that the block begins or records on a GPU what a precision means there.

    Threads take turns. On the CPU nothing is to be set.
    """
    if device.type != "cuda":
        yield
        return
    settings = torch.backends.cuda.matmul
    with _BEGINNING:
        before = settings.fp32_precision, settings.allow_bf16_reduced_precision_reduction
        settings.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        # Sums are float32 also where a product is divided along the sum.
        settings.allow_bf16_reduced_precision_reduction = False
        try:
            yield
        finally:
            settings.fp32_precision, settings.allow_bf16_reduced_precision_reduction = before


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
        # Where a step is recorded, its end fails too.
        first = error.__context__ if isinstance(error.__context__, torch.OutOfMemoryError) else error
        known = isinstance(first, (torch.OutOfMemoryError, MemoryError))
        if not known and "DefaultCPUAllocator" not in str(error):
            raise
        widths = "-".join(map(str, config.hidden))
        raise TrainingCutOff(
            f"out of memory on {find_device(config.device)} "
            f"with batch size {config.batch_size} and widths {widths}: "
            "make training.batch_size or training.hidden smaller"
        ) from error
