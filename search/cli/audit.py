"""``anitune study verify`` and ``repair``: check that the three stores agree, and correct them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import typer

from search.cli.opening import opened_study
from search.cli.options import Json, Name
from search.cli.output import working
from search.cli.relay import note_writer
from search.cli.terminal import echo
from storage.audit import Audit
from storage.audit import verify as compare
from storage.repair import repair as repair_study


def verify(name: Name, as_json: Json = False) -> None:
    """Check that SQL, Optuna and MLflow agree about a study, and list every difference."""
    with opened_study(name) as study, working(f"{name}: comparing SQL, Optuna and MLflow"):
        audit = compare(study)
    if as_json:
        typer.echo(json.dumps(_values(name, audit), indent=2))
    else:
        for difference in audit.differences:
            echo(str(difference))
        echo(_in_one_line(name, audit))
    if audit.differences:
        raise typer.Exit(1)


def repair(name: Name) -> None:
    """Repair what verify lists. The record in SQL wins, also over changes made in a dashboard."""
    with opened_study(name) as study, working(f"{name}: comparing and repairing"):
        result = repair_study(study, note_writer(study))
    for difference in result.repaired:
        echo(f"repaired: {difference}")
    for difference, reason in result.left.items():
        echo(f"not repaired: {difference}{f' ({reason})' if reason else ''}")
    echo(f"{name}: {len(result.repaired)} differences repaired, {len(result.left)} left")
    if result.left:
        raise typer.Exit(1)


def _in_one_line(name: str, audit: Audit) -> str:
    states = ", ".join(f"{number} {state}" for state, number in sorted(audit.trials.items()))
    of = f" of {audit.budget}" if audit.budget is not None else ""
    count = len(audit.differences)
    verdict = f"differences: {count}" if count else "SQL, Optuna and MLflow agree"
    changing = (
        f"; {audit.changing} runs changed during the comparison and were skipped" if audit.changing else ""
    )
    return (
        f"{name}: {verdict}; {sum(audit.trials.values())}{of} trials ({states or 'none'}), {audit.runs} runs,"
        f" {audit.metrics:,} metric values, {audit.artifacts:,} artifacts compared{changing}"
    )


def _values(name: str, audit: Audit) -> dict[str, Any]:
    values = asdict(audit)
    values["differences"] = [
        {"trial": found.number, "difference": found.text, "repair": found.action}
        for found in audit.differences
    ]
    return {"study": name, "agree": not audit.differences, **values}
