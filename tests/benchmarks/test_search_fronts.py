from __future__ import annotations

import dataclasses
import math

import pytest

from benchmarks.search_fronts import (
    SEARCHES,
    FrontHistory,
    front_table,
    hypervolume,
    reference_point,
    table_points,
    volume_after,
)
from benchmarks.search_replay import Trainings
from benchmarks.search_table import EPOCHS, Training
from trainer.task import Task


@pytest.fixture(scope="module")
def table(made_rows: list[Training]) -> Trainings:
    """The made table with as many parameters as networks of these widths have."""
    return Trainings([dataclasses.replace(row, parameters=1540 * sum(row.cell.hidden)) for row in made_rows])


def test_a_hypervolume_is_the_area_that_points_dominate() -> None:
    reference = (4.0, math.e**3)
    assert hypervolume([], reference) == 0.0
    assert hypervolume([(2.0, math.e)], reference) == pytest.approx(2 * 2)
    # The second point adds (2 - 1) * (3 - 2), and the others nothing.
    points = [(2.0, math.e), (1.0, math.e**2), (3.0, math.e**2), (5.0, 1.0), (0.1, math.e**4)]
    assert hypervolume(points, reference) == pytest.approx(2 * 2 + 1)


def test_only_trials_that_are_complete_count_with_their_mean_error(table: Trainings) -> None:
    history = FrontHistory(table)
    (error, settings), *_ = table.ranked()
    cell = next(row.cell for rows in table._rows.values() for row in rows if _settings(row) == settings)
    for epoch in range(1, EPOCHS + 1):
        history.report(cell, 0, epoch, 0.0, float(epoch))  # as if its seed were lucky
    assert history.volumes == [
        (EPOCHS, hypervolume([(error, table.parameters(cell))], reference_point(table)))
    ]
    assert volume_after(history.volumes, EPOCHS - 1) == 0.0
    assert volume_after(history.volumes, EPOCHS) == history.volumes[0][1] > 0


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_approach_the_front_of_the_table(name: str, table: Trainings, task: Task) -> None:
    found = SEARCHES[name](table, task, 0, EPOCHS * 6).volumes
    whole = hypervolume(table_points(table), reference_point(table))
    volumes = [volume for _, volume in found]
    assert len(volumes) == 6
    assert 0 < volumes[-1] <= whole
    assert volumes[-1] >= volumes[0]


def test_the_table_has_medians_as_shares_of_the_whole_front(table: Trainings) -> None:
    whole = hypervolume(table_points(table), reference_point(table))
    lines = front_table({"made": [[(1, whole / 2)], [(1, whole)], [(1, whole / 4)]]}, table)
    assert lines[-1].startswith("| made | 50.0% | 50.0% |")
    assert lines[-1].endswith("| 3 |")


def _settings(row: Training) -> object:
    from benchmarks.search_table import settings_of

    return settings_of(row.cell)
