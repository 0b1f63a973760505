"""``anitune dashboards``: our page, the MLflow UI and the Optuna dashboard, side by side."""

from __future__ import annotations

import json
import logging
import signal
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Annotated, NoReturn

import typer

from dashboards import links
from dashboards.optuna_notes import write_optuna_figures, write_optuna_notes
from dashboards.record import read_study
from dashboards.servers import DashboardAddresses, run_dashboards
from search.cli.opening import open_home
from search.cli.output import make_console, working
from storage.read_only import looked_at
from storage.studies import Study, open_study, summarize_study
from storage.tracking.process import start_relay
from storage.tracking.relay import undelivered
from storage.trials.views import complete_trials, trial_rows

logger = logging.getLogger("anitune")

Port = Annotated[
    int | None, typer.Option(min=1, max=65535, metavar="PORT", help="Port of MLflow. Default: any free one.")
]


def dashboards(
    study: Annotated[
        str | None,
        typer.Option("--study", metavar="NAME", help="Also print links to the pages of this study."),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0 means all, without TLS.")
    ] = "127.0.0.1",
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            metavar="NAME",
            help="Also answer to this host name, such as that of a proxy; links to MLflow then use it, with"
            " MLflow's own port. May be repeated.",
        ),
    ] = None,
    mlflow_port: Port = None,
    optuna_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            metavar="PORT",
            help="Port of the first page and of Optuna's. Default: the same each time if it is free, else any"
            " free port.",
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the first page in the browser.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the links as a line of JSON.")] = False,
) -> None:
    """Serve a page with leaderboards, the MLflow UI and the Optuna dashboard until Ctrl-C.

    The printed links hold a secret of this start. Without it, nobody gets in.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    with open_home() as database, ExitStack() as stack:
        shown = open_study(database, study) if study is not None else None
        settings = database.settings
        if database.read_only:
            logger.warning("%s cannot be written: changes made on these pages will be lost", settings.home)
            settings = looked_at(settings, Path(stack.enter_context(TemporaryDirectory(prefix="anitune-"))))
        elif shown is not None:
            # A worker that was killed may have left both outdated.
            write_optuna_notes(shown)
            write_optuna_figures(shown, read_study(database, shown.name))
            if undelivered(shown):
                start_relay(shown)
        try:
            with working("starting MLflow and the Optuna dashboard"):
                running = stack.enter_context(
                    run_dashboards(
                        settings,
                        host=host,
                        mlflow_port=mlflow_port,
                        optuna_port=optuna_port,
                        allowed_hosts=allowed_hosts or (),
                    )
                )
            addresses = running.addresses
            pages = _front_pages(addresses) | _study_pages(addresses, shown)
            pages = {page: addresses.link(address) for page, address in pages.items()}
            if as_json:
                typer.echo(json.dumps(pages))
            else:
                _print(pages)
            if open_:
                running.open(pages["study" if shown is not None else "page"])
            running.watch()
        except KeyboardInterrupt:
            pass  # this is how the command usually ends


def _front_pages(addresses: DashboardAddresses) -> dict[str, str]:
    return {
        "page": links.first_page(addresses.optuna),
        "mlflow": links.mlflow_experiments(addresses.mlflow),
        "optuna": links.optuna_studies(addresses.optuna),
    }


def _study_pages(addresses: DashboardAddresses, study: Study | None) -> dict[str, str]:
    if study is None:
        return {}
    pages = {
        "study": links.study_page(addresses.optuna, study.name),
        "optuna_study": links.optuna_study(addresses.optuna, study.optuna_study_id),
        "optuna_ranking": links.optuna_note(addresses.optuna, study.optuna_study_id),
        "optuna_best": links.optuna_best_trials(addresses.optuna, study.optuna_study_id),
    }
    experiment = summarize_study(study.database, study).mlflow_experiment_id
    if experiment is not None:
        pages["mlflow_runs"] = links.mlflow_leaderboard(addresses.mlflow, experiment)
        pages["mlflow_curves"] = links.mlflow_curves(addresses.mlflow, experiment)
        best = next(iter(complete_trials(trial_rows(study.database, study))), None)
        if best is not None and best.mlflow_run_id is not None:
            pages["mlflow_best"] = links.mlflow_run(addresses.mlflow, experiment, best.mlflow_run_id)
    return pages


_TITLES = {
    "page": "Studies",
    "study": "  leaderboard",
    "mlflow": "MLflow",
    "mlflow_runs": "  runs, best first",
    "mlflow_curves": "  loss curves",
    "mlflow_best": "  best run",
    "optuna": "Optuna dashboard",
    "optuna_study": "  study",
    "optuna_ranking": "  ranked trials",
    "optuna_best": "  best trial",
}


def _print(pages: dict[str, str]) -> None:
    console = make_console()
    for page, title in _TITLES.items():
        if page in pages:
            console.print(f"{title:<22} {pages[page]}", soft_wrap=True, markup=False)
    console.print("Press Ctrl-C to stop them.")


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
