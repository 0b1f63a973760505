"""Claims of trials: one transaction under the lock of the study spends the budget and grants the lease."""

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
from storage.lifecycle import begun_trials, locked_row
from storage.records.keys import of_study, study_key
from storage.records.tables import attempts, now, of_latest_attempt, seconds_spent, studies, trials
from storage.studies import Study
from storage.tracking.outbox import TrialTagsMessage, enqueue
from storage.trials import finalize, optuna_rows, paused
from storage.trials.paused import Promotion, no_promotion

LEASE_SECONDS = float(os.environ.get("ANITUNE_LEASE_SECONDS", "60"))
"""A worker that sends no heartbeat for this time loses its trial, s. The variable is for tests."""

CRASHES_ALLOWED = 3
"""A trial is given up after this many workers in a row die, or lose their device, before an epoch ends."""

LOST_HEARTBEATS_ALLOWED = 10
"""The same limit including workers lost with their machine, which the trial may have taken down."""

_CRASHES = ("expired", "crashed")
"""Outcomes of an attempt that the trial may have caused."""

_TOGETHER_SECONDS = LEASE_SECONDS / 4
"""Workers of one machine whose last heartbeats are at most this far apart, s, were lost with the machine."""


@dataclass(frozen=True)
class WorkerInfo:
    """The process that works on a trial.

    Attributes
    ----------
    device
        Such as ``cuda:0 NVIDIA H200``; for an attempt, the device of its training.
    precision
        Precision of the matrix products in the training of an attempt; None if not known yet, or if the
        attempt is older than this field.
    """

    name: str
    host: str
    pid: int
    device: str
    versions: dict[str, str]
    precision: str | None = None


@dataclass(frozen=True)
class Claim:
    """A trial that only this worker may work on while it renews the lease.

    Attributes
    ----------
    number, optuna_trial_id
        Number of the trial, here and in Optuna, and its id in Optuna.
    attempt
        Number of the attempt, from 1.
    token
        Fencing token, which proves the claim to the database.
    config, params
        The configuration that an earlier attempt recorded; None if none was proposed yet.
    lease_seconds
        How long the claim lasts without a renewal, s.
    last_chance
        Whether the trial is given up if this attempt also dies before its first epoch.
    asked_for
        Enqueued configuration, by parameter name, of a trial without a proposed one; it comes from Optuna's
        queue without validation.
    ran_on
        Device and precision of each earlier attempt that has recorded them.
    replicate_of
        Number of the trial whose configuration this one trains with another seed; None: it has its own.
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
    replicate_of: int | None = None


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
    """Claim the next trial of the study; None if there is none to begin or to continue now.

    Only an open study has trials to claim. A claim takes first a trial whose worker died or handed it back;
    then a promoted paused trial; then, while the budget lasts, a trial that waits in Optuna's queue, or else
    a new one. When no trial can begin or resume any more, those that are still paused end as pruned.

    The budget limits which trials begin; a begun trial may exceed it. Once the hours or epochs are spent, a
    paused trial is promoted only if no other one is complete or running.

    Parameters
    ----------
    in_hand
        Numbers of the trials that this worker trains now. It does not claim them again, and it claims no
        trial on its last chance beside them, since any of them could kill the worker.
    early
        Numbers of trials that must not be continued yet.
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
        # These are trials whose workers died before the sync, and trials that were just given up.
        pending = finalize.pending_sync(connection, study, leave=in_hand)
    for number in pending:
        finalize.sync_to_optuna(database, study, number)
    return claim


def may_choose_finalists(database: Database, study: Study) -> bool:
    """Whether nothing else is left to train, and the finalists were not chosen from all trials yet."""
    with database.reading() as connection:
        return connection.execute(_MAY_CHOOSE_FINALISTS, study_key(study.id)).first() is not None


def add_replicates(
    database: Database, study: Study, worker: WorkerInfo, of: Sequence[int], among: int
) -> bool:
    """Record that the finalists were chosen, and add the trials that they lack.

    These train the configurations of finalists with other seeds. They come on top of the limits of the study,
    and any worker may claim them. After them the finalists are chosen again.

    Parameters
    ----------
    of
        Number of the original of each new trial.
    among
        Number of ended trials from which the finalists were chosen.

    Returns
    -------
    Whether there is a new trial: not if another one runs, is paused, may begin, or has been added meanwhile.
    """
    with database.writing() as connection:
        row = locked_row(connection, study)
        this = study_key(study.id)
        if (
            connection.execute(_MAY_CHOOSE_FINALISTS, this).first() is None
            or connection.execute(_BEGUN, this).scalar_one() != among
        ):
            return False
        for original in of:
            number, optuna_trial_id = optuna_rows.new_trial(connection, study.optuna_study_id)
            _record_new_trial(connection, study, number, optuna_trial_id, replicate_of=original)
            _begin_attempt(connection, study, number, 1, worker, lease_seconds=0)
            # No worker has it yet: it is claimed like a trial that was handed back.
            connection.execute(
                update(attempts)
                .where(attempts.c.study_id == study.id, attempts.c.number == number)
                .values(ended_at=now(), outcome="handed_back", reason=f"another seed of trial {original}")
            )
        more = {} if row.budget_trials is None else {"budget_trials": row.budget_trials + len(of)}
        connection.execute(
            update(studies).where(studies.c.id == study.id).values(finalists_among=among, **more)
        )
    return bool(of)


def open_trials(database: Database, study: Study) -> set[int]:
    """Trials that have begun and not ended, on any machine; each may still become claimable."""
    query = select(trials.c.number).where(
        trials.c.study_id == study.id,
        trials.c.state.in_(("running", "paused")),
        trials.c.told.is_(False),
    )
    with database.reading() as connection:
        return set(connection.execute(query).scalars())


def worker_tags(worker: WorkerInfo, attempt: int) -> dict[str, str]:
    """Tags by which MLflow shows the worker of an attempt."""
    return {
        "attempt": str(attempt),
        "worker": worker.name,
        "host": worker.host,
        "device": worker.device,
        **({"precision": worker.precision} if worker.precision is not None else {}),
        **{f"version.{package}": version for package, version in worker.versions.items()},
    }


def next_study(database: Database, leave: Collection[str] = ()) -> str | None:
    """Name of the first open study with work for a worker now, by priority, then by age.

    There is work if there is a trial to claim, or finalists are to be chosen.

    Parameters
    ----------
    leave
        Names of studies to leave out.
    """
    query = (
        select(studies.c.name)
        .where(
            studies.c.state == "open",
            studies.c.name.not_in(leave),
            # While other trials train, the next paused trial to promote is not known.
            _abandoned().exists()
            | (_in_state("paused").exists() & ~_in_state("running").exists())
            | _within_budget()
            | _may_choose_finalists(),
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
        # A trial that was just paused may still be in use by this worker.
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
    """Condition that a row of ``anitune_studies`` has budget left."""
    return and_(
        studies.c.budget_trials.is_(None) | (begun_trials() < studies.c.budget_trials),
        _within_effort(),
    )


def _may_choose_finalists() -> ColumnElement[bool]:
    """Condition that finalists of a row of ``anitune_studies`` are to be chosen, as nothing else is left."""
    return and_(
        studies.c.state == "open",
        studies.c.finalists_among != begun_trials(),
        ~_in_state("running").exists(),
        ~_in_state("paused").exists(),
        ~_within_budget(),
    )


def _within_effort() -> ColumnElement[bool]:
    """Condition that a row of ``anitune_studies`` has hours and epochs left."""

    def sum_of(spent: ColumnElement[Any]) -> ScalarSelect[Any]:
        total = select(func.coalesce(func.sum(spent), 0)).where(attempts.c.study_id == studies.c.id)
        return total.correlate(studies).scalar_subquery()

    return and_(
        studies.c.budget_seconds.is_(None) | (sum_of(seconds_spent()) < studies.c.budget_seconds),
        studies.c.budget_epochs.is_(None) | (sum_of(attempts.c.epochs) < studies.c.budget_epochs),
    )


def _abandoned() -> Select[Any]:
    """Trials of a row of ``anitune_studies`` that no worker has, and that can be continued."""
    return (
        select(trials, attempts.c.ended_at.label("attempt_ended_at"))
        .join(attempts, of_latest_attempt)
        .where(
            trials.c.study_id == studies.c.id,
            trials.c.state == "running",
            trials.c.told.is_(False),
            attempts.c.ended_at.is_not(None) | (attempts.c.lease_until < now()),
            ~_waits_for_original(),
        )
    )


def _in_state(state: str) -> Select[Any]:
    """Trials of a row of ``anitune_studies`` in a state: running or paused."""
    return select(trials.c.number).where(
        trials.c.study_id == studies.c.id, trials.c.state == state, trials.c.told.is_(False)
    )


def _begin(connection: Connection, study: Study, worker: WorkerInfo, lease_seconds: float) -> Claim:
    number, optuna_trial_id, asked_for = optuna_rows.begin_trial(connection, study.optuna_study_id)
    _record_new_trial(connection, study, number, optuna_trial_id)
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


def _record_new_trial(
    connection: Connection,
    study: Study,
    number: int,
    optuna_trial_id: int,
    replicate_of: int | None = None,
) -> None:
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
            "replicate_of": replicate_of,
        },
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
    """Begin another attempt at a trial that no worker has."""
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
        replicate_of=trial.replicate_of,
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
        .values(
            ended_at=attempts.c.renewed_at, outcome="expired", reason="its worker sent no more heartbeats"
        )
    )


def _crashes(connection: Connection, trial: Row[Any]) -> Sequence[Row[Any]]:
    """The latest consecutive attempts that lost their worker or device before an epoch of the trial ended.

    They are counted so that a trial that kills its workers is not retried forever. Attempts that were handed
    back, for example on preemption, are skipped.
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
    """The reason for which a trial is given up, from its crashes, latest first."""
    reason = f"{len(crashes)} workers in a row died before they finished an epoch"
    said = next((row.reason for row in crashes if row.outcome == "crashed"), None)
    return reason if said is None else f"{said} ({reason}, or lost their device)"


def _lost_with_its_machine(connection: Connection, attempt: Row[Any]) -> bool:
    """Whether another worker of the machine went silent, or lost its device, at the same time."""
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
_MAY_CHOOSE_FINALISTS: Final = select(studies.c.id).where(of_study(), _may_choose_finalists())
_BEGUN: Final = select(begun_trials()).where(of_study())
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
    # Skip locked rows: their workers are about to renew or end them.
    .with_for_update(of=attempts, skip_locked=True)
)
_NEW_TRIAL: Final = insert(trials).values(created_at=now())
_NEW_ATTEMPT: Final = insert(attempts).values(
    started_at=now(), renewed_at=now(), lease_until=now() + bindparam("lease_seconds")
)
