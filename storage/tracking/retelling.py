"""Telling MLflow everything again: after a backup was restored, or where MLflow begins anew with nothing."""

from __future__ import annotations

from sqlalchemy import update

from storage.errors import TrackingUnavailableError
from storage.records.tables import outbox, studies, trials
from storage.studies import Study
from storage.tracking.lease import take_lease


def forget_deliveries(study: Study) -> None:
    """Take nothing for delivered any more, nor any run of MLflow for known.

    What MLflow has of the study stays as it is: its runs are found again by what they stand for.

    Raises
    ------
    TrackingUnavailableError
        while a relay delivers the study.
    """
    lease = take_lease(study)
    if lease is None:
        raise TrackingUnavailableError(
            f"{study.name}: a relay delivers it, or did two minutes ago: try again when it has ended"
        )
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
