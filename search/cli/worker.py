"""``anitune worker``: train trials of one study, or of all open ones."""

from __future__ import annotations

from typing import Annotated

import typer

from search.cli.interrupted import exit_if_stopped
from search.cli.options import Pack
from search.work.forkserver import start_forkserver


def worker(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="Name of the study. Default: all open ones.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of this worker. Default: host and process id.")
    ] = None,
    pack: Pack = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            metavar="PORT",
            help="Serve /metrics for Prometheus and /health on this port. Default: neither is served.",
        ),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address on which --metrics-port listens; 0.0.0.0: all.")
    ] = "127.0.0.1",
    idle_timeout: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Without STUDY: exit after this time without a trial. Default: never.",
        ),
    ] = None,
) -> None:
    """Train trials of a study until it is done, or of all open studies by priority and age.

    Any number of workers may do so at once, on many machines.
    """
    if study is not None and idle_timeout is not None:
        raise typer.BadParameter(
            "--idle-timeout is only for a worker without STUDY", param_hint="--idle-timeout"
        )
    if pack != 1:
        start_forkserver()
    served = (metrics_host, metrics_port) if metrics_port is not None else None
    with exit_if_stopped(f"anitune worker {study}" if study is not None else "anitune worker"):
        # Imported only now, so that this process and the fork server import torch at the same time.
        from search.cli.work import serve_studies, work_on_study

        if study is None:
            serve_studies(pack, name, idle_timeout, served)
        else:
            work_on_study(study, pack, name, served)
