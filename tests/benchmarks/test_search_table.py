from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.machine import describe_machine
from benchmarks.search_table import (
    STUDY,
    TABLE,
    Cell,
    Training,
    collect,
    full_grid,
    grid,
    other_schedules,
    read_table,
    run_study,
    settings_of,
    stages,
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
    rows: dict[Cell, Training] = {}
    names = []
    for name, cells in stages(rows):
        names.append(name)
        rows |= {cell: trained(cell, error=cell.learning_rate) for cell in cells}
    assert len(names) == len(set(names))
    assert set(grid()) <= rows.keys()
    best = sorted(grid(), key=lambda cell: cell.learning_rate)[:40]
    for seed in (1, 2):
        further = {dataclasses.replace(cell, seed=0) for cell in rows if cell.seed == seed}
        assert set(best) <= further
        assert 86 <= len(further) <= 86 + 40
    schedules = {(cell.schedule, cell.epochs) for cell in rows}
    assert schedules == {("cosine", 81), ("constant", 81), ("cosine", 27), ("cosine", 9), ("cosine", 3)}


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
        assert each.versions is not None
        assert each.versions["torch"] == version("torch")
        assert each.cpu == describe_machine("cpu").cpu


def test_the_largest_full_grid_leaves_out_what_is_incomplete(made_rows: list[Training]) -> None:
    assert full_grid(made_rows) == made_rows

    # Of the values of a missing configuration, one of four learning rates costs the least.
    gap = made_rows[0].cell
    rows = [row for row in made_rows if settings_of(row.cell) != settings_of(gap)]
    kept = {settings_of(row.cell) for row in full_grid(rows)}
    assert len(kept) == 48 * 3 // 4
    assert {each[2] for each in kept} == {1.5e-3, 4e-3, 1e-2}
    assert {row.cell.seed for row in full_grid(rows)} == {0, 1, 2}, "all seeds of a configuration stay"

    # Other schedules and lengths are of no grid.
    other = [dataclasses.replace(row, cell=dataclasses.replace(row.cell, epochs=27)) for row in made_rows]
    assert full_grid([*other, *rows]) == full_grid(rows)


def test_the_grid_of_a_table_that_has_begun_is_full() -> None:
    """The order in which the table is filled gives 216 configurations before the others are complete."""
    for count, expected in ((162, 162), (216, 216), (300, 216), (432, 432)):
        assert len(full_grid([trained(cell) for cell in grid()[:count]])) == expected


@pytest.mark.proof
@pytest.mark.skipif(
    not TABLE.exists(), reason="the table does not exist yet: create it with make search-table"
)
def test_two_configurations_of_the_table_are_trained_again(
    tmp_path: Path, print_report: Callable[[list[str]], None]
) -> None:
    cpu, torch = describe_machine("cpu").cpu, version("torch")
    cheapest = sorted(
        (row for row in full_grid(read_table()) if row.cell.seed == 0 and row.failure is None),
        key=lambda row: (-row.cell.batch_size, row.parameters, row.cell.label),
    )
    rows = {row.cell: row for row in cheapest[:2]}
    run_study(study_file(tmp_path, "again", list(rows)), tmp_path, pack="2")
    again: dict[Cell, Training] = {}
    collect(tmp_path, "again", again, tmp_path / "table.parquet")
    assert again.keys() == rows.keys()
    for trained_again in read_table(tmp_path / "table.parquet"):
        row = rows[trained_again.cell]
        same = (row.cpu, (row.versions or {}).get("torch")) == (cpu, torch)
        print_report(
            [
                f"{row.cell.label}: {row.error:.6f} kcal/mol in the table, {trained_again.error:.6f} here;"
                f" compared {'bit for bit' if same else 'within 10 %: another processor or torch'}"
            ]
        )
        if same:
            assert trained_again.val_mae == row.val_mae
        else:
            assert trained_again.val_mae[0] == pytest.approx(row.val_mae[0], rel=1e-3)
            assert trained_again.error == pytest.approx(row.error, rel=0.1)
