"""Tensors that say ``cuda:0`` and compute on the CPU; each operation on them is checked.

Where a card would raise an error, its error is raised; where a card would silently give wrong results,
:class:`CudaCheckError` is raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from tools.emulated_cuda import failures, traffic
from tools.emulated_cuda.cards import CARDS, LOCK, allocation_of, find_allocation
from tools.emulated_cuda.failures import CudaCheckError
from tools.emulated_cuda.streams import capturing, current_queue, refuse_in_capture, wait

#: Arguments of matrix products that a card rounds to TensorFloat-32 if the setting asks for it. Custom
#: operators that follow the same setting can be added.
TF32_OPERANDS: Final[dict[str, tuple[int, ...]]] = {
    "aten::mm": (0, 1),
    "aten::bmm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::addmm_": (1, 2),
    "aten::baddbmm": (1, 2),
    "aten::baddbmm_": (1, 2),
    "aten::_addmm_activation": (1, 2),
}

#: Operations for which the host must know a result, at least its shape.
_WAITS: Final = frozenset(
    f"aten::{name}"
    for name in [
        "_local_scalar_dense",
        "is_nonzero",
        "equal",
        "nonzero",
        "masked_select",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "bincount",
        "segment_reduce",
        "_linalg_check_errors",
    ]
)

_INDEXING: Final = frozenset(
    f"aten::{name}" for name in ("index", "index_put", "index_put_", "_index_put_impl_")
)
_NO_KERNEL: Final = frozenset(
    f"aten::{name}" for name in ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided")
)

#: Addresses of storages in page-locked memory of the host.
PINNED: Final[set[int]] = set()

_generators: Final[WeakValueDictionary[int, Generator]] = WeakValueDictionary()


class Generator(torch.Generator):
    """Replaces ``torch.Generator``; a generator of a card draws the numbers of the CPU."""

    _cdata: int
    _device: torch.device

    def __new__(cls, device: Any = "cpu") -> Generator:
        self = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        self._device = torch.device(device)
        if self._device.type == "cuda":
            self._device = torch.device("cuda", card_index(self._device))
            _generators[self._cdata] = self
        return self

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._device

    def manual_seed(self, seed: int) -> Generator:
        if self._device.type == "cuda":
            refuse_in_capture("Generator.manual_seed")
        super().manual_seed(seed)
        return self


class CudaTensor(torch.Tensor):
    """A tensor on a card; ``_inner`` holds its numbers."""

    _inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, index: int) -> CudaTensor:
        self: CudaTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device("cuda", index),
        )
        self._hold(inner, index)
        return self

    def _hold(self, inner: Tensor, index: int) -> None:
        graph = current_queue(index).graph
        self._memory = allocation_of(inner, index, None if graph is None else graph.memory)
        self._inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return dispatch(func, *args, **(kwargs or {}))

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, new: Tensor) -> None:
        if not isinstance(new, CudaTensor) or new.shape != self.shape or new.dtype != self.dtype:
            raise CudaCheckError("the data of a tensor is replaced by that of another kind")
        self._hold(new._inner, new.get_device())

    def data_ptr(self) -> int:
        return self._inner.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. "
            "Use Tensor.cpu() to copy the tensor to host memory first."
        )

    __array__ = numpy

    def new_tensor(self, data: Any, **options: Any) -> Tensor:  # type: ignore[override]
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **options})

    def pin_memory(self, *_: Any) -> Tensor:
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")

    def record_stream(self, stream: Any) -> None:
        failures.check()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy)
        memo[id(self)] = copy
        return copy.requires_grad_(self.requires_grad)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self._inner!r} on {self.device}, emulated"


def card_index(device: torch.device) -> int:
    """The number of a CUDA device; that of the current one if it has none.

    Raises
    ------
    torch.AcceleratorError
        if there is no such card.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise failures.cuda_error(101, "invalid device ordinal")
    return index


def round_to_tf32(tensor: Tensor) -> Tensor:
    """Round a float32 tensor to 10 bits of mantissa, to the nearest."""
    rounded = ((tensor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
    return torch.where(tensor.isfinite(), rounded, tensor)


def dispatch(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation that has a tensor on a card, or creates one there."""
    name = func._schema.name
    flat, spec = tree_flatten((args, kwargs))
    there = [x for x in flat if isinstance(x, CudaTensor)]
    here = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, CudaTensor)]
    asked = kwargs.get("device")
    target = None if asked is None else torch.device(asked)
    inner_args, inner_kwargs = tree_unflatten(
        [x._inner if isinstance(x, CudaTensor) else x for x in flat], spec
    )
    inner_kwargs.pop("pin_memory", None)
    to_host = target is not None and target.type != "cuda"
    if target is not None:
        inner_kwargs["device"] = target if to_host else torch.device("cpu")
    indices = {tensor.get_device() for tensor in there}
    if name == "aten::_to_copy":
        inner_kwargs.pop("non_blocking", None)
        if to_host:
            _copy_to_host(there[0], kwargs.get("non_blocking", False), pinned=True)
            return _count_copy(name, func(*inner_args, **inner_kwargs))
    elif to_host:
        return func(*inner_args, **inner_kwargs)
    elif name == "aten::copy_":
        non_blocking = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        if not isinstance(args[0], CudaTensor):
            _copy_to_host(args[1], non_blocking, pinned=is_pinned(args[0]))
            return _count_copy(name, func(*inner_args, **inner_kwargs))
        if here:
            _copy_from_host(here[0], args[0].get_device(), non_blocking)
    else:
        _check_one_device(name, args, indices, here)
    index = there[0].get_device() if target is None else card_index(target)
    queue = current_queue(index)
    if any(current_queue(i).graph is not queue.graph for i in indices):
        raise CudaCheckError(f"{name} in a graph uses a card that is not captured")
    _check_waits(name, func, args, kwargs, index)
    _check_generator(func, kwargs, queue.graph)
    return _launch(func, index, inner_args, inner_kwargs, {id(x._inner): x for x in there})


def _launch(func: Any, index: int, args: Any, kwargs: Any, wrappers: dict[int, CudaTensor]) -> Any:
    """Run an operation on the inner tensors, and count or capture it."""
    name = func._schema.name
    queue = current_queue(index)
    graph = queue.graph
    device_storages = {x._inner.untyped_storage()._cdata for x in wrappers.values()}
    read = [x._inner for x in wrappers.values()]
    written = _mutated(func, args, kwargs)
    tf32 = name in TF32_OPERANDS and torch.backends.cuda.matmul.fp32_precision == "tf32"
    if graph is not None:
        graph.before(read, written)

    def run() -> Any:
        return func(*(_rounded(name, args) if tf32 else args), **kwargs)

    def fresh(out: Any) -> list[Tensor]:
        tensors = [x for x in tree_flatten(out)[0] if isinstance(x, Tensor) and x.numel()]
        return [x for x in tensors if x.untyped_storage()._cdata not in device_storages]

    out = run()
    made = fresh(out)
    if graph is not None:
        graph.own(made)
    flat, spec = tree_flatten(out)
    result = tree_unflatten([_wrapped(x, index, wrappers) for x in flat], spec)
    for tensor in wrappers.values():
        if tensor.shape != tensor._inner.shape or tensor.stride() != tensor._inner.stride():
            raise CudaCheckError(f"{name} changes the shape of a tensor in its place")
    launched = name not in _NO_KERNEL and any(x.numel() for x in [*made, *written])
    if not launched and name != "aten::_local_scalar_dense":
        return result
    CARDS[index].context = True
    failures.check("operation")
    if name in TF32_OPERANDS:
        failures.check("product")
    queue.launch(
        *([a for x in xs if (a := find_allocation(x)) is not None] for xs in (read, [*made, *written]))
    )
    moved = traffic.bytes_moved(name, args, kwargs, read, [*made, *written])
    if graph is not None:
        graph.after(name, lambda: fresh(run()), made, moved)
    else:
        with LOCK:
            traffic.COUNTS.launches += 1
            traffic.COUNTS.add(name, moved)
    return result


def _wrapped(out: Any, index: int, wrappers: dict[int, CudaTensor]) -> Any:
    if not isinstance(out, Tensor):
        return out
    return wrappers[id(out)] if id(out) in wrappers else CudaTensor(out, index)


def _rounded(name: str, args: Sequence[Any]) -> list[Any]:
    operands = TF32_OPERANDS[name]
    return [round_to_tf32(x) if i in operands and x.dtype == torch.float32 else x for i, x in enumerate(args)]


@cache
def _written_arguments(func: Any) -> list[tuple[int, str]]:
    return [
        (i, argument.name)
        for i, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def _mutated(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation changes, including those in lists."""
    values = [args[i] if i < len(args) else kwargs.get(key) for i, key in _written_arguments(func)]
    return [x for x in tree_flatten(values)[0] if isinstance(x, Tensor)]


def _check_one_device(name: str, args: Sequence[Any], indices: set[int], here: list[Tensor]) -> None:
    devices = [f"cuda:{i}" for i in sorted(indices)]
    for tensor in here:
        if name in _INDEXING and tensor is not args[0]:
            # Index tensors of the host are copied to the card.
            _copy_from_host(tensor, min(indices), non_blocking=False)
        elif tensor.dim() > 0:
            devices.append("cpu")
        elif capturing() is not None:
            raise CudaCheckError(f"{name}: a scalar of the host is baked into the graph")
    if len(devices) > 1:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{devices[0]} and {devices[1]}! ({name})"
        )


def _check_waits(name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any], index: int) -> None:
    what = name if name in _WAITS else None
    if func is torch.ops.aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
        what = name
    if name in _INDEXING and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
        what = "index by a mask"
    if what is not None:
        wait(what, current_queue(index).now())


def _check_generator(func: Any, kwargs: dict[str, Any], graph: Any) -> None:
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return
    generator = kwargs.get("generator")
    if generator is None:
        raise CudaCheckError(f"{func._schema.name} draws from the default generator of the device")
    if generator._cdata not in _generators:
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if graph is not None and not graph.has_generator(generator):
        raise RuntimeError(
            "Attempt to increase offset for a CUDA generator not in capture mode: it is not registered"
        )


def _copy_from_host(source: Tensor, index: int, non_blocking: bool) -> None:
    if not source.numel():
        return
    if not (non_blocking and is_pinned(source)):
        wait("copy from pageable memory", current_queue(index).now())
    elif capturing() is not None:
        raise CudaCheckError("a copy from the host is captured: it reads the same memory at each replay")


def _copy_to_host(source: CudaTensor, non_blocking: bool, *, pinned: bool) -> None:
    failures.check("operation")
    queue = current_queue(source.get_device())
    queue.launch([source._memory], [])
    if not (non_blocking and pinned):
        wait("copy to the host", queue.now())
    elif capturing() is not None:
        raise CudaCheckError("a copy to the host is captured")


def _count_copy(name: str, copy: Tensor) -> Tensor:
    with LOCK:
        traffic.COUNTS.launches += 1
        traffic.COUNTS.add(name, traffic.size(copy))
    return copy


def is_pinned(tensor: Tensor, device: Any = None) -> bool:
    """Replaces ``Tensor.is_pinned``."""
    return not isinstance(tensor, CudaTensor) and tensor.untyped_storage()._cdata in PINNED
