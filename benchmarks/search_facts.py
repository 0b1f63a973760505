"""Facts about the table of real trainings, and how well a rung predicts the final order.

    python -m benchmarks.search_facts [--write-docs]

A pruner compares trials by their error at a rung, which is useful only as far as the order there resembles
the final order. In the middle of a cosine schedule, it compares unfinished trainings.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scipy.stats import spearmanr

from benchmarks.report import markdown_table, put_part
from benchmarks.search_table import (
    EPOCHS,
    SEARCHED,
    SEEDS,
    TABLE,
    Cell,
    Training,
    full_grid,
    read_table,
    settings_of,
)

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "search-table.md"

RUNGS: Final = (1, 3, 9, 27)
FEWEST: Final = 5
"""Smallest number of configurations for which a correlation is given."""


@dataclass(frozen=True)
class RankCorrelation:
    """Agreement of the order of the configurations at each rung with the final order.

    Attributes
    ----------
    configurations
        Number of compared configurations.
    at
        Spearman's rank correlation, by the epochs of the rung.
    """

    schedule: str
    configurations: int
    at: dict[int, float]


def rank_correlations(rows: Iterable[Training]) -> list[RankCorrelation]:
    """Correlate the least error up to each rung with that of the full training, for each schedule.

    Only trainings with the first seed count, because the best configurations have further seeds.
    """
    known = {row.cell: row for row in rows if row.cell.seed == SEEDS[0] and row.failure is None}
    full = _trained(known, "cosine", EPOCHS)
    constant = _trained(known, "constant", EPOCHS)
    ending = {
        rung: [(row.error, full[cell].error) for cell, row in trained.items() if cell in full]
        for rung in RUNGS
        if len(trained := _trained(known, "cosine", rung)) >= FEWEST
    }
    found = [
        _along("cosine to the full length", list(full.values())),
        _along("the same, of the configurations of the next line", [full[c] for c in constant if c in full]),
        _along("constant, with an average of the weights", list(constant.values())),
        RankCorrelation(
            "a cosine that ends at each rung, against the one to the full length",
            max(map(len, ending.values()), default=0),
            {rung: _spearman(pairs) for rung, pairs in ending.items() if len(pairs) >= FEWEST},
        ),
    ]
    return [each for each in found if each.at]


def _trained(known: dict[Cell, Training], schedule: str, epochs: int) -> dict[Cell, Training]:
    """Trainings with the given schedule, keyed by the cell of the full cosine training."""
    return {
        dataclasses.replace(cell, schedule="cosine", epochs=EPOCHS): row
        for cell, row in known.items()
        if (cell.schedule, cell.epochs) == (schedule, epochs)
    }


def _along(schedule: str, rows: Sequence[Training]) -> RankCorrelation:
    """Correlations of one training for each configuration, at its rungs and at its end."""
    if len(rows) < FEWEST:
        return RankCorrelation(schedule, len(rows), {})
    at = {rung: _spearman([(min(row.val_mae[:rung]), row.error) for row in rows]) for rung in RUNGS}
    return RankCorrelation(schedule, len(rows), at)


def _spearman(pairs: Sequence[tuple[float, float]]) -> float:
    early, late = zip(*pairs, strict=True)
    return float(spearmanr(early, late).statistic)


def rank_table(rows: Iterable[Training]) -> list[str]:
    """The rank correlations as a table."""
    headings = ["schedule", "configurations", *(f"epoch {rung}" for rung in RUNGS)]
    return markdown_table(
        headings,
        [
            [each.schedule, str(each.configurations)]
            + [f"{each.at[rung]:.2f}" if rung in each.at else "" for rung in RUNGS]
            for each in rank_correlations(rows)
        ],
    )


def facts(rows: Sequence[Training], size: int) -> list[str]:
    """A table of the contents of the training table, and of the versions that it was made with.

    Parameters
    ----------
    size : size of the file, bytes
    """
    grid = full_grid(rows)
    cells = {settings_of(row.cell) for row in grid}
    values = {name: sorted({_plain(getattr(row.cell, name)) for row in grid}) for name in SEARCHED}
    seeds = [row.cell.seed for row in grid]
    best = min((row for row in grid if row.cell.seed == SEEDS[0]), key=lambda row: row.error)
    noise = _noise(grid)
    lines = [
        ("trainings", f"{len(rows):,}"),
        ("configurations of the largest full grid", f"{len(cells)}"),
        *((f"its `{name}`", ", ".join(map(str, each))) for name, each in values.items()),
        ("trainings of it by seed", ", ".join(f"{n}: {seeds.count(n)}" for n in sorted(set(seeds)))),
        ("failed trainings", str(sum(row.failure is not None for row in rows))),
        ("epochs in all", f"{sum(len(row.val_mae) for row in rows):,}"),
        ("best with the first seed", f"{best.error:.4f} kcal/mol, {best.cell.label}"),
        ("standard deviation between seeds, median", "" if noise is None else f"{noise:.1%} of the error"),
        ("size of the file", f"{size / 1e6:.2f} MB"),
        ("processors", ", ".join(sorted({row.cpu for row in rows if row.cpu})) or "not recorded"),
        *((f"versions, {count} trainings", words) for words, count in _versions(rows)),
    ]
    return markdown_table(["", ""], lines)


def _plain(value: Any) -> Any:
    return "-".join(map(str, value)) if isinstance(value, tuple) else value


def _noise(rows: Iterable[Training]) -> float | None:
    """Relative standard deviation of errors between seeds: median over configurations with several seeds."""
    errors: dict[tuple[object, ...], list[float]] = {}
    for row in rows:
        if row.failure is None:
            errors.setdefault(settings_of(row.cell), []).append(row.error)
    several = [each for each in errors.values() if len(each) > 1]
    return statistics.median(statistics.stdev(e) / statistics.mean(e) for e in several) if several else None


def _versions(rows: Iterable[Training]) -> list[tuple[str, int]]:
    """Versions of packages that trainings ran with, without commits, and the number of trainings for each."""
    found: dict[str, int] = {}
    for row in rows:
        versions = {name: each for name, each in (row.versions or {}).items() if name != "commit"}
        words = ", ".join(f"{name} {each}" for name, each in versions.items()) or "not recorded"
        found[words] = found.get(words, 0) + 1
    return sorted(found.items())


def main() -> None:
    """Print the facts, or write them into their page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--write-docs", action="store_true", help=f"put both into docs/{PAGE.name}")
    arguments = parser.parse_args()
    rows = read_table(arguments.table)
    if not rows:
        parser.error(f"{arguments.table} does not exist; create it with make search-table")
    parts = {"the facts": facts(rows, arguments.table.stat().st_size), "the ranks": rank_table(rows)}
    for name, lines in parts.items():
        print("\n".join(lines), end="\n\n")
        if arguments.write_docs:
            put_part(PAGE, name, lines)


if __name__ == "__main__":
    main()
