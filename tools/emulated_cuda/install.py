"""Makes a CPU build of torch see emulated CUDA cards, from then on and in this process.

The Python half of ``torch.cuda`` is unchanged; only the functions of ``torch._C`` that a CUDA build has are
supplied, so that a device without an index is refused where torch refuses it.

Not modelled: kernels and their rounding (except TensorFloat-32), cuBLAS, speed, autograd on a card, memory
that is freed while another stream works on it, and numbers that the host reads before a copy to it has ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, Final
from weakref import finalize

import torch

from tools.emulated_cuda import device, failures, graphs, streams
from tools.emulated_cuda.build import load_guard
from tools.emulated_cuda.cards import CARDS, NAME, Card

#: Memory of an NVIDIA H200, bytes.
MEMORY: Final = 140 << 30

_library: Any = None


def installed() -> bool:
    """Whether this process has emulated cards."""
    return _library is not None


def install(cards: int | None = None) -> None:
    """Make torch see emulated CUDA cards, before anything has asked it for cards.

    Parameters
    ----------
    cards : how many; by default ``EMULATED_CUDA_CARDS``, or 1. ``EMULATED_CUDA_FREE_GIB`` sets how much
        memory of each is left by other processes; by default all
    """
    global _library
    if installed():
        return
    if torch.version.cuda is not None:
        raise RuntimeError("this build of torch has CUDA: an emulated card needs a CPU build")
    guard = load_guard()
    count = cards or int(os.environ.get("EMULATED_CUDA_CARDS", "1"))
    guard.set_device_count(count)
    CARDS.extend(Card(index, MEMORY) for index in range(count))
    for card in CARDS:
        card.others = MEMORY - int(float(os.environ.get("EMULATED_CUDA_FREE_GIB", MEMORY >> 30)) * 2**30)
    failures.inject_from_environment()
    _supply_functions(guard)
    _replace_classes()
    _pin_memory_here()
    # Parameters of a CPU module cannot be converted in place to those of a card.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    _library = _take_operations()


def _take_operations() -> Any:
    """Route operations that create tensors on a card to ``dispatch``; the class routes those that use one."""
    library: Any = torch.library.Library
    others = library("_", "IMPL")
    others.fallback(device.dispatch, "CUDA")
    # These would create an empty tensor and then change its shape.
    factories = library("aten", "IMPL")
    aten: Any = torch.ops.aten
    for packet in (aten.arange, aten.randperm, aten.linspace, aten.eye):
        for overload in packet.overloads():
            func = getattr(packet, overload)
            if "out" not in overload:
                factories.impl(func, partial(device.dispatch, func), "CUDA")
    return others, factories


def _supply_functions(guard: Any) -> None:
    cuda: Any = torch.cuda

    def card(index: int) -> Card:
        if not 0 <= index < len(CARDS):
            raise failures.cuda_error(101, "invalid device ordinal")
        return CARDS[index]

    def use(index: int) -> None:
        failures.check()
        card(index).context = True
        guard.set_device(index)

    def exchange(index: int) -> int:
        before: int = guard.get_device()
        if index >= 0:
            use(index)
        return before

    def maybe_exchange(index: int) -> int:
        # This creates no context where there is none yet.
        before: int = guard.get_device()
        guard.set_device(index)
        return before

    def memory_information(index: int) -> tuple[int, int]:
        failures.check()
        card(index).context = True
        return card(index).free(), card(index).total

    def set_fraction(fraction: float, index: int) -> None:
        card(index).fraction = fraction

    def reset_peak(index: int) -> None:
        card(index).peak = card(index).allocated

    def blas_handle() -> int:
        card(guard.get_device()).context = True
        failures.check("product")
        return 1

    def empty_cache() -> None:
        failures.check()
        for each in CARDS:
            each.empty_cache()

    def count() -> int:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            return len(CARDS)
        named = [name.strip() for name in visible.split(",")]
        return sum(name.isdigit() and int(name) < len(CARDS) for name in named)

    def start() -> None:
        failures.check()
        cuda.default_generators = tuple(device.Generator(f"cuda:{i}") for i in range(count()))

    def properties(index: int) -> SimpleNamespace:
        return SimpleNamespace(
            name=NAME,
            major=9,
            minor=0,
            total_memory=card(index).total,
            multi_processor_count=132,
            warp_size=32,
        )

    forked = False

    def after_fork() -> None:
        nonlocal forked
        forked = forked or torch.cuda._initialized

    os.register_at_fork(after_in_child=after_fork)

    functions: dict[str, Callable[..., Any]] = {
        "_cuda_init": start,
        "_cuda_getDeviceCount": count,
        "_cuda_getDevice": lambda: guard.get_device(),
        "_cuda_setDevice": use,
        "_cuda_synchronize": streams.synchronize_device,
        "_cuda_getCurrentStream": lambda i: (streams.current_queue(i).number, i, 1),
        "_cuda_getCurrentRawStream": lambda i: streams.current_queue(i).number,
        "_cuda_getDefaultStream": lambda i: (0, i, 1),
        "_cuda_setStream": streams.set_stream,
        "_cuda_isCurrentStreamCapturing": lambda: streams.current_queue(guard.get_device()).graph is not None,
        "_cuda_getCurrentBlasHandle": blas_handle,
        "_cuda_set_sync_debug_mode": streams.set_sync_mode,
        "_cuda_get_sync_debug_mode": streams.get_sync_mode,
        "_cuda_memoryStats": lambda i: card(i).stats(),
        "_cuda_resetPeakMemoryStats": reset_peak,
        "_cuda_getMemoryFraction": lambda i: card(i).fraction,
        "_cuda_setMemoryFraction": set_fraction,
        "_cuda_emptyCache": empty_cache,
        "_host_emptyCache": failures.check,
        "_cuda_getArchFlags": lambda: None,
        "_cuda_hasPrimaryContext": lambda i: card(i).context,
        "_cuda_isInBadFork": lambda: forked,
    }
    for name, function in functions.items():
        setattr(torch._C, name, function)
    # torch.cuda copied these from torch._C when it was imported.
    cuda._is_in_bad_fork = functions["_cuda_isInBadFork"]
    cuda._exchange_device, cuda._maybe_exchange_device = exchange, maybe_exchange
    cuda._get_device_properties = properties
    cuda._cudart = SimpleNamespace(cudaMemGetInfo=memory_information)
    cuda._device_count_nvml = lambda: -1
    cuda.graphs._cuda_isCurrentStreamCapturing = functions["_cuda_isCurrentStreamCapturing"]
    torch.backends.cuda.is_built = lambda: True


def _replace_classes() -> None:
    # These are derived from classes of which a CPU build has only dummies.
    torch.cuda.Stream.__bases__ = (streams.StreamBase,)
    torch.cuda.Event.__bases__ = (streams.EventBase,)
    torch.cuda.CUDAGraph.__bases__ = (graphs.GraphBase,)
    torch.Generator = device.Generator  # type: ignore[misc]


def _pin_memory_here() -> None:
    """Replace functions that pin memory, and those that make a tensor on a card from numbers of the host."""

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        failures.check("pinned")
        used = next((card for card in CARDS if card.context), None)
        (used or CARDS[torch.cuda.current_device()]).context = True
        storage = tensor.untyped_storage()
        device.PINNED.add(storage._cdata)
        finalize(storage, device.PINNED.discard, storage._cdata)
        return tensor

    def pinned_copy(self: torch.Tensor, *_: Any) -> torch.Tensor:
        return self if device.is_pinned(self) else pin(self.clone())

    def replace(name: str, on_card_from_numbers: bool) -> None:
        original = getattr(torch, name)

        def make(*args: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
            where = options.get("device")
            if on_card_from_numbers and where is not None and torch.device(where).type == "cuda":
                del options["device"]
                made: torch.Tensor = original(*args, **options).to(where)
                return made
            made = original(*args, **options)
            return pin(made) if pin_memory else made

        setattr(torch, name, make)

    for name in ("empty", "zeros", "empty_like"):
        replace(name, on_card_from_numbers=False)
    for name in ("tensor", "as_tensor", "asarray"):
        replace(name, on_card_from_numbers=True)
    torch.Tensor.pin_memory = pinned_copy  # type: ignore[assignment]
    torch.Tensor.is_pinned = device.is_pinned  # type: ignore[assignment,method-assign]
