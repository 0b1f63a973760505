from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

import pytest

from benchmarks.search_table import EPOCHS, GRID, SEEDS, Cell, Training

MADE_GRID = {
    "hidden": ((8,), (16,), (16, 8)),
    "activation": ("relu", "celu"),
    "learning_rate": (5e-4, 1.5e-3, 4e-3, 1e-2),
    "batch_size": (24, 64),
    "weight_decay": (1e-7,),
}


def made_cells() -> Iterator[Cell]:
    assert list(MADE_GRID) == list(GRID)
    return (Cell(*values) for values in itertools.product(*MADE_GRID.values()))


def made_training(cell: Cell) -> Training:
    """A smooth curve with noise. High learning rates begin well and end badly: early orders mislead."""
    noise = random.Random(repr(cell))
    steps = math.log10(cell.learning_rate / 1.5e-3)
    end = 0.4 + 0.15 * abs(steps) + 0.1 / len(cell.hidden) + 0.02 * (cell.activation == "relu")
    end += 0.03 * math.log2(cell.batch_size / 24) + noise.gauss(0, 0.01)
    begin = 4.0 - 2.0 * steps
    curve = (
        end + (begin - end) * math.exp(-(epoch - 1) / (12 - 6 * steps)) + abs(noise.gauss(0, 0.005))
        for epoch in range(1, EPOCHS + 1)
    )
    return Training(cell, tuple(curve), 1000, seconds=0.5 * len(cell.hidden))


@pytest.fixture(scope="session")
def made_rows() -> list[Training]:
    """A full small grid; the first eight configurations with three seeds, the others with one."""
    cells = list(made_cells())
    further = [Cell(*_settings(cell), seed=seed) for seed in SEEDS[1:] for cell in cells[:8]]
    return [made_training(cell) for cell in [*cells, *further]]


def _settings(cell: Cell) -> list[object]:
    return [getattr(cell, name) for name in GRID]
