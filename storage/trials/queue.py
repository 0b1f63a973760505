"""Who trains what: the budget is spent, and a lease given, in one transaction under the lock of the study."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    ScalarSelect,
    Select,
    and_,
    bindparam,
    func,
    insert,
    select,
    update,
)

from storage.database import Database
from storage.lifecycle import locked_row
from storage.records.keys import of_study, study_key
from storage.records.tables import attempts, now, seconds_spent, studies, trials
from storage.studies import Study
from storage.tracking.outbox import TrialTagsMessage, enqueue
from storage.trials import finalize, optuna_rows, paused
from storage.trials.paused import Promotion, no_promotion

LEASE_SECONDS = float(os.environ.get("ANITUNE_LEASE_SECONDS", "60"))
"""A worker that shows no sign of life for so long loses its trial, s. The variable is for tests of that."""

CRASHES_ALLOWED = 3
"""Workers in a row that die, or lose their device, before an epoch of a trial ends, until it is given up."""

LOST_HEARTBEATS_ALLOWED = 10
"""As many, if also those are counted whose whole machine was lost: the trial might be what takes it down."""

_CRASHES = ("expired", "crashed")
"""Outcomes of an attempt that may be the trial's fault."""

_TOGETHER_SECONDS = LEASE_SECONDS / 4
"""Workers of one machine that have shown no sign of life since so nearly the same time were lost with it."""


@dataclass(frozen=True)
class WorkerInfo:
    """The process that works on a trial.

    Attributes
    ----------
    device
        As ``cuda:0 NVIDIA H200``; of an attempt, where its training is.
    precision
        Of the products in the training of an attempt; None: not known yet, or older than this field.
    """

    name: str
    host: str
    pid: int
    device: str
    versions: dict[str, str]
    precision: str | None = None


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
    asked_for
        Parameters that somebody wants it to have, by name, while no configuration was proposed yet; as
        they stand in Optuna's queue, where nobody has checked them.
    ran_on
        Device and precision of each earlier attempt that has recorded them.
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
    asked_for: Any = field(default_factory=dict)
    ran_on: tuple[tuple[str, str], ...] = ()


def claim_trial(
    database: Database,
    study: Study,
    worker: WorkerInfo,
    lease_seconds: float = LEASE_SECONDS,
    *,
    in_hand: Collection[int] = (),
    early: Collection[int] = (),
    promotion: Promotion = no_promotion,
) -> Claim | None:
    """Claim the next trial of the study; None if there is none to begin or to go on with now.

    Only an open study gives trials. First comes one whose worker died or handed it back; then a paused one
    that is promoted; then, while the budget lasts, one that waits in Optuna's queue, or else a new one. When
    none can come any more, those that are still paused end as pruned.

    The budget limits what begins, and a trial that has begun may exceed it. Once the hours or epochs are
    spent, a paused trial is promoted only where no other one is, or will be, complete.

    Parameters
    ----------
    in_hand
        Numbers of the trials that this worker trains at present. It takes none of them from itself, and
        beside them none on its last chance: what kills the worker might be one of them.
    early
        Numbers of trials that it is too early to go on with.
    promotion
        Chooses among the paused trials.

    Raises
    ------
    StudyNotFoundError
        if the study was deleted.
    """
    with database.writing() as connection:
        claim = None
        if locked_row(connection, study).state == "open":
            claim = _take_over(connection, study, worker, lease_seconds, in_hand, early)
            if claim is None:
                claim = _promote_or_begin(connection, study, worker, lease_seconds, in_hand, promotion)
        # Of workers that died before they told Optuna, and trials that were given up just now.
        pending = finalize.pending_sync(connection, study, leave=in_hand)
    for number in pending:
        finalize.sync_to_optuna(database, study, number)
    return claim


def open_trials(database: Database, study: Study) -> set[int]:
    """Trials that have begun and not ended, on whatever machine; one of them may still become claimable."""
    query = select(trials.c.number).where(
        trials.c.study_id == study.id,
        trials.c.state.in_(("running", "paused")),
        trials.c.told.is_(False),
    )
    with database.reading() as connection:
        return set(connection.execute(query).scalars())


def worker_tags(worker: WorkerInfo, attempt: int) -> dict[str, str]:
    """What the tracking server shows of the worker of an attempt."""
    return {
        "attempt": str(attempt),
        "worker": worker.name,
        "host": worker.host,
        "device": worker.device,
        **({"precision": worker.precision} if worker.precision is not None else {}),
        **{f"version.{package}": version for package, version in worker.versions.items()},
    }


def next_study(database: Database, leave: Collection[str] = ()) -> str | None:
    """Name of the open study that is the first to have a trial to claim: by priority, then by age.

    Parameters
    ----------
    leave
        Names of studies that are not meant.
    """
    query = (
        select(studies.c.name)
        .where(
            studies.c.state == "open",
            studies.c.name.not_in(leave),
            # While others train, nobody knows which of the paused trials is the next.
            _abandoned().exists()
            | (_in_state("paused").exists() & ~_in_state("running").exists())
            | _within_budget(),
        )
        .order_by(studies.c.priority.desc(), studies.c.id)
        .limit(1)
    )
    with database.reading() as connection:
        return connection.scalar(query)


def _promote_or_begin(
    connection: Connection,
    study: Study,
    worker: WorkerInfo,
    lease_seconds: float,
    in_hand: Collection[int],
    promotion: Promotion,
) -> Claim | None:
    this = study_key(study.id)
    may_begin = connection.execute(_WITHIN_BUDGET, this).first() is not None
    while paused.any_paused(connection, study.id):
        spent = not may_begin and connection.execute(_WITHIN_EFFORT, this).first() is None
        if spent and connection.execute(_COMPLETE_OR_RUNNING, this).first() is not None:
            break
        # One that was paused just now may still be in the hand of another slot of this worker.
        results = [
            replace(result, paused=result.paused and result.number not in in_hand)
            for result in paused.results_in(connection, study.id)
        ]
        number = promotion(results, may_begin)
        if number is None:
            break
        trial = paused.resume(connection, study, number)
        if trial is not None:
            return _go_on(connection, study, trial, worker, lease_seconds)
    if may_begin:
        return _begin(connection, study, worker, lease_seconds)
    if not in_hand and connection.execute(_RUNNING, this).first() is None:
        paused.end_surplus(connection, study, keep=0)
    return None


def _within_budget() -> ColumnElement[bool]:
    """Whether a row of ``anitune_studies`` has not spent its budget."""
    begun = select(func.count()).where(trials.c.study_id == studies.c.id).correlate(studies)
    return and_(
        studies.c.budget_trials.is_(None) | (begun.scalar_subquery() < studies.c.budget_trials),
        _within_effort(),
    )


def _within_effort() -> ColumnElement[bool]:
    """Whether a row of ``anitune_studies`` has not spent its hours and epochs."""

    def sum_of(spent: ColumnElement[Any]) -> ScalarSelect[Any]:
        total = select(func.coalesce(func.sum(spent), 0)).where(attempts.c.study_id == studies.c.id)
        return total.correlate(studies).scalar_subquery()

    return and_(
        studies.c.budget_seconds.is_(None) | (sum_of(seconds_spent()) < studies.c.budget_seconds),
        studies.c.budget_epochs.is_(None) | (sum_of(attempts.c.epochs) < studies.c.budget_epochs),
    )


def _abandoned() -> Select[Any]:
    """Trials of a row of ``anitune_studies`` that nobody works on, and that may be gone on with."""
    return (
        select(trials, attempts.c.ended_at.label("attempt_ended_at"))
        .join(
            attempts,
            (attempts.c.study_id == trials.c.study_id)
            & (attempts.c.number == trials.c.number)
            & (attempts.c.attempt == trials.c.attempt),
        )
        .where(
            trials.c.study_id == studies.c.id,
            trials.c.state == "running",
            trials.c.told.is_(False),
            attempts.c.ended_at.is_not(None) | (attempts.c.lease_until < now()),
            ~_waits_for_original(),
        )
    )


def _in_state(state: str) -> Select[Any]:
    """Trials of a row of ``anitune_studies`` that are running, or paused."""
    return select(trials.c.number).where(
        trials.c.study_id == studies.c.id, trials.c.state == state, trials.c.told.is_(False)
    )


def _begin(connection: Connection, study: Study, worker: WorkerInfo, lease_seconds: float) -> Claim:
    number, optuna_trial_id, asked_for = optuna_rows.begin_trial(connection, study.optuna_study_id)
    connection.execute(
        _NEW_TRIAL,
        {
            "study_id": study.id,
            "number": number,
            "optuna_trial_id": optuna_trial_id,
            "state": "running",
            "attempt": 1,
            "summary": {},
            "tags": {},
            "told": False,
        },
    )
    token = _begin_attempt(connection, study, number, 1, worker, lease_seconds)
    return Claim(
        number,
        optuna_trial_id,
        1,
        token,
        worker,
        lease_seconds,
        config=None,
        params=None,
        asked_for=asked_for,
    )


def _take_over(
    connection: Connection,
    study: Study,
    worker: WorkerInfo,
    lease_seconds: float,
    in_hand: Collection[int],
    early: Collection[int],
) -> Claim | None:
    leave = {*in_hand, *early}
    while (
        trial := connection.execute(_FIRST_ABANDONED, {**study_key(study.id), "leave": list(leave)}).first()
    ) is not None:
        if trial.attempt_ended_at is None:
            _end_expired_attempt(connection, trial)
        crashes = _crashes(connection, trial)
        crashed = sum(not _lost_with_its_machine(connection, row) for row in crashes)
        lost_heartbeats = len(crashes)
        if crashed >= CRASHES_ALLOWED or lost_heartbeats >= LOST_HEARTBEATS_ALLOWED:
            result = finalize.TrialResult(state="failed", reason=_given_up(crashes))
            finalize.record(connection, trial, result)
            continue
        last_chance = crashed == CRASHES_ALLOWED - 1 or lost_heartbeats == LOST_HEARTBEATS_ALLOWED - 1
        if last_chance and in_hand:
            leave.add(trial.number)
            continue
        return _go_on(connection, study, trial, worker, lease_seconds, last_chance)
    return None


def _go_on(
    connection: Connection,
    study: Study,
    trial: Row[Any],
    worker: WorkerInfo,
    lease_seconds: float,
    last_chance: bool = False,
) -> Claim:
    """Begin another attempt at a trial that nobody works on."""
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
        asked_for=optuna_rows.asked_for(connection, trial.optuna_trial_id),
        ran_on=_ran_on(connection, trial),
    )


def _ran_on(connection: Connection, trial: Row[Any]) -> tuple[tuple[str, str], ...]:
    query = (
        select(attempts.c.worker)
        .where(attempts.c.study_id == trial.study_id, attempts.c.number == trial.number)
        .order_by(attempts.c.attempt)
    )
    workers = connection.execute(query).scalars()
    return tuple((each["device"], each["precision"]) for each in workers if each.get("precision"))


def _waits_for_original() -> ColumnElement[bool]:
    original = trials.alias("original")
    return (
        select(original.c.number)
        .where(
            original.c.study_id == trials.c.study_id,
            original.c.number == trials.c.same_as,
            original.c.state == "running",
        )
        .exists()
    )


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
        _NEW_ATTEMPT,
        {
            "study_id": study.id,
            "number": number,
            "attempt": attempt,
            "token": token,
            "worker": asdict(worker),
            "lease_seconds": lease_seconds,
            "epochs": 0,
            "last_epoch": 0,
        },
    )
    return token


def _end_expired_attempt(connection: Connection, trial: Row[Any]) -> None:
    connection.execute(
        update(attempts)
        .where(
            attempts.c.study_id == trial.study_id,
            attempts.c.number == trial.number,
            attempts.c.attempt == trial.attempt,
        )
        .values(ended_at=attempts.c.renewed_at, outcome="expired", reason="its worker fell silent")
    )


def _crashes(connection: Connection, trial: Row[Any]) -> Sequence[Row[Any]]:
    """The last attempts in a row that ended before an epoch of the trial, with their worker or its device.

    It must not go round forever. Attempts that were handed back, as on preemption, say nothing of it.
    """
    query = (
        select(attempts)
        .where(
            attempts.c.study_id == trial.study_id,
            attempts.c.number == trial.number,
            attempts.c.outcome != "handed_back",
        )
        .order_by(attempts.c.attempt.desc())
        .limit(LOST_HEARTBEATS_ALLOWED)
    )
    last = connection.execute(query).all()
    return list(itertools.takewhile(lambda row: row.outcome in _CRASHES and row.epochs == 0, last))


def _given_up(crashes: Sequence[Row[Any]]) -> str:
    """Why a trial is given up, after these crashes, the last one first."""
    reason = f"{len(crashes)} workers in a row died before they finished an epoch"
    said = next((row.reason for row in crashes if row.outcome == "crashed"), None)
    return reason if said is None else f"{said} ({reason}, or lost their device)"


def _lost_with_its_machine(connection: Connection, attempt: Row[Any]) -> bool:
    """Whether another worker of the machine fell silent, or lost its device, together with that attempt's."""
    too = attempts.c.outcome == attempt.outcome
    if attempt.outcome == "expired":
        too |= attempts.c.ended_at.is_(None)
    query = select(attempts.c.worker).where(
        attempts.c.renewed_at.between(
            attempt.renewed_at - _TOGETHER_SECONDS, attempt.renewed_at + _TOGETHER_SECONDS
        ),
        too,
    )
    return any(
        worker["host"] == attempt.worker["host"] and worker["pid"] != attempt.worker["pid"]
        for worker in connection.execute(query).scalars()
    )


def _is(trial: Row[Any]) -> tuple[Any, ...]:
    return (trials.c.study_id == trial.study_id, trials.c.number == trial.number)


_WITHIN_BUDGET: Final = select(studies.c.id).where(of_study(), _within_budget())
_WITHIN_EFFORT: Final = select(studies.c.id).where(of_study(), _within_effort())
_RUNNING: Final = (
    select(trials.c.number)
    .where(of_study(trials.c.study_id), trials.c.state == "running", trials.c.told.is_(False))
    .limit(1)
)
_COMPLETE_OR_RUNNING: Final = (
    select(trials.c.number)
    .where(of_study(trials.c.study_id), trials.c.state.in_(("complete", "running")))
    .limit(1)
)
_FIRST_ABANDONED: Final = (
    _abandoned()
    .where(of_study(), trials.c.number.not_in(bindparam("leave", expanding=True)))
    .order_by(trials.c.number)
    .limit(1)
    # A row that its worker has locked is about to be renewed or ended.
    .with_for_update(of=attempts, skip_locked=True)
)
_NEW_TRIAL: Final = insert(trials).values(created_at=now())
_NEW_ATTEMPT: Final = insert(attempts).values(
    started_at=now(), renewed_at=now(), lease_until=now() + bindparam("lease_seconds")
)
