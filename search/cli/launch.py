"""``anitune launch``: start workers on this machine, on Slurm or on Kubernetes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from search.cli.opening import opened_study
from search.cli.options import Pack
from search.cli.terminal import echo
from search.launch.config import LaunchConfig, load_launch
from search.launch.launcher import launch as start
from search.launch.places import PLACES
from search.launch.plan import LaunchPlan
from search.work.stopping import stop_on_signals
from storage.errors import SettingsError
from storage.settings import load_settings
from storage.workers import live_workers

DETACHED_VARIABLE = "ANITUNE_LAUNCH"
"""Environment variable that passes the name of the launch to a launcher in the background."""


def _place(text: str) -> str:
    if text not in PLACES:
        raise typer.BadParameter(f"give {', '.join(PLACES)} (got {text!r})")
    return text


def launch(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Name of the study.")],
    on: Annotated[
        str, typer.Option("--on", metavar="|".join(PLACES), parser=_place, help="Where the workers run.")
    ],
    gpus_per_node: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Workers per node, each pinned to a GPU; 0 starts one that is not pinned.",
        ),
    ] = 1,
    nodes: Annotated[int, typer.Option(min=1, metavar="M", help="Number of nodes.")] = 1,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", metavar="FILE", help="Launch file (YAML): partition, walltime, image, environment."
        ),
    ] = None,
    pack: Pack = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Run in the background until the study is done.")
    ] = False,
) -> None:
    """Start workers for a study, each pinned to a GPU, and wait until the study is done.

    On Ctrl-C or SIGTERM the workers hand their trials back. See docs/launching.md.
    """
    config = load_launch(file) if file is not None else LaunchConfig()
    settings = load_settings()
    with opened_study(study, settings) as opened:
        _refuse_sqlite(opened.database.engine.dialect.name, nodes * max(1, gpus_per_node))
        plan = LaunchPlan(
            name=os.environ.pop(DETACHED_VARIABLE, "") or f"{opened.name}-{time.strftime('%Y%m%d-%H%M%S')}",
            gpus_per_node=gpus_per_node,
            nodes=nodes,
            home=settings.home,
            config=config,
            arguments=(opened.name, *(("--pack", str(pack)) if pack is not None else ())),
        )
        if detach:
            _detach(plan.name, plan.folder)
            return
        # Local workers and Slurm jobs inherit the environment; ps would show arguments to everybody.
        os.environ |= settings.environment()
        echo(f"{plan.name}: logs in {plan.folder}", err=True)

        def left() -> int:
            return sum(worker.name in plan.workers for worker in live_workers(opened.database))

        with stop_on_signals() as stop:
            start(plan, on, stop, left)
    if stop.signal is not None:
        echo(f"Stopped; continue with: anitune launch {study} --on {on}", err=True)
        raise typer.Exit(128 + stop.signal)


def _refuse_sqlite(dialect: str, workers: int) -> None:
    if dialect == "sqlite" and workers > 1:
        raise SettingsError(
            "several workers need PostgreSQL: start one with `anitune up`, or set ANITUNE_STORAGE_URL"
            " (SQLite is for one worker on one machine)"
        )


def _detach(name: str, folder: Path) -> None:
    """Run the same command in a new session, which outlives this terminal."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "launch.log"
    arguments = [argument for argument in sys.argv[1:] if argument != "--detach"]
    with log.open("ab") as output:
        launcher = subprocess.Popen(
            [sys.executable, "-P", "-m", "search.cli.main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, DETACHED_VARIABLE: name},
            start_new_session=True,
        )
    echo(f"{name}: log in {log}; stop it with: kill {launcher.pid}")
