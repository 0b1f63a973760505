"""``anitune study``: create and run studies, and show their results."""

from __future__ import annotations

import json
import logging
import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.cli.interrupted import exit_if_stopped
from search.cli.progress import progress_bar
from search.cli.terminal import echo
from search.cli.worker import Pack, with_reference, work_on

if TYPE_CHECKING:
    from rich.console import Console

    from search.study import StudyConfig
    from storage.database import Database
    from storage.settings import Settings
    from storage.studies import Study, StudySummary
    from storage.trials.views import TrialRow
    from trainer.task import TaskData

logger = logging.getLogger("anitune")

study_app = typer.Typer(help="Create and run studies, and show their results.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The study file (YAML).")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the study.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@study_app.command()
def create(file: File) -> None:
    """Create a study, so that workers can train its trials."""
    from search.recorded import config_of_file
    from search.study import read_study
    from storage.database import open_database

    given = read_study(file)
    with open_database(load_settings_for(given.config())) as database:
        config = config_of_file(database, given)
        create_studies(database, config)
    echo(f"{config.name}: ready; start a worker with: {_anitune(config)} worker {config.name}")


@study_app.command()
def run(file: File, pack: Pack = None) -> None:
    """Create or continue a study, train all its trials in this process, and report the results."""
    from search.work.forkserver import start_forkserver

    if pack != 1:
        start_forkserver()
    from search.cli.output import make_console
    from search.recorded import config_of_file
    from search.study import read_study
    from storage.database import open_database

    given = read_study(file)
    with open_database(load_settings_for(given.config())) as database:
        config = config_of_file(database, given)
        with exit_if_stopped(shlex.join(["anitune", "study", "run", str(file)])):
            studies = run_study(database, config, pack)
        _report(make_console(), database, studies)


def run_study(database: Database, config: StudyConfig, pack: int | None) -> list[tuple[Study, StudyConfig]]:
    """Create or continue a study, train all its trials in this process, and report them to MLflow.

    Returns
    -------
    The study and, before it, its reference study, if it has one.

    Raises
    ------
    Stopped, KeyboardInterrupt
        if a signal stopped the work; the next run continues it.
    """
    from trainer.config import TrainConfig
    from trainer.fitting.devices import find_device

    find_device(config.training.get("device", TrainConfig.device))  # before the study is recorded
    studies, data = create_studies(database, config)
    train_studies(database, studies, pack, data)
    return studies


def train_studies(
    database: Database,
    studies: list[tuple[Study, StudyConfig]],
    pack: int | None,
    data: TaskData | None = None,
) -> None:
    """Train all trials of studies that share their data, and report them to MLflow. See :func:`work_on`."""
    work_on(database, studies, pack, data=data)
    with ThreadPoolExecutor(1) as pool:
        notes = pool.submit(_write_notes, studies)  # also if MLflow is down
        for study, _ in studies:
            _deliver(study)
        notes.result()


@study_app.command(name="list")
def list_(
    as_json: Json = False,
    archived: Annotated[bool, typer.Option("--archived", help="Show the archived studies instead.")] = False,
) -> None:
    """Show all studies that are not archived."""
    from search.cli.output import make_console, studies_table
    from storage.database import open_database
    from storage.settings import load_settings
    from storage.studies import list_studies

    with open_database(load_settings()) as database:
        summaries = list_studies(database, archived=archived)
    if as_json:
        typer.echo(json.dumps([_summary_values(summary) for summary in summaries], indent=2))
    elif summaries:
        make_console().print(studies_table(summaries))
    elif archived:
        echo("No study is archived.")
    else:
        echo("No studies yet. Create one with: anitune study run FILE")


@study_app.command()
def show(name: Name, as_json: Json = False) -> None:
    """Show the state of a study: trials by state, the best one, time spent, epochs saved by pruning."""
    from rich.markup import escape

    from search.cli.output import leaderboard, make_console, rows_table, summary_lines
    from storage.database import open_database
    from storage.settings import load_settings
    from storage.studies import open_study, summarize_study
    from storage.trials.views import trial_rows

    with open_database(load_settings()) as database:
        study = open_study(database, name)
        summary = summarize_study(database, study)
        trials = trial_rows(database, study)
        *references, (_, config) = with_reference(database, study)
        reference = [row for other, _ in references for row in trial_rows(database, other)]
    if as_json:
        values = _summary_values(summary) | {"rows": [_trial_values(trial) for trial in trials]}
        typer.echo(json.dumps(values, indent=2))
        return
    console = make_console()
    console.print(f"[bold]{escape(name)}[/]")
    for line in summary_lines(summary):
        console.print(line, markup=False)
    console.print(leaderboard(trials, reference))
    if config.rows is not None:
        console.print(rows_table(config, trials))


@study_app.command()
def best(name: Name, as_json: Json = False) -> None:
    """Show the best trial of a study: its settings, validation MAE, MLflow run and weights."""
    from search.errors import SearchError
    from storage.database import open_database
    from storage.settings import load_settings
    from storage.studies import open_study
    from storage.trials.views import complete_trials, trial_rows

    with open_database(load_settings()) as database:
        study = open_study(database, name)
        trial = next(iter(complete_trials(trial_rows(database, study))), None)
        if trial is None:
            raise SearchError(f"{name}: no trial is complete yet; see: anitune study show {name}")
        values = _best_values(database, study, trial)
    if as_json:
        typer.echo(json.dumps(values, indent=2))
        return
    for key, value in values.items():
        echo(f"{key:<20} {json.dumps(value) if isinstance(value, dict) else value}")


def load_settings_for(config: StudyConfig) -> Settings:
    """Load addresses from the command line or the environment, else the study file, else the defaults."""
    from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE, load_settings

    return load_settings(
        storage_url=None if os.environ.get(STORAGE_VARIABLE) else config.storage,
        tracking_uri=None if os.environ.get(TRACKING_VARIABLE) else config.tracking,
    )


def _anitune(config: StudyConfig) -> str:
    """Return the command with the addresses of the study file, which other commands do not read."""
    from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE

    words = ["anitune"]
    if config.storage is not None and not os.environ.get(STORAGE_VARIABLE):
        words += ["--storage", config.storage]
    if config.tracking is not None and not os.environ.get(TRACKING_VARIABLE):
        words += ["--tracking", config.tracking]
    return shlex.join(words)


def create_studies(
    database: Database, config: StudyConfig
) -> tuple[list[tuple[Study, StudyConfig]], TaskData | None]:
    """Create the study and, before it, its reference study.

    Returns
    -------
    Both studies, and the data if it was read.
    """
    from search.propose.samplers import trial_limit
    from storage.lifecycle import add_files, has_other_files
    from storage.studies import Budget, create_study, is_begun
    from trainer.task import prepare_data

    wanted = [each for each in (config.reference, config) if each is not None]
    # A recorded study is permanent, so first check that all names are free and the data can be trained on.
    values = {each.name: _as_recorded(database, each) for each in wanted}
    moved = [each for each in wanted if has_other_files(database, each.name, values[each.name])]
    begun = [is_begun(database, each.name, values[each.name]) for each in wanted if each not in moved]
    data = None
    if moved or not all(begun):
        with progress_bar() as progress:
            data = prepare_data(
                config.data, config.split, config.features, progress, cache=database.settings.features
            )
        for each in moved:
            add_files(database, each.name, list(each.data.files), data.fingerprints["data"])
    studies = []
    for each in wanted:
        hours = each.limits.hours
        budget = Budget(
            trials=trial_limit(each),
            seconds=hours * 3600 if hours is not None else None,
            epochs=each.limits.epochs,
        )
        # The reference study has the priority of the study.
        study = create_study(database, each.name, values[each.name], budget, config.priority)
        studies.append((study, each))
    return studies, data


def _as_recorded(database: Database, config: StudyConfig) -> dict[str, Any]:
    """Return the record of a study with the data files of a configuration, or its record if it is new.

    Raises
    ------
    StudyExistsError
        if the study has a record, and another configuration.
    """
    from search.recorded import record_of
    from search.study import study_from_record
    from storage.studies import refuse_other_settings, with_files
    from trainer.config import dump_config

    values, files = dump_config(config), list(config.data.files)
    record = record_of(database, config.name)
    if record is None:
        return values
    known = dump_config(study_from_record(record, config.name))
    refuse_other_settings(config.name, with_files(known, files), values)
    return with_files(record, files)


def _write_notes(studies: list[tuple[Study, StudyConfig]]) -> None:
    from dashboards.optuna_notes import write_optuna_notes

    for study, _ in studies:
        write_optuna_notes(study)


def _deliver(study: Study) -> None:
    """Wait until MLflow has everything; what cannot be delivered now stays in the outbox."""
    from search.cli.output import working
    from search.cli.relay import file_writer, note_writer
    from storage.errors import TrackingUnavailableError
    from storage.tracking.process import sync

    try:
        with working(f"{study.name}: delivering the rest to MLflow"):
            result = sync(study, note_writer(study), file_writer(study))
    except TrackingUnavailableError as error:
        logger.warning("%s. Nothing is lost; try again later with: anitune sync %s", error, study.name)
    else:
        if result.rejected:
            logger.warning(
                "%s: MLflow rejected %d messages; try again with: anitune sync %s",
                study.name,
                result.rejected,
                study.name,
            )


def _report(console: Console, database: Database, studies: list[tuple[Study, StudyConfig]]) -> None:
    from search.cli.output import leaderboard, print_value, rows_table
    from storage.trials.views import complete_trials, trial_rows

    *references, (study, config) = studies
    trials = trial_rows(database, study)
    reference = [row for other, _ in references for row in trial_rows(database, other)]
    console.print(leaderboard(trials, reference))
    for other, rows in studies:
        if rows.rows is not None:
            console.print(rows_table(rows, trial_rows(database, other)))
    trial = next(iter(complete_trials(trials)), None)
    if trial is None:
        console.print(f"{study.name}: no trial is complete.", markup=False)
    else:
        values = _best_values(database, study, trial)
        print_value(console, "Best architecture", f"{values['architecture']} (trial {trial.number})")
        print_value(console, "Validation MAE", f"{trial.value:.3f} kcal/mol")
        print_value(console, "Plots", values["plots"])
    if (path := _write_report(database, study)) is not None:
        print_value(console, "Report", str(path))
    print_value(console, "Dashboards", f"{_anitune(config)} dashboards --study {study.name}")


def _write_report(database: Database, study: Study) -> Path | None:
    """Write the report of a study. If that fails, log it: the study itself has not failed."""
    from dashboards.report.write import write_report
    from trainer.errors import TrainerError

    try:
        return write_report(database, [study.name])
    except (OSError, TrainerError) as error:
        logger.warning("%s: no report was written: %s", study.name, error)
        return None


def _best_values(database: Database, study: Study, trial: TrialRow) -> dict[str, Any]:
    from storage.blobs.place import open_blobs
    from trainer.run import MODEL

    folder = database.settings.attempt_folder(study.name, trial.number, trial.attempt)
    weights = folder / MODEL
    if not weights.is_file():  # trained on another machine
        digest = next(file.digest for file in trial.artifacts if file.path == MODEL)
        weights = open_blobs(database).path(digest)
    return {
        "study": study.name,
        "trial": trial.number,
        "architecture": trial.tags["arch"],
        "val_mae_kcalmol": trial.value,
        "parameters": trial.params,
        "mlflow_run_id": trial.mlflow_run_id,
        "weights": str(weights),
        "plots": str(folder / "plots"),
    }


def _summary_values(summary: StudySummary) -> dict[str, Any]:
    return {
        "name": summary.name,
        "state": summary.state,
        "created_at": summary.created_at,
        "limits": {
            "trials": summary.budget.trials,
            "seconds": summary.budget.seconds,
            "epochs": summary.budget.epochs,
        },
        "trials": summary.trials,
        "best_trial": summary.best_number,
        "best_val_mae_kcalmol": summary.best_value,
        "seconds": summary.seconds,
        "epochs": summary.epochs,
        "epochs_saved_by_pruning": summary.epochs_saved,
    }


def _trial_values(trial: TrialRow) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "state": trial.state,
        "architecture": trial.tags.get("arch"),
        "val_mae_kcalmol": trial.value,
        "parameters": trial.params,
        "epochs": trial.epochs,
        "seconds": trial.seconds,
        "attempt": trial.attempt,
        "reason": trial.reason,
        "mlflow_run_id": trial.mlflow_run_id,
        "metrics": trial.summary,
    }
