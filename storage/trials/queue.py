"""Who trains what: the budget is spent, and a lease given, in one transaction under the lock of the study."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from storage.database import Database
from storage.records.tables import attempts, now, seconds_spent, studies, trials
from storage.studies import Study, budget_of
from storage.tracking.outbox import TrialTagsMessage, enqueue
from storage.trials import endings, optuna_rows

LEASE_SECONDS = float(os.environ.get("ANITUNE_LEASE_SECONDS", "60"))
"""A worker that shows no sign of life for so long loses its trial, s. The variable is for tests of that."""

DEATHS_ALLOWED = 3
"""Attempts in a row that end in silence before their first epoch, until the trial is given up."""


@dataclass(frozen=True)
class WorkerInfo:
    """The process that works on a trial."""

    name: str
    host: str
    pid: int
    device: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Claim:
    """A trial that this worker, and no other, may work on while it renews the lease.

    Attributes
    ----------
    number, optuna_trial_id
        Of the trial, in Optuna too.
    attempt
        Counts the workers that tried, from 1.
    token
        Proves the claim to the database.
    config, params
        As an earlier attempt recorded them; None if no configuration was proposed yet.
    lease_seconds
        How long the claim lasts without a renewal, s.
    last_chance
        Whether the trial is given up if this attempt, too, dies before its first epoch.
    """

    number: int
    optuna_trial_id: int
    attempt: int
    token: str
    worker: WorkerInfo
    lease_seconds: float
    config: dict[str, Any] | None
    params: dict[str, Any] | None
    last_chance: bool = False


def claim_trial(
    database: Database,
    study: Study,
    worker: WorkerInfo,
    lease_seconds: float = LEASE_SECONDS,
    *,
    in_hand: Collection[int] = (),
    early: Collection[int] = (),
) -> Claim | None:
    """Claim the next trial of the study; None if there is none to begin or to go on with now.

    First comes a trial whose worker died or handed it back; then, while the budget lasts, one that waits in
    Optuna's queue, or else a new one.

    Parameters
    ----------
    in_hand
        Numbers of the trials that this worker trains at present. It takes none of them from itself, and
        beside them none on its last chance: what kills the worker might be one of them.
    early
        Numbers of trials that it is too early to go on with.
    """
    endings.settle_all(database, study, leave=in_hand)
    with database.writing() as connection:
        query = select(studies).where(studies.c.id == study.id).with_for_update()
        row = connection.execute(query).one()
        claim = _take_over(connection, study, worker, lease_seconds, in_hand, early)
        if claim is None and _budget_lasts(connection, row):
            claim = _begin(connection, study, worker, lease_seconds)
    if claim is None:
        endings.settle_all(database, study, leave=in_hand)  # trials given up just now
    return claim


def open_trials(database: Database, study: Study) -> set[int]:
    """Trials that have begun and not ended, on whatever machine; one of them may still become claimable."""
    query = select(trials.c.number).where(trials.c.study_id == study.id, trials.c.state == "running")
    with database.reading() as connection:
        return set(connection.execute(query).scalars())


def worker_tags(worker: WorkerInfo, attempt: int) -> dict[str, str]:
    """What the tracking server shows of the worker of an attempt."""
    return {
        "attempt": str(attempt),
        "worker": worker.name,
        "host": worker.host,
        "device": worker.device,
        **{f"version.{package}": version for package, version in worker.versions.items()},
    }


def _budget_lasts(connection: Connection, row: Row[Any]) -> bool:
    budget = budget_of(row)
    begun = connection.execute(select(func.count()).where(trials.c.study_id == row.id)).scalar_one()
    spent = select(
        func.coalesce(func.sum(seconds_spent()), 0.0).label("seconds"),
        func.coalesce(func.sum(attempts.c.epochs), 0).label("epochs"),
    ).where(attempts.c.study_id == row.id)
    used = connection.execute(spent).one()
    return (
        (budget.trials is None or begun < budget.trials)
        and (budget.seconds is None or used.seconds < budget.seconds)
        and (budget.epochs is None or used.epochs < budget.epochs)
    )


def _begin(connection: Connection, study: Study, worker: WorkerInfo, lease_seconds: float) -> Claim:
    number, optuna_trial_id = optuna_rows.begin_trial(connection, study.optuna_study_id)
    connection.execute(
        insert(trials).values(
            study_id=study.id,
            number=number,
            optuna_trial_id=optuna_trial_id,
            state="running",
            attempt=1,
            summary={},
            tags={},
            created_at=now(),
            told=False,
        )
    )
    token = _begin_attempt(connection, study, number, 1, worker, lease_seconds)
    return Claim(number, optuna_trial_id, 1, token, worker, lease_seconds, config=None, params=None)


def _take_over(
    connection: Connection,
    study: Study,
    worker: WorkerInfo,
    lease_seconds: float,
    in_hand: Collection[int],
    early: Collection[int],
) -> Claim | None:
    leave = {*in_hand, *early}
    abandoned = (
        select(trials, attempts.c.ended_at.label("attempt_ended_at"))
        .join(
            attempts,
            (attempts.c.study_id == trials.c.study_id)
            & (attempts.c.number == trials.c.number)
            & (attempts.c.attempt == trials.c.attempt),
        )
        .where(
            trials.c.study_id == study.id,
            trials.c.state == "running",
            attempts.c.ended_at.is_not(None) | (attempts.c.lease_until < now()),
        )
        .order_by(trials.c.number)
        .limit(1)
        # A row that its worker has locked is about to be renewed or ended.
        .with_for_update(of=attempts, skip_locked=True)
    )
    while (trial := connection.execute(abandoned.where(trials.c.number.not_in(leave))).first()) is not None:
        if trial.attempt_ended_at is None:
            _end_silent_attempt(connection, trial)
        deaths = _deaths(connection, trial)
        if deaths == DEATHS_ALLOWED:
            endings.record(
                connection,
                trial,
                endings.Ending(
                    state="failed",
                    reason=f"{DEATHS_ALLOWED} workers in a row died before they finished an epoch",
                ),
            )
            continue
        last_chance = deaths == DEATHS_ALLOWED - 1
        if last_chance and in_hand:
            leave.add(trial.number)
            continue
        attempt = trial.attempt + 1
        connection.execute(update(trials).where(*_is(trial)).values(attempt=attempt))
        token = _begin_attempt(connection, study, trial.number, attempt, worker, lease_seconds)
        if trial.config is not None:
            message = TrialTagsMessage(tags=worker_tags(worker, attempt))
            enqueue(connection, study.id, trial.number, [message])
        return Claim(
            trial.number,
            trial.optuna_trial_id,
            attempt,
            token,
            worker,
            lease_seconds,
            config=trial.config,
            params=trial.params,
            last_chance=last_chance,
        )
    return None


def _begin_attempt(
    connection: Connection,
    study: Study,
    number: int,
    attempt: int,
    worker: WorkerInfo,
    lease_seconds: float,
) -> str:
    token = uuid.uuid4().hex
    connection.execute(
        insert(attempts).values(
            study_id=study.id,
            number=number,
            attempt=attempt,
            token=token,
            worker=asdict(worker),
            started_at=now(),
            renewed_at=now(),
            lease_until=now() + lease_seconds,
            epochs=0,
            last_epoch=0,
        )
    )
    return token


def _end_silent_attempt(connection: Connection, trial: Row[Any]) -> None:
    connection.execute(
        update(attempts)
        .where(
            attempts.c.study_id == trial.study_id,
            attempts.c.number == trial.number,
            attempts.c.attempt == trial.attempt,
        )
        .values(ended_at=attempts.c.renewed_at, outcome="expired", reason="its worker fell silent")
    )


def _deaths(connection: Connection, trial: Row[Any]) -> int:
    """How often in a row the trial was there when a worker died (out of memory, a driver) at its beginning.

    At most DEATHS_ALLOWED: it must not go round forever.
    """
    query = (
        select(attempts.c.outcome, attempts.c.epochs)
        .where(attempts.c.study_id == trial.study_id, attempts.c.number == trial.number)
        .order_by(attempts.c.attempt.desc())
        .limit(DEATHS_ALLOWED)
    )
    last = connection.execute(query).all()
    return len(list(itertools.takewhile(lambda row: row.outcome == "expired" and row.epochs == 0, last)))


def _is(trial: Row[Any]) -> tuple[Any, ...]:
    return (trials.c.study_id == trial.study_id, trials.c.number == trial.number)
