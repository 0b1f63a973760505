"""Redelivery of everything to MLflow, after a backup was restored or with a new, empty MLflow."""

from __future__ import annotations

from sqlalchemy import update

from storage.records.tables import outbox, studies, trials
from storage.studies import Study
from storage.tracking.lease import wait_for_lease


def reset_deliveries(study: Study) -> None:
    """Mark all rows of a study as undelivered, and forget the ids of its MLflow runs.

    Existing data in MLflow stays: runs are found again by their key tags.

    Raises
    ------
    RelayBusyError
        while a relay delivers the study.
    """
    lease = wait_for_lease(study)
    with lease.writing() as connection:
        connection.execute(
            update(outbox).where(outbox.c.study_id == study.id).values(delivered_at=None, rejected=None)
        )
        connection.execute(update(trials).where(trials.c.study_id == study.id).values(mlflow_run_id=None))
        connection.execute(
            update(studies)
            .where(studies.c.id == study.id)
            .values(mlflow_experiment_id=None, mlflow_run_id=None)
        )
    lease.release()
