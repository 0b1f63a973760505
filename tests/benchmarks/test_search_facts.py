from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import search_facts
from benchmarks.report import put_part
from benchmarks.search_facts import RUNGS, facts, rank_correlations, rank_table
from benchmarks.search_table import EPOCHS, Cell, Training, grid, write_table
from tools.pages import pages

CELLS = [cell for cell in grid() if cell.hidden == (128,)][:12]


def training(cell: Cell, late: float, early: float) -> Training:
    """An error until the tenth epoch, and another from then on."""
    return Training(cell, (early,) * 10 + (late,) * (cell.epochs - 10), 1000)


def full(orders_agree: bool) -> list[Training]:
    """The earlier errors are in the order of the later ones, or in the opposite one."""
    return [training(cell, n, 20 + n if orders_agree else 40 - n) for n, cell in enumerate(CELLS, 1)]


def test_a_rung_is_worth_as_much_as_its_order_is_that_of_the_end() -> None:
    for agree, worth in ((True, 1.0), (False, -1.0)):
        (found,) = rank_correlations(full(agree))
        assert found.configurations == len(CELLS)
        assert found.at == {1: worth, 3: worth, 9: worth, 27: 1.0}


def test_an_error_counts_from_the_best_epoch_so_far() -> None:
    rows = full(True)
    spoiled = [dataclasses.replace(row, val_mae=(*row.val_mae[:8], 99.0, *row.val_mae[9:])) for row in rows]
    assert rank_correlations(spoiled)[0].at[9] == 1.0


def test_schedules_are_compared_with_their_own_end_or_the_full_training() -> None:
    rows = full(False)
    five = CELLS[:6]
    constant = [
        training(dataclasses.replace(cell, schedule="constant"), n, 20 + n) for n, cell in enumerate(five)
    ]
    ending = [
        Training(dataclasses.replace(cell, epochs=rung), (50.0 + sign * n,) * rung, 1000)
        for rung, sign in ((3, -1), (9, 1))
        for n, cell in enumerate(five)
    ]
    cosine, same, with_average, ends = rank_correlations([*rows, *constant, *ending])
    assert (cosine.configurations, same.configurations) == (12, 6)
    assert same.at == {1: -1.0, 3: -1.0, 9: -1.0, 27: 1.0}
    assert with_average.at == dict.fromkeys(RUNGS, 1.0)
    assert ends.at == {3: -1.0, 9: 1.0}, "against the cosine to the full length"
    assert ends.configurations == 6


def test_failed_trainings_and_further_seeds_are_left_out() -> None:
    rows = full(True)
    failed = dataclasses.replace(rows[0], failure="the loss is not finite")
    lucky = training(dataclasses.replace(CELLS[1], seed=1), 0.1, 99.0)
    (found,) = rank_correlations([failed, *rows[1:], lucky])
    assert found.configurations == len(CELLS) - 1
    assert found.at[1] == 1.0
    assert rank_correlations(rows[:3]) == [], "too few"


def test_the_lines_of_the_page_read_a_table(made_rows: list[Training], tmp_path: Path) -> None:
    (block,) = [b for page in pages() if page.path == "docs/search-table.md" for b in page.blocks]
    file = "benchmarks/search_table.parquet"
    assert f'"{file}"' in block.text
    write_table(made_rows, tmp_path / "table.parquet")
    names: dict[str, Any] = {}
    exec(block.text.replace(file, str(tmp_path / "table.parquet")), names)
    assert names["table"].best.min() == pytest.approx(min(row.error for row in made_rows))
    described = re.findall(r"^\| `(\w+)` \|", search_facts.PAGE.read_text(), re.MULTILINE)
    assert described == list(names["table"].columns[:-1])


def test_the_page_has_what_the_table_says(made_rows: list[Training], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(search_facts.PAGE.read_text())
    put_part(page, "the facts", facts(made_rows, size=1_500_000))
    put_part(page, "the ranks", rank_table(made_rows))
    text = page.read_text()
    assert "Not written yet" not in text
    assert "| configurations of the largest full grid | 48 |" in text
    assert "| trainings of it by seed | 0: 48, 1: 8, 2: 8 |" in text
    assert "| size of the file | 1.50 MB |" in text
    (ranks,) = [line for line in text.splitlines() if line.startswith("| cosine to the full length | 48 |")]
    values = [float(cell) for cell in ranks.split("|")[3:7]]
    assert values == sorted(values), "later rungs say more"
    assert values[-1] == pytest.approx(1.0, abs=0.2)
    assert len(made_rows[0].val_mae) == EPOCHS
