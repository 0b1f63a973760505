from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.search_table import (
    STUDY,
    Cell,
    Training,
    collect,
    grid,
    other_schedules,
    read_table,
    repeated,
    run_study,
    study_file,
    timed,
    write_table,
)
from search.propose.space import train_config
from search.study import study_from_values


def trained(cell: Cell, error: float = 1.0) -> Training:
    return Training(cell, (2 * error, error), 1000)


def test_the_grid_has_every_configuration_once() -> None:
    cells = grid()
    assert len(cells) == len(set(cells)) == 432
    assert cells == grid()


def test_the_best_and_a_random_fifth_get_further_seeds() -> None:
    cells = grid()
    first = [trained(cell, error=n + 1.0) for n, cell in enumerate(cells)]
    chosen = repeated(first)
    assert set(cells[:40]) <= set(chosen)
    assert set(repeated(first)) == set(chosen)
    worst_first = repeated([trained(cell, error=500.0 - n) for n, cell in enumerate(cells)])
    assert len(set(chosen) & set(worst_first)) >= round(0.2 * 432), (
        "the random share does not depend on errors"
    )


@pytest.mark.parametrize("cells", [grid(), other_schedules(), timed()], ids=["grid", "schedules", "timed"])
def test_a_row_trains_what_its_cell_says(cells: list[Cell]) -> None:
    rows = [{"label": cell.label, "training": cell.training} for cell in cells]
    study = study_from_values({"name": "table", **STUDY, "rows": rows}, "test")
    for number, cell in enumerate(cells):
        config = dataclasses.asdict(train_config(study, {}, number))
        assert {key: config[key] for key in dataclasses.asdict(cell)} == dataclasses.asdict(cell)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    cells = grid()[:3]
    rows = [trained(cells[0]), Training(cells[1], (), None, failure="the loss is not finite")]
    rows.append(dataclasses.replace(trained(cells[2]), seconds=0.25))
    write_table(rows, tmp_path / "table.parquet")
    assert {each.cell: each for each in read_table(tmp_path / "table.parquet")} == {
        each.cell: each for each in rows
    }


def test_what_was_trained_becomes_rows(tmp_path: Path) -> None:
    cells = [Cell((8,), "celu", 1e-3, size, 1e-7, epochs=2) for size in (256, 512)]
    run_study(study_file(tmp_path, "tiny", cells), tmp_path, pack="2")
    rows: dict[Cell, Training] = {}
    collect(tmp_path, "tiny", rows, tmp_path / "table.parquet")
    assert set(rows) == set(cells)
    for each in read_table(tmp_path / "table.parquet"):
        assert len(each.val_mae) == 2
        assert each.parameters == 4 * ((384 + 1) * 8 + 9)
        assert each.failure is None
