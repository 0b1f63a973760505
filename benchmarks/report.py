"""Present the figures: a table in the terminal, JSON, and a page of the documentation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.figures import Figure, Samples, quantity
from benchmarks.machine import Machine
from benchmarks.plan import BenchmarkPlan

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"

HEADINGS: Final = ("", "figure", "goal", "reached", "ours", "reference", "repeats", "note")


@dataclass(frozen=True)
class BenchmarkReport:
    """One run of the benchmark; ``measured_at`` is a date and time, UTC, in ISO 8601."""

    measured_at: str
    seconds: float
    machine: Machine
    plan: BenchmarkPlan
    figures: Sequence[Figure]


def print_table(report: BenchmarkReport) -> None:
    """Print all figures."""
    console = Console()
    if not console.is_terminal:
        console.width = 180
    table = Table(box=box.SIMPLE_HEAD)
    for heading in HEADINGS:
        right = heading in ("figure", "goal", "ours", "reference", "repeats")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for figure in report.figures:
        table.add_row(*(escape(cell) for cell in _cells(figure)))
    console.print(table)
    console.print(_format_machine(report), highlight=False)


def write_json(report: BenchmarkReport, path: Path) -> None:
    """Write all figures with all samples, ratios first."""
    values: dict[str, Any] = {
        "figures": [_plain(figure) for figure in report.figures],
        **_but_figures(report),
    }
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_page(report: BenchmarkReport, name: str, page: Path = PAGE) -> None:
    """Put the table into the page, and replace the earlier table of this name.

    Parameters
    ----------
    name : name of the table, unique within the page
    """
    rows = [_page_cells(figure) for figure in report.figures]
    put_part(page, f"the table: {name}", [_format_machine(report), "", *markdown_table(HEADINGS, rows)])


def put_part(page: Path, name: str, lines: Sequence[str]) -> None:
    """Put lines into a page of the documentation, and replace the earlier part of this name.

    Text that people wrote around it is kept.
    """
    begin, end = (f"<!-- {word} of {name} -->" for word in ("begin", "end"))
    part = "\n".join([begin, *lines, end])
    text = page.read_text() if page.exists() else "# Benchmarks\n"
    before, found, rest = text.partition(begin)
    if found:
        _, _, after = rest.partition(end)
        text = before + part + after
    else:
        text = f"{text.rstrip()}\n\n{part}\n"
    page.parent.mkdir(exist_ok=True)
    page.write_text(text)


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [
        f"| {' | '.join(headings)} |",
        f"|{' --- |' * len(headings)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _cells(figure: Figure) -> list[str]:
    value, goal = figure.value, figure.goal
    return [
        f"{figure.topic}: {figure.name}",
        "not measured" if value is None else quantity(value, figure.unit),
        "" if goal is None else f"{goal.kind} {quantity(goal.value, figure.unit)}",
        "" if goal is None or value is None else ("yes" if goal.reached(value) else "no"),
        _side(figure.ours),
        _side(figure.reference),
        "" if figure.ours is None else str(len(figure.ours.values)),
        figure.note,
    ]


def _page_cells(figure: Figure) -> list[str]:
    return [cell.replace("|", "\\|") for cell in _cells(figure)]


def _side(samples: Samples | None) -> str:
    return "" if samples is None else quantity(samples.median, samples.unit)


def _format_machine(report: BenchmarkReport) -> str:
    machine, plan = report.machine, report.plan
    parts = [
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB",
        *([machine.gpu] if machine.gpu else []),
        f"CPU threads: {plan.threads}",
        machine.system,
        *(f"{name} {number}" for name, number in machine.versions.items()),
    ]
    return (
        f"Measured {report.measured_at} in {report.seconds / 60:.0f} min. {'; '.join(parts)}. "
        "Figures are of the medians of the repeats."
    )


def _plain(figure: Figure) -> dict[str, Any]:
    values = asdict(figure)
    for side, samples in (("ours", figure.ours), ("reference", figure.reference)):
        if samples is not None:
            values[side]["median"] = samples.median
    if figure.goal is not None and figure.value is not None:
        values["goal"]["reached"] = figure.goal.reached(figure.value)
    return values


def _but_figures(report: BenchmarkReport) -> dict[str, Any]:
    return {name: value for name, value in asdict(report).items() if name != "figures"}
