from __future__ import annotations

import dataclasses
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
    end = 0.4 + 0.15 * abs(steps) + 0.1 / len(cell.hidden) + 0.01 * (cell.activation == "relu")
    end += 0.01 * math.log2(cell.batch_size / 24) + noise.gauss(0, 0.004)
    begin = 4.0 - 2.0 * steps
    curve = (
        end + (begin - end) * math.exp(-(epoch - 1) / (4 - 2 * steps)) + abs(noise.gauss(0, 0.004))
        for epoch in range(1, EPOCHS + 1)
    )
    return Training(cell, tuple(curve), 1000, seconds=0.5 * len(cell.hidden))


@pytest.fixture(scope="session")
def made_rows() -> list[Training]:
    """A full small grid; eight good configurations with three seeds, the others with one."""
    cells = list(made_cells())
    good = [cell for cell in cells if cell.learning_rate == 1.5e-3 and cell.hidden != (8,)]
    further = [dataclasses.replace(cell, seed=seed) for seed in SEEDS[1:] for cell in good]
    return [made_training(cell) for cell in [*cells, *further]]
