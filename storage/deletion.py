"""Deletes a study from MLflow, from Optuna's tables and from ours, with the files that only it needs.

Our row of the study is deleted last: if a step fails or the process dies, the deletion can be repeated.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress

from sqlalchemy import Table, delete, select, update

from storage.blobs.needed import NAMING
from storage.confined import child, remove_child
from storage.database import Database
from storage.errors import OutsideFolderError, StudyStateError
from storage.garbage import remove_blobs, remove_images
from storage.lifecycle import CLOSED, lease_holders, locked_row
from storage.ownership import foreign_folders
from storage.records.tables import (
    artifacts,
    attempts,
    checkpoints,
    earlier_studies,
    evaluations,
    learning_curves,
    metrics,
    outbox,
    promotion_failures,
    promotion_trainings,
    promotions,
    relays,
    rungs,
    studies,
    trials,
)
from storage.studies import Study
from storage.tracking.lease import seize_lease
from storage.tracking.mlflow_runs import open_runs
from storage.tracking.relay import study_run_key

log = logging.getLogger("anitune")

PATIENCE = 120.0
"""How long to wait for the workers of a stopped study to hand their trials back, s."""

_POLL_SECONDS = 0.5

# Tables that refer to others come first.
_TABLES: tuple[Table, ...] = (
    promotion_failures,
    promotion_trainings,
    promotions,
    learning_curves,
    earlier_studies,
    artifacts,
    checkpoints,
    rungs,
    metrics,
    attempts,
    trials,
    outbox,
    relays,
)


def delete_study(database: Database, study: Study, patience: float = PATIENCE) -> None:
    """Delete everything about a study. MLflow keeps deleted runs until ``mlflow gc``.

    Models that were promoted from the study stay in MLflow's registry, since people may use them. The
    record of its test-set evaluations stays too.

    Raises
    ------
    StudyStateError
        if workers train its trials and it was not stopped before, or they do not hand the trials back.
    TrackingUnavailableError
        if MLflow does not answer; nothing was deleted.
    """
    _close(database, study)
    _await_workers(database, study, patience)
    seize_lease(study)  # from now on no relay writes about the study
    _delete_in_mlflow(database, study)
    # It may be gone already, deleted in the dashboard or by an interrupted deletion.
    with database.plain_errors(), suppress(KeyError):
        database.optuna.delete_study(study.optuna_study_id)
    foreign = foreign_folders(database)
    folders = database.settings.study_folder(study.name), database.settings.promotion_folder(study.name)
    if folders[0] not in foreign:
        # A study of the same name must not meet the checkpoints of this one.
        for folder in folders:
            remove_child(folder.parent, study.name)
    with database.writing() as connection:
        locked_row(connection, study)
        digests: set[str] = set()
        for naming in NAMING:
            query = select(naming.c.digest).where(naming.c.study_id == study.id)
            digests |= set(connection.execute(query).scalars())
        # Test-set evaluations stay recorded: other studies, also later ones, may have the same test set.
        forgotten = update(evaluations).where(evaluations.c.study_id == study.id)
        connection.execute(forgotten.values(study_id=None, promotion_id=None))
        for table in _TABLES:
            connection.execute(delete(table).where(table.c.study_id == study.id))
        connection.execute(delete(studies).where(studies.c.id == study.id))
    if not foreign:  # else a file known only by its digest or number may belong to another database
        for _ in remove_blobs(database, sorted(digests)):
            pass
        remove_images(database, study.id)
    remove_child(database.settings.logs, f"relay-{study.name}.log")


def _close(database: Database, study: Study) -> None:
    with database.writing() as connection:
        row = locked_row(connection, study)
        if row.state in CLOSED:
            return
        if live := lease_holders(connection, study):
            raise StudyStateError(
                f"study {study.name!r} is worked on by {', '.join(live)}:"
                f" first `anitune study stop {study.name}`"
            )
        connection.execute(update(studies).where(studies.c.id == study.id).values(state="stopped"))


def _await_workers(database: Database, study: Study, patience: float) -> None:
    until = time.monotonic() + patience
    while True:
        with database.reading() as connection:
            live = lease_holders(connection, study)
        if not live:
            return
        if time.monotonic() > until:
            raise StudyStateError(
                f"study {study.name!r} is stopped, but {', '.join(live)} are still working on it: try again"
                " when their epochs have ended"
            )
        time.sleep(_POLL_SECONDS)


def _delete_in_mlflow(database: Database, study: Study) -> None:
    with database.reading() as connection:
        of_study = select(studies.c.mlflow_experiment_id, studies.c.mlflow_run_id)
        experiment, run = connection.execute(of_study.where(studies.c.id == study.id)).one()
        of_trials = select(trials.c.mlflow_run_id).where(trials.c.study_id == study.id)
        recorded = [run, *connection.execute(of_trials).scalars()]
    if experiment is None:
        return  # MLflow never received it
    open_runs(database.settings).forget(experiment, study_run_key(study))
    _remove_files_of_runs(database, study, [each for each in recorded if each is not None])


def _remove_files_of_runs(database: Database, study: Study, runs: Iterable[str]) -> None:
    """Remove the folders that the records name: MLflow would look elsewhere for a renamed experiment."""
    try:
        of_study = child(database.settings.mlflow_artifacts, study.name)
        for run in runs:
            remove_child(of_study, run)
    except OutsideFolderError as error:
        log.warning("study %s: the files of its runs are left where they are: %s", study.name, error)
    else:
        with suppress(OSError):  # the folder does not exist, or holds files of others
            of_study.rmdir()
