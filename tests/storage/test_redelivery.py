from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import select, update

from storage.database import Database
from storage.errors import RelayBusyError
from storage.records.tables import now, outbox, studies, trials
from storage.studies import Study
from storage.tracking.lease import take_lease
from storage.tracking.redelivery import reset_deliveries
from storage.tracking.relay import undelivered
from storage.trials.queue import WorkerInfo, claim_trial


@pytest.fixture
def told(database: Database, make_study: Callable[..., Study], worker: WorkerInfo) -> Study:
    """A study of which MLflow knows all, or refused it."""
    study = make_study()
    claim_trial(database, study, worker)
    with database.writing() as connection:
        connection.execute(update(outbox).values(delivered_at=now(), rejected="refused"))
        connection.execute(update(trials).values(mlflow_run_id="a"))
        connection.execute(update(studies).values(mlflow_experiment_id="1", mlflow_run_id="b"))
    return study


def test_nothing_counts_as_delivered_any_more(told: Study, database: Database) -> None:
    assert undelivered(told) == 0
    reset_deliveries(told)
    with database.reading() as connection:
        rows = connection.execute(select(outbox.c.delivered_at, outbox.c.rejected)).all()
        study = connection.execute(select(studies.c.mlflow_experiment_id, studies.c.mlflow_run_id)).one()
        runs = connection.scalars(select(trials.c.mlflow_run_id)).all()
    assert rows == [(None, None)] * len(rows) != []
    assert study == (None, None)
    assert runs == [None]
    assert take_lease(told) is not None, "a relay may begin at once"


def test_another_study_is_left_alone(
    told: Study, database: Database, make_study: Callable[..., Study]
) -> None:
    reset_deliveries(make_study("other"))
    assert undelivered(told) == 0


def test_a_relay_at_work_is_not_disturbed(told: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.tracking.lease.RELAY_PATIENCE", 0.0)
    lease = take_lease(told)
    with pytest.raises(RelayBusyError, match="a relay is delivering it"):
        reset_deliveries(told)
    assert undelivered(told) == 0
    assert lease is not None
    lease.release()
