"""The Triton kernels, without a GPU: by Triton's interpreter, and compiled ahead of time."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from trainer.config import Precision
from trainer.fitting.grouped_jobs import KERNEL_ACTIVATIONS
from trainer.fitting.grouped_tables import LARGE_BATCH, SUM_COLUMNS, tiles

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

ROOT = Path(__file__).resolve().parents[2]

#: Tolerance of the norm of the difference to plain torch, over the norm. Sums in another order differ in the
#: last bit of float32, and some of them are then rounded to the other neighbor in tf32.
TOLERANCES = {"float32": 1e-6, "tf32": 3e-5, "bfloat16": 3e-4}


@pytest.mark.slow
def test_kernels_do_what_plain_torch_does() -> None:
    # Triton decides when it is imported whether it interprets.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout)
    assert differences.pop("diverged") == [True] * 8
    assert len(differences) == 3
    for precision, found in differences.items():
        assert max(found) < TOLERANCES[precision], (precision, found)


#: Of the arguments of kernels that are no constants.
TYPES = {
    "table": "*i64",
    "width": "i32",
    "stride": "i32",
    "features": "i32",
    "networks": "i32",
    "rows": "*i32",
    **dict.fromkeys(("noise", "grad_outputs", "energies", "partials", "source"), "*fp32"),
}
GATHERED = {"GATHER": True, "DROPS": True, "ALIGNED": True}
STREAMED = {"GATHER": False, "DROPS": False, "ALIGNED": False}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "batch", "variant", "precision"),
    [
        *itertools.product([80, 90], [LARGE_BATCH], [GATHERED], ["float32", "tf32", "bfloat16"]),
        (90, 448, GATHERED, "tf32"),
        (90, 448, STREAMED, "bfloat16"),
    ],
)
def test_kernels_compile_for_real_gpus(
    capability: int,
    batch: int,
    variant: dict[str, bool],
    precision: Precision,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    hidden = "*bf16" if precision == "bfloat16" else "*fp32"
    types = {**TYPES, "hidden": hidden, "hidden_gradient": hidden}
    if variant is STREAMED:
        types["source"] = hidden
    for operator, choices in (
        ("linear", {"FIRST": True}),
        ("linear", {"FIRST": False}),
        ("atomic_energies", {}),
        ("output_gradient", {}),
        ("input_gradient", {}),
        ("weight_gradient_partials", {"DEEP": variant is GATHERED}),
        ("sum_partials", {}),
    ):
        if precision == "tf32" and operator in ("atomic_energies", "output_gradient", "sum_partials"):
            continue  # the same as in float32
        shared, stack = compile_kernel(operator, types, {**variant, **choices}, precision, batch, capability)
        # What all GPUs of the generation have; the limit of an A100 is higher, but not that of its siblings.
        assert shared <= (99 if capability == 80 else 227) * 1024, operator
        assert stack <= 64, operator


def compile_kernel(
    operator: str,
    types: dict[str, str],
    choices: dict[str, Any],
    precision: Precision,
    batch: int,
    capability: int,
) -> tuple[int, int]:
    """Bytes of shared memory of a block, and of the stack of a thread, where spilled registers go."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trainer.fitting import grouped_kernels

    kernel = getattr(
        grouped_kernels, f"{operator.replace('weight_gradient_partials', 'weight_gradient')}_kernel"
    )
    size = tiles(operator, precision, batch)
    constants = {
        **choices,
        "PRECISION": precision,
        "BLOCK_ROWS": size.rows,
        "BLOCK_COLUMNS": size.columns,
        "BLOCK_INNER": size.inner,
        "BLOCK": SUM_COLUMNS,
    }
    names = kernel.arg_names
    unaligned = ("networks",) if choices["ALIGNED"] else ("networks", "stride", "features")
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={name: constants[name] for name in names if name not in types},
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(names)
            if name in types and name not in unaligned
        },
    )
    options = {"num_warps": size.warps, "num_stages": size.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.run(
            [tool, "-res-usage", cubin.name], capture_output=True, text=True, check=True, timeout=300
        ).stdout
    found = re.search(r"STACK:(\d+)", usage)
    assert found is not None, usage
    return compiled.metadata.shared, int(found[1])


def interpret() -> None:
    """Print the differences between kernels and plain torch, for energies and gradients of each network."""
    from unittest import mock

    from test_grouped_networks import SHAPES, Case

    from trainer.fitting import grouped_networks, grouped_tables

    repair_interpreter()
    names = KERNEL_ACTIVATIONS
    few = {"capacities": (64, 0, 64), "atoms": (40, 0, 60)}
    shapes, by_element = SHAPES[:4], [{**shape, "activation": "celu"} for shape in SHAPES[4:]]
    several = [{**shape, "activation": name} for shape, name in zip(shapes, names[:4], strict=True)]
    others = [{**shape, "activation": name} for shape, name in zip(shapes, names[4:], strict=True)]
    splits = [{"hidden": (32, 16), "dropout": 0.2}, {"hidden": (16,)}]
    cases: list[tuple[Precision, list[dict[str, object]], dict[str, Any], bool, int]] = [
        ("float32", [*several, *by_element], few, False, LARGE_BATCH),
        ("tf32", [*others, *by_element], few, True, 0),
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
    # What is no number for the CPU is none here, with each activation: a training that diverged is seen.
    found["diverged"] = []
    for name in names:
        with mock.patch.object(grouped_networks, "has_kernels", return_value=True):
            case = Case([{"hidden": (16,), "activation": name}], "float32", **few)
            case.source[case.rows[3].item()] = float("nan")
            energies, (gradient,) = case.run(False)
        found["diverged"].append(bool(energies.isnan().any() and gradient.isnan().any()))
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
