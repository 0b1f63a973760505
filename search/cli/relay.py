"""``anitune relay`` and ``sync``: deliver the records to MLflow, in the background or now."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Annotated

import typer

from dashboards import links
from dashboards.notes import mlflow_study_note, mlflow_trial_note
from dashboards.optuna_notes import write_optuna_figures, write_optuna_notes
from dashboards.printable import PrintableFormatter
from dashboards.record import read_study
from dashboards.study_files import study_files
from search.cli.opening import opened_study
from search.cli.options import Json
from search.cli.terminal import echo
from search.errors import SearchError
from search.work.relay_metrics import serve_relay_metrics
from storage.errors import TrackingUnavailableError
from storage.settings import load_settings
from storage.studies import Study, summarize_study
from storage.tracking.health import RelayHealth
from storage.tracking.process import run_relay
from storage.tracking.process import sync as deliver
from storage.tracking.redelivery import reset_deliveries
from storage.tracking.relay import FileWriter, NoteWriter
from storage.trials.views import trial_row, trial_rows

log = logging.getLogger("anitune")

NICENESS = 5
"""Niceness of the relay process, so that training has priority. Where trainings use all cores it gets a
quarter of one, and starts within half a minute; with 10 it would be a tenth, and more than a minute."""

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="Name of the study.")]


def relay(
    study: StudyName,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            metavar="PORT",
            envvar="ANITUNE_RELAY_METRICS_PORT",
            help="Serve /metrics for Prometheus and /health on this port. Default: neither is served.",
        ),
    ] = None,
    metrics_host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            envvar="ANITUNE_RELAY_METRICS_HOST",
            help="Address on which --metrics-port listens; 0.0.0.0: all.",
        ),
    ] = "127.0.0.1",
) -> None:
    """Deliver a study to MLflow until no worker is left. Workers start this command themselves.

    The exit code is 1 if the run of the study in MLflow may lack the final state of the study.
    """
    settings = load_settings()
    os.nice(NICENESS)
    _log_with_time()
    with opened_study(study, settings) as opened, ExitStack() as stack:
        health = RelayHealth()
        if metrics_port is not None:
            try:
                stack.enter_context(serve_relay_metrics(metrics_host, metrics_port, opened, health))
            except SearchError as error:  # such as two relays with one port: both must deliver
                log.warning("%s: the metrics of this relay are not served: %s", study, error)
        if not run_relay(opened, note_writer(opened), health=health, write_files=file_writer(opened)):
            raise typer.Exit(1)


def sync(
    study: StudyName,
    again: Annotated[
        bool, typer.Option("--again", help="Deliver everything again, as after restoring a backup.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Deliver to MLflow now everything about a study that it does not have yet."""
    with opened_study(study) as opened:
        if again:
            reset_deliveries(opened)
        try:
            result = deliver(opened, note_writer(opened), file_writer(opened))
        except TrackingUnavailableError as error:
            raise TrackingUnavailableError(
                f"{error}. Nothing is lost; try again later with: anitune sync {study}"
            ) from None
    if as_json:
        typer.echo(json.dumps({"study": study, "delivered": result.delivered, "rejected": result.rejected}))
    else:
        echo(f"{study}: {result.delivered} messages delivered, {result.rejected} rejected")
    if result.rejected:
        raise typer.Exit(1)


def note_writer(study: Study) -> NoteWriter:
    """Return a function that writes MLflow's note of a study or trial from the records of that moment.

    With the note of the study it also updates those in Optuna.
    """
    server = links.usual_address(study.database.settings)

    def write(number: int | None) -> str:
        if number is None:
            rows = trial_rows(study.database, study)
            write_optuna_notes(study)
            page = links.study_page(server, study.name) if server is not None else None
            return mlflow_study_note(summarize_study(study.database, study), rows, page)
        row = trial_row(study.database, study, number)
        back = links.optuna_trial(server, study.optuna_study_id, number) if server is not None else None
        return mlflow_trial_note(row, back)

    return write


def file_writer(study: Study) -> FileWriter:
    """Return a function that draws the plots of the study's run in MLflow, and updates Optuna's figures."""

    def write() -> Mapping[str, bytes]:

        record = read_study(study.database, study.name)
        write_optuna_figures(study, record)
        return study_files(record)

    return write


def _log_with_time() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("anitune").handlers = [handler]
