"""``anitune chaos``, for developers: a study while everything under it breaks."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from search.cli.terminal import echo


def chaos(
    seed: Annotated[int, typer.Option(help="Of the faults: the same seed, the same plan.")] = 0,
    short: Annotated[bool, typer.Option("--short", help="Each kind of fault once.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the report there.")
    ] = None,
) -> None:
    """Kill workers and servers of a real study at random times, and report what was lost."""
    from dashboards import mlflow_server
    from search.chaos.harness import run_chaos
    from search.chaos.plan import long_plan, short_plan

    # So that it takes its servers and workers with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    report = run_chaos((short_plan if short else long_plan)(seed), mlflow_server.command)
    for line in report.lines():
        echo(line)
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(report), indent=2) + "\n")
    if not report.clean:
        raise typer.Exit(1)
