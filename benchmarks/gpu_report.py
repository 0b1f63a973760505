"""Write the results of the GPU proof to two files that are complete at any moment."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.figures import Figure, quantity
from benchmarks.machine import Machine

RESULTS: Final = "results.json"
TABLE: Final = "table.md"

HEADINGS: Final = ("part", "what", "figure", "aim", "reached", "note")

Status = Literal["done", "failed", "ended the run", "skipped"]

#: Units of figures that are neither times nor rates, and so mean something on an emulated device.
UNTIMED: Final = frozenset({"", "kcal/mol", "relative", "tests"})

EMULATED: Final = (
    "**These parts ran on an emulated device, not on a real card.** "
    "Figures that depend on the speed or the memory of a card are left out."
)


@dataclass(frozen=True)
class PartResult:
    """Result of a part of the proof.

    Attributes
    ----------
    seconds : duration of the part
    figures : its measurements, including those before a failure
    error : one line that says why there are no more figures
    traceback : traceback of that error
    measured_at : date and time of its end, UTC, in ISO 8601
    """

    name: str
    status: Status
    seconds: float = 0.0
    figures: Sequence[Figure] = ()
    error: str = ""
    traceback: str = ""
    measured_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class Run:
    """Properties that two runs must share for their figures to be in one table.

    Attributes
    ----------
    sizes : sizes of the measurements
    emulated : whether the device is emulated, so that figures which need a real card are left out
    """

    machine: Machine
    sizes: Mapping[str, Any]
    emulated: bool


class GPUReport:
    """All results so far; both files are written completely after each new one.

    Results of an earlier run of the same kind in ``folder`` are kept until this run measures the same parts.

    Parameters
    ----------
    folder : folder of both files
    order : the names of all parts, in the order of the table
    """

    def __init__(self, folder: Path, order: Sequence[str], run: Run) -> None:
        self.folder = folder
        self._order = order
        self._emulated = run.emulated
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._started = time.monotonic()
        # In the form in which they are read from the file: lists in place of tuples.
        self._run: dict[str, Any] = json.loads(json.dumps(asdict(run)))
        self._parts: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / RESULTS).exists():
            earlier = json.loads((folder / RESULTS).read_text())
            if {name: earlier[name] for name in self._run} == self._run:
                self._parts = {part["name"]: part for part in earlier["parts"]}

    def add(self, result: PartResult) -> None:
        """Add a result and write both files; a skipped part does not replace a result of an earlier run."""
        if result.status == "skipped" and result.name in self._parts:
            return
        self._parts[result.name] = {
            "name": result.name,
            "status": result.status,
            "seconds": round(result.seconds, 3),
            "measured_at": result.measured_at,
            "figures": [self._plain(figure) for figure in result.figures],
            "error": result.error,
            "traceback": result.traceback,
        }
        self._write()

    def _write(self) -> None:
        values = {
            "started_at": self._started_at,
            "seconds": round(time.monotonic() - self._started, 3),
            **self._run,
            "parts": [self._parts[name] for name in self._order if name in self._parts],
        }
        write_whole(self.folder / RESULTS, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        write_whole(self.folder / TABLE, table_of(values))

    def _plain(self, figure: Figure) -> dict[str, Any]:
        value, note = figure.value, figure.note
        samples = figure.ours.values if figure.ours is not None else ()
        if self._emulated and figure.unit not in UNTIMED:
            value, samples, note = None, (), ""
        plain: dict[str, Any] = {
            "name": figure.name,
            "value": value,
            "unit": figure.unit,
            "aim": None,
            "samples": list(samples),
            "note": note,
        }
        if figure.goal is not None:
            plain["aim"] = {
                "kind": figure.goal.kind,
                "value": figure.goal.value,
                "reached": None if value is None else figure.goal.reached(value),
            }
        return plain


def write_whole(path: Path, text: str) -> None:
    """Write a file by a rename, so that a reader finds either the old or the new text in full."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text)
    unfinished.replace(path)


def table_of(values: Mapping[str, Any]) -> str:
    """A Markdown table with the content of ``results.json``."""
    machine = values["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"Measured {values['started_at']} in {values['seconds']:.0f} s on {machine['gpu']}; "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB; {versions}.",
        "",
        *([EMULATED, ""] if values["emulated"] else []),
        f"| {' | '.join(HEADINGS)} |",
        f"|{' --- |' * len(HEADINGS)}",
    ]
    for part in values["parts"]:
        rows = [_cells(part["name"], figure) for figure in part["figures"]]
        if part["status"] != "done":
            after = "" if part["status"] == "skipped" else f" after {part['seconds']:.0f} s"
            rows.append((part["name"], f"**{part['status']}{after}**", "", "", "", part["error"]))
        for row in rows:
            cells = (cell.replace("|", "\\|") for cell in row)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(part: str, figure: Mapping[str, Any]) -> tuple[str, ...]:
    value, unit, aim = figure["value"], figure["unit"], figure["aim"]
    reached = aim["reached"] if aim is not None else None
    return (
        part,
        figure["name"],
        "" if value is None else quantity(value, unit),
        "" if aim is None else f"{aim['kind']} {quantity(aim['value'], unit)}",
        "" if reached is None else ("yes" if reached else "no"),
        figure["note"],
    )
