"""The device of a training, and what its errors mean: too little memory, or a device that has failed."""

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
from trainer.networks.widths import widths_text

#: In smaller batches the products on a CPU are so small that rounding their operands costs what it saves.
BFLOAT16_FROM: Final = 512

#: Texts of out-of-memory errors without a class in torch: of CUDA itself (pinned memory, graphs) and cuBLAS.
OUT_OF_MEMORY_TEXTS: Final = (
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",
)

#: Texts of errors of a failed device, where torch raises a plain RuntimeError.
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
    """Return the device for the setting ``device``; a GPU always has its index.

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
        # Asking for the current GPU would initialize CUDA; before that it is the first GPU.
        return torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_initialized() else 0)
    return device


@contextmanager
def current_device(device: torch.device) -> Iterator[None]:
    """Make a GPU current in this thread, as a call that names no device would open a context on the first."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


def resolve_precision(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the precision in which it is trained on its device on this machine.

    ``auto`` becomes the fastest precision that is as accurate as float32. ``tf32`` becomes float32 where the
    device does not have it, so that a training from another machine can continue.

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
    """Reset the peak memory of a GPU. The peak of a process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory of tensors on a GPU since the reset; on the CPU, of the whole process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@cache
def describe_device(device: torch.device) -> str:
    """Return a device in words, as ``cuda:0 NVIDIA H200``."""
    return f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


@cache
def card_id(device: torch.device) -> str:
    """Return an id of a GPU, or a slice of it (MIG), for all processes of a machine: usually its UUID."""
    if device.type != "cuda":
        return str(device)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    index = device.index or 0
    if index < len(visible) and visible[index].strip().startswith("MIG-"):
        return visible[index].strip()
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return f"GPU-{uuid}" if uuid is not None else (os.environ.get("CUDA_VISIBLE_DEVICES") or str(device))


def describe_card(device: torch.device) -> str:
    """Describe a GPU so that a person can find it: name, UUID, and what this process may see."""
    if device.type != "cuda":
        return str(device)
    try:
        words, known = describe_device(device), [card_id(device)]
    except Exception:  # a failed card may not answer any more
        words, known = str(device), []
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        known.append(f"CUDA_VISIBLE_DEVICES={visible}")
    return f"{words} ({', '.join(known)})" if known else words


#: Held during the capture of a CUDA graph: a process captures one at a time and releases no memory meanwhile.
CAPTURING: Final = threading.RLock()


def release_memory(device: torch.device) -> None:
    """Return unused memory to the device."""
    gc.collect()  # optimizers and tracebacks are in reference cycles
    if device.type == "cuda":
        with CAPTURING, torch.cuda.device(device):
            torch.cuda.empty_cache()


def exhausted_memory(error: BaseException) -> Literal["device", "host"] | None:
    """Return which memory was exhausted, if an error, or an error that led to it, says so.

    ``device`` is the memory of a GPU, including pinned memory on the host. The result is None for an error
    that has already been explained.
    """
    if isinstance(error, TrainerError) and not isinstance(error, DeviceError):
        return None
    cause: BaseException | None = error
    while cause is not None:
        if says_out_of_memory(cause):
            return "device"
        if isinstance(cause, MemoryError) or "DefaultCPUAllocator" in str(cause):
            return "host"
        # If a step fails while it is captured, the end of the capture fails too.
        cause = cause.__cause__ or cause.__context__
    return None


def says_out_of_memory(error: BaseException) -> bool:
    """Return whether an error itself, regardless of its causes, says that a GPU is out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(some in str(error) for some in OUT_OF_MEMORY_TEXTS)
    )


@contextmanager
def memory_errors_explained(config: TrainConfig) -> Iterator[None]:
    """Explain an out-of-memory error in the block by the settings that decide how much memory is needed."""
    try:
        yield
    except (RuntimeError, MemoryError, DeviceError) as error:
        if exhausted_memory(error) is None:
            raise
        widths = widths_text(config.hidden)
        raise TrainingCutOff(
            f"out of memory on {find_device(config.device)} "
            f"with batch size {config.batch_size} and widths {widths}: "
            "make training.batch_size or training.hidden smaller"
        ) from error


@contextmanager
def device_errors_explained(device: torch.device) -> Iterator[None]:
    """Raise a :class:`DeviceError` that names the card if the GPU itself fails in the block."""
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
