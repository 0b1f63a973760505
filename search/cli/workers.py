"""``anitune workers``: list the running workers and their trials."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from search.cli.opening import open_home
from search.cli.options import Json
from search.cli.output import make_console
from search.cli.terminal import echo
from storage.workers import LiveWorker, live_workers


def workers(
    as_json: Json = False,
) -> None:
    """List the running workers: host, GPU, trials, epochs, speed, time since the last heartbeat."""
    with open_home() as database:
        found = live_workers(database)
    if as_json:
        typer.echo(json.dumps([asdict(worker) for worker in found], indent=2))
    elif found:
        make_console().print(workers_table(found))
    else:
        echo("No workers are running. Start one with: anitune worker STUDY, or anitune launch STUDY")


def workers_table(found: list[LiveWorker]) -> Table:
    """List all workers, one per line."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("worker", "host", "device", "GPU", "study"):
        table.add_column(heading, overflow="fold")
    for heading in ("trial", "epoch", "structures/s", "seen"):
        table.add_column(heading, justify="right", no_wrap=True)
    for worker in found:
        speed = worker.structures_per_second
        table.add_row(
            escape(worker.name),
            escape(worker.host),
            escape(worker.device),
            escape(worker.gpu or ""),
            escape(worker.study or "any"),
            "\n".join(str(trial.number) for trial in worker.trials) or "none",
            "\n".join(f"{trial.epoch}/{trial.planned_epochs or '?'}" for trial in worker.trials),
            f"{speed:,.0f}" if speed is not None else "",
            f"{worker.silent:.0f} s ago",
        )
    return table
