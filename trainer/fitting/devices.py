"""Where a training runs, and what its errors mean: too little memory, or a device that has failed."""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Final, Literal

import torch

from trainer.config import TrainConfig
from trainer.errors import ConfigError, DeviceError, TrainerError, TrainingCutOff

#: In smaller batches the products of a CPU are so small that rounding their factors costs what it saves.
BFLOAT16_FROM: Final = 512

#: What errors say that torch has no class for: of CUDA itself (pinned memory, graphs) and of cuBLAS.
OUT_OF_MEMORY_TEXTS: Final = (
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",
)

#: As many are of a device that has failed, where torch raises a plain RuntimeError.
DEVICE_TEXTS: Final = (
    "CUDA error:",
    "CUDA driver error:",
    "CUDA driver initialization failed",
    "CUDA unknown error",
    "Error [CUDA]:",
    "No CUDA GPUs are available",
    "device-side assert",
)


def find_device(name: str) -> torch.device:
    """The device of the setting ``device``, a GPU always with its index.

    ``auto`` is a CUDA GPU where there is one, else the CPU; ``cuda`` is the current GPU of the thread.

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
        # Asking for the current GPU would initialise CUDA; before that it is the first one.
        return torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_initialized() else 0)
    return device


@contextmanager
def current_device(device: torch.device) -> Iterator[None]:
    """Make a GPU the current one of this thread: what names no device would open a context on the first."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


def resolve_precision(config: TrainConfig) -> TrainConfig:
    """The configuration with the precision in which it is trained on its device on this machine.

    ``auto`` is the fastest precision that is as accurate as float32. ``tf32`` where there is none is
    float32: a training that began on another machine can go on.

    Raises
    ------
    ConfigError
        if this machine does not have the device.
    """
    device = find_device(config.device)
    if config.precision not in ("auto", "tf32"):
        return config
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
        return replace(config, precision="tf32" if fast else "float32")
    fast = torch.cpu._is_avx512_bf16_supported() and config.batch_size >= BFLOAT16_FROM
    return replace(config, precision="bfloat16" if fast and config.precision == "auto" else "float32")


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


@cache
def describe_device(device: torch.device) -> str:
    """A device in words, as ``cuda:0 NVIDIA H200``."""
    return f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


@cache
def card_id(device: torch.device) -> str:
    """What identifies a GPU, or a slice of one (MIG), to all processes of a machine: as a rule its UUID."""
    if device.type != "cuda":
        return str(device)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    index = device.index or 0
    if index < len(visible) and visible[index].strip().startswith("MIG-"):
        return visible[index].strip()
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return f"GPU-{uuid}" if uuid is not None else (os.environ.get("CUDA_VISIBLE_DEVICES") or str(device))


def describe_card(device: torch.device) -> str:
    """A GPU, so that a person finds it in the machine: name, UUID, and what this process may see."""
    if device.type != "cuda":
        return str(device)
    try:
        words, known = describe_device(device), [card_id(device)]
    except Exception:  # a card that has failed may not answer any more
        words, known = str(device), []
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        known.append(f"CUDA_VISIBLE_DEVICES={visible}")
    return f"{words} ({', '.join(known)})" if known else words


#: Held while a CUDA graph is recorded: one at a time in a process, and no memory is given back meanwhile.
CAPTURING: Final = threading.RLock()


def release_memory(device: torch.device) -> None:
    """Give back to the device what nothing uses any more."""
    gc.collect()  # optimizers, and what a traceback holds, are cycles
    if device.type == "cuda":
        with CAPTURING, torch.cuda.device(device):
            torch.cuda.empty_cache()


def exhausted_memory(error: BaseException) -> Literal["device", "host"] | None:
    """Which memory did not suffice, if that is what an error, or one that led to it, says.

    ``device`` is that of a GPU, and the pinned memory beside it. An error that was explained already says
    nothing.
    """
    if isinstance(error, TrainerError) and not isinstance(error, DeviceError):
        return None
    cause: BaseException | None = error
    while cause is not None:
        if says_out_of_memory(cause):
            return "device"
        if isinstance(cause, MemoryError) or "DefaultCPUAllocator" in str(cause):
            return "host"
        # Where a step is recorded, its end fails too.
        cause = cause.__cause__ or cause.__context__
    return None


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an error itself, whatever led to it, is that the memory of a GPU did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(some in str(error) for some in OUT_OF_MEMORY_TEXTS)
    )


@contextmanager
def memory_errors_explained(config: TrainConfig) -> Iterator[None]:
    """Name the settings that decide how much memory is needed where the block has too little of it."""
    try:
        yield
    except (RuntimeError, MemoryError, DeviceError) as error:
        if exhausted_memory(error) is None:
            raise
        widths = "-".join(map(str, config.hidden))
        raise TrainingCutOff(
            f"out of memory on {find_device(config.device)} "
            f"with batch size {config.batch_size} and widths {widths}: "
            "make training.batch_size or training.hidden smaller"
        ) from error


@contextmanager
def device_errors_explained(device: torch.device) -> Iterator[None]:
    """Raise a :class:`DeviceError` that names the card where the GPU itself fails in the block."""
    try:
        yield
    except (RuntimeError, DeviceError) as error:
        of_device = isinstance(error, (torch.AcceleratorError, DeviceError)) or any(
            text in str(error) for text in DEVICE_TEXTS
        )
        if not of_device or exhausted_memory(error) == "device":
            raise
        card = describe_card(device)
        if card in str(error):
            raise
        why = str(error).partition("\n")[0]
        raise DeviceError(f"{card} has failed: {why}", device) from error
