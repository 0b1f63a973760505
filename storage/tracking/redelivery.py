"""Telling MLflow everything again: after a backup was restored, or where MLflow begins anew with nothing."""

from __future__ import annotations

from sqlalchemy import update

from storage.records.tables import outbox, studies, trials
from storage.studies import Study
from storage.tracking.lease import wait_for_lease


def reset_deliveries(study: Study) -> None:
    """Take nothing for delivered any more, nor any run of MLflow for known.

    What MLflow has of the study stays as it is: its runs are found again by what they stand for.

    Raises
    ------
    RelayBusyError
        while a relay delivers the study.
    """
    lease = wait_for_lease(study)
    with lease.writing() as connection:
        connection.execute(
            update(outbox).where(outbox.c.study_id == study.id).values(delivered_at=None, parked=None)
        )
        connection.execute(update(trials).where(trials.c.study_id == study.id).values(mlflow_run_id=None))
        connection.execute(
            update(studies)
            .where(studies.c.id == study.id)
            .values(mlflow_experiment_id=None, mlflow_run_id=None)
        )
    lease.release()
