"""The Triton kernels, without a GPU: by Triton's interpreter, and compiled ahead of time."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.config import Precision
from trainer.fitting.grouped_tables import LARGE_BATCH

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

ROOT = Path(__file__).resolve().parents[2]

#: Tolerance of the norm of the difference to plain torch, over the norm.
TOLERANCES = {"float32": 1e-6, "tf32": 1e-5, "bfloat16": 2e-3}


@pytest.mark.slow
def test_kernels_do_what_plain_torch_does() -> None:
    # Triton decides when it is imported whether it interprets.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout)
    assert len(differences) == 3
    for precision, found in differences.items():
        assert max(found) < TOLERANCES[precision], (precision, found)


def interpret() -> None:
    """Print the differences between kernels and plain torch, for energies and gradients of each network."""
    from unittest import mock

    from test_grouped_networks import SHAPES, Case

    from trainer.fitting import grouped_networks, grouped_tables

    repair_interpreter()
    names = ("relu", "sigmoid", "tanh", "softplus", "silu", "gelu", "celu", "gaussian")
    few = {"capacities": (64, 0, 64), "atoms": (40, 0, 60)}
    several = [{**shape, "activation": name} for shape, name in zip(SHAPES, names[:4], strict=True)]
    others = [{**shape, "activation": name} for shape, name in zip(SHAPES, names[4:], strict=True)]
    splits = [{"hidden": (32, 16), "dropout": 0.2}, {"hidden": (16,)}]
    cases: list[tuple[Precision, list[dict[str, object]], dict[str, Any], bool, int]] = [
        ("float32", several, few, False, LARGE_BATCH),
        ("tf32", others, few, True, 0),
        ("bfloat16", splits, {"features": 48, "capacities": (640, 64, 64)}, False, 0),
    ]
    found = {}
    for precision, settings, sizes, streamed, large in cases:
        results = []
        for kernels in (False, True):
            with (
                mock.patch.object(grouped_networks, "has_kernels", lambda weights, kernels=kernels: kernels),
                mock.patch.object(grouped_tables, "LARGE_BATCH", large),
            ):
                case = Case(settings, precision, **sizes)
                if precision == "bfloat16":
                    case.source = case.source.bfloat16()
                energies, gradients = case.run(streamed)
                results.append([energies, *gradients])
        found[precision] = [
            ((kernel - plain).norm() / plain.norm()).item() for plain, kernel in zip(*results, strict=True)
        ]
    json.dump(found, sys.stdout)


def repair_interpreter() -> None:
    """Round to bfloat16, and multiply such numbers: Triton 3.9 cuts bits off, and multiplies the bits."""
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def convert_float(number: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(number, source, target, mode)
        rounded = torch.from_numpy(np.ascontiguousarray(number).view(np.float32)).to(torch.bfloat16)
        return rounded.view(torch.int16).numpy().view(np.uint16)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        wide = [self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)]
        return dot(self, *wide, *rest)

    interpreter._convert_float = convert_float
    interpreter.InterpreterBuilder.create_dot = create_dot


if __name__ == "__main__":
    interpret()
