"""Read the header of a safetensors file: shapes and types of its tensors, before memory is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

#: By the names that safetensors uses.
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class TensorKind:
    """Shape and dtype of a tensor; a string is the name of a dtype that no file of anitune uses."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def kind_of(tensor: torch.Tensor) -> TensorKind:
    """Return the kind of a tensor in memory."""
    return TensorKind(tuple(tensor.shape), tensor.dtype)


def tensor_kinds(file: Any) -> dict[str, TensorKind]:
    """Return the kinds of the tensors in a file opened by ``safetensors.safe_open``, without reading them."""
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    return {
        name: TensorKind(tuple(some.get_shape()), _DTYPES.get(some.get_dtype(), some.get_dtype()))
        for name, some in slices.items()
    }


def misfit(found: Mapping[str, TensorKind], wanted: Mapping[str, TensorKind]) -> str | None:
    """Describe the first tensor that is missing, unexpected, or of another kind; None: all match."""
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in wanted:
            return f"{name[:80]!r} is not one of its tensors"
        if found[name] != wanted[name]:
            return f"{name} is {found[name]} instead of {wanted[name]}"
    return None
