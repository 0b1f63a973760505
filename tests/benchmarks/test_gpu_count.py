from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_traffic import TRAFFIC
from tools.emulated_cuda.build import find_compiler
from trainer.config import TrainConfig
from trainer.fitting.grouped_networks import GroupedNetworks
from trainer.networks.model import ElementNetworks


def test_bytes_that_operators_move() -> None:
    moved: dict[str, int] = {}

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "anitune":
                name = func._schema.name
                moved[name] = moved.get(name, 0) + TRAFFIC[name](*args)
            return func(*args, **(kwargs or {}))

    model = ElementNetworks(TrainConfig(hidden=(256, 16), precision="float32"), ("H",), 37)
    weights = torch.nn.utils.parameters_to_vector(model.parameters())
    networks = GroupedNetworks([model], [weights], (640,), "float32", training=True)
    source, rows = torch.rand(700, 37), torch.arange(640, dtype=torch.int32)
    with Counter():
        networks.forward(source, rows)
        networks.backward(source, rows, torch.rand(640, 1))
    first, later, output, splits = 37 * 256 + 256, 256 * 16 + 16, 17, 2
    aevs = 640 * (37 + 1)
    assert moved == {
        "anitune::linear": 4 * (aevs + first + 640 * 256 + 640 * 256 + later + 640 * 16),
        "anitune::atomic_energies": 4 * (640 * 16 + output + 640),
        "anitune::output_gradient": 4 * (640 * (16 + 1 + 16) + (1 + splits) * output),
        "anitune::input_gradient": 4 * (640 * (256 + 256 + 16) + later),
        "anitune::weight_gradient_partials": 4 * (aevs + 640 * (256 + 256 + 16) + splits * (first + later)),
        "anitune::sum_partials": 4 * (splits + 1) * (first + later + output),
    }


@pytest.mark.skipif(find_compiler() is None, reason="the emulated device needs a C++ compiler")
def test_a_step_is_few_operations_however_many_networks(tmp_path: Path) -> None:
    program = """
import json, sys
from pathlib import Path
from benchmarks.gpu_count import _configs, count_on_emulated_device
from benchmarks.made_sets import made_set

folder = Path(sys.argv[1])
counts = count_on_emulated_device(made_set(folder, 240), folder, _configs(int(sys.argv[2]), 24, "tf32"))
print(json.dumps(vars(counts)))
"""
    one, many = (
        json.loads(
            subprocess.run(
                [sys.executable, "-c", program, str(tmp_path), number],
                check=True,
                capture_output=True,
                text=True,
                timeout=300,
            ).stdout
        )
        for number in ("1", "8")
    )
    assert one["operations"] <= 40
    assert many["operations"] <= 2.5 * one["operations"]
    # What is done once an epoch is little beside the steps, and so is what is read beside what must be.
    assert one["epoch_operations"] < 1.01 * one["operations"] * 691_918 / 24
    assert one["floor"] < one["epoch_moved"]
