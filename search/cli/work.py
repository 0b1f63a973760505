"""Training in this process: the work behind ``anitune worker``, ``anitune study run`` and notebooks."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from dashboards.formatting import format_front, format_seeds
from dashboards.optuna_notes import write_optuna_notes
from dashboards.report.write import write_report
from search.cli.create import anitune_with_places, create_studies
from search.cli.opening import load_settings_for, open_home, opened_study
from search.cli.output import (
    leaderboard,
    make_console,
    print_value,
    rows_table,
    working,
)
from search.cli.progress import progress_bar, watch
from search.cli.relay import file_writer, note_writer
from search.cli.study import best_values
from search.recorded import config_of_file, with_reference
from search.study import StudyConfig, StudyFile
from search.work.card_faults import card_faults_recorded
from search.work.environment import describe_worker
from search.work.metrics import serve_metrics
from search.work.service import Service
from search.work.stopping import stop_on_signals
from search.work.worker import Watcher, Worker, patiently
from storage.database import Database
from storage.errors import TrackingUnavailableError
from storage.lifecycle import CLOSED, study_state, wrong_state
from storage.studies import Study
from storage.tracking.process import start_relay, sync
from storage.trials.front import front_of_several
from storage.trials.views import trial_rows
from storage.workers import WorkerHeartbeat
from trainer.config import TrainConfig
from trainer.errors import TrainerError
from trainer.fitting.devices import device_errors_explained, find_device
from trainer.task import TaskData, add_features, prepare_data

logger = logging.getLogger("anitune")


def run_and_report(file: StudyFile, pack: int | None) -> None:
    """Create or continue a study, train all its trials, and print the results."""
    with open_home(load_settings_for(file.config())) as database:
        config = config_of_file(database, file)
        studies = run_study(database, config, pack)
        _report(make_console(), database, studies)


def work_on_study(study: str, pack: int | None, name: str | None, served: tuple[str, int] | None) -> None:
    """Train trials of a recorded study until it is done. See :func:`work_on`."""
    with opened_study(study) as opened:
        studies = with_reference(opened)
        if opened.database.engine.dialect.name == "sqlite":
            logger.info(
                "The database is SQLite, for one worker on one machine: several need PostgreSQL, which"
                " `anitune up` starts."
            )
        work_on(opened.database, studies, pack, name, served=served)


def serve_studies(
    pack: int | None, name: str | None, idle_timeout: float | None, served: tuple[str, int] | None
) -> None:
    """Train trials of all open studies by priority and age. See :class:`search.work.service.Service`."""
    with open_home() as database:
        _serve(database, pack, name, idle_timeout, served)


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


def work_on(
    database: Database,
    studies: list[tuple[Study, StudyConfig]],
    pack: int | None,
    name: str | None = None,
    data: TaskData | None = None,
    served: tuple[str, int] | None = None,
) -> None:
    """Train all trials of studies that share data, split and features.

    Parameters
    ----------
    pack : number of trials to train at once; None: as many as suit the machine
    data : the data of the studies; None: it is read
    served : address and port of the metrics; None: they are not served

    Raises
    ------
    StudyStateError
        if one of the studies is stopped or archived.
    DeviceError
        if the GPU has failed; the running trials were handed back.
    Stopped
        if a signal stopped the work; the running trials were handed back.
    """
    for study, _ in studies:
        if (state := patiently(partial(study_state, database, study))) in CLOSED:
            raise wrong_state(study, state)
    study, config = studies[-1]
    with ExitStack() as stack:
        device = find_device(config.training.get("device", TrainConfig.device))
        stack.enter_context(card_faults_recorded(device))
        stack.enter_context(device_errors_explained(device))
        sign = _heartbeat(database, name, device, study.name)
        patiently(lambda: stack.enter_context(sign))
        with progress_bar() as progress:
            cache = database.settings.features
            data = data or prepare_data(config.task, progress, cache)
            task = add_features(data, cache, progress)
        for study, _ in studies:
            patiently(partial(study.set_facts, task.fingerprints))
        patiently(lambda: sign.set_structures(len(task.split.train)))
        stop, watcher = stack.enter_context(stop_on_signals()), stack.enter_context(watch())
        stack.push(sign)  # the heartbeat ends while signals are still handled
        watcher = _watched(stack, served, watcher, sign)
        for study, config in studies:
            Worker(database, study, config, task, watcher, stop, start_relay, name, pack).work()
    stop.raise_if_signalled()


def _serve(
    database: Database,
    pack: int | None,
    name: str | None,
    idle_timeout: float | None,
    served: tuple[str, int] | None,
) -> None:
    with ExitStack() as stack:
        device = find_device(TrainConfig.device)
        stack.enter_context(card_faults_recorded(device))
        stack.enter_context(device_errors_explained(device))
        sign = _heartbeat(database, name, device)
        patiently(lambda: stack.enter_context(sign))
        stop, watcher = stack.enter_context(stop_on_signals()), stack.enter_context(watch())
        watcher = _watched(stack, served, watcher, sign)
        Service(database, watcher, stop, start_relay, name, pack, idle_timeout).serve()
    stop.raise_if_signalled()


def _heartbeat(
    database: Database, name: str | None, device: torch.device, study: str | None = None
) -> WorkerHeartbeat:
    pinned_to = os.environ.get("CUDA_VISIBLE_DEVICES")
    return WorkerHeartbeat(database, describe_worker(name, device), study, gpu=pinned_to)


def _watched(
    stack: ExitStack, served: tuple[str, int] | None, watcher: Watcher, sign: WorkerHeartbeat
) -> Watcher:
    """Return the watcher, behind an HTTP monitor if metrics are to be served."""
    if served is None:
        return watcher
    return stack.enter_context(serve_metrics(*served, watcher, sign))


def _write_notes(studies: list[tuple[Study, StudyConfig]]) -> None:
    for study, _ in studies:
        write_optuna_notes(study)


def _deliver(study: Study) -> None:
    """Wait until MLflow has everything; what cannot be delivered now stays in the outbox."""
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
    *references, (study, config) = studies
    trials = trial_rows(database, study)
    reference = [row for other, _ in references for row in trial_rows(database, other)]
    console.print(leaderboard(trials, reference, study.objectives))
    if (front := front_of_several(trials, study.objectives)) is not None:
        console.print(format_front(front, study.objectives), markup=False)
    for other, rows in studies:
        if rows.rows is not None:
            console.print(rows_table(rows, trial_rows(database, other)))
    values = best_values(study, trials)
    if values is None:
        console.print(f"{study.name}: no trial is complete.", markup=False)
    else:
        print_value(console, "Best architecture", f"{values['architecture']} (trial {values['trial']})")
        error = f"{values['val_mae_kcalmol']:.3f} kcal/mol{format_seeds(values['seeds'])}"
        print_value(console, "Validation MAE", error)
        print_value(console, "Plots", values["plots"])
    if (path := _write_report(database, study)) is not None:
        print_value(console, "Report", str(path))
    print_value(console, "Dashboards", f"{anitune_with_places(config)} dashboards --study {study.name}")


def _write_report(database: Database, study: Study) -> Path | None:
    """Write the report of a study. If that fails, log it: the study itself has not failed."""
    try:
        return write_report(database, [study.name])
    except (OSError, TrainerError) as error:
        logger.warning("%s: no report was written: %s", study.name, error)
        return None
