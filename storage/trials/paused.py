"""Paused trials: each waits at a rung until a claim resumes it, or ends as pruned with the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, select, update

from storage.database import Database
from storage.records.keys import of_study, of_trial, study_key, trial_key
from storage.records.tables import rungs, trials
from storage.studies import Study
from storage.tracking.outbox import TrialStateMessage, enqueue
from storage.trials import finalize, optuna_rows
from storage.trials.finalize import TrialResult


@dataclass(frozen=True)
class RungResult:
    """The result of a trial at a rung.

    Attributes
    ----------
    step
        The epoch of the rung.
    value
        Best validation MAE up to that epoch, kcal/mol.
    paused
        Whether the trial waits at this rung.
    """

    number: int
    step: int
    value: float
    paused: bool


Promotion = Callable[[Sequence[RungResult], bool], int | None]
"""Chooses the paused trial to resume next, or None. The arguments are the results at all rungs, and whether
new trials may still begin."""


def no_promotion(results: Sequence[RungResult], may_begin: bool) -> int | None:
    """Resume no trial, for studies whose pruner pauses none."""
    return None


def rung_results(database: Database, study: Study) -> list[RungResult]:
    """Results at all rungs, without those of duplicates and failed trials, which say nothing about others."""
    with database.reading() as connection:
        return results_in(connection, study.id)


def results_in(connection: Connection, study_id: int) -> list[RungResult]:
    """:func:`rung_results`, read in an open transaction."""
    rows = connection.execute(_RESULTS, study_key(study_id))
    return [RungResult(row.number, row.step, row.value, row.paused) for row in rows]


def any_paused(connection: Connection, study_id: int) -> bool:
    """Whether a trial of the study is paused."""
    return connection.execute(_PAUSED.limit(1), study_key(study_id)).first() is not None


def pause(
    connection: Connection, trial: Row[Any], value: float, reason: str, summary: Mapping[str, float]
) -> bool:
    """Pause a trial (a row of ``anitune_trials``) in the open transaction, unless it was ended in Optuna.

    The trial keeps the values with which it would end as pruned.

    Returns
    -------
    Whether it is paused.
    """
    if not optuna_rows.mark_paused(connection, trial.optuna_trial_id, reason):
        return False
    values = {"state": "paused", "value": value, "reason": reason, "summary": dict(summary)}
    connection.execute(_UPDATED, trial_key(trial.study_id, trial.number) | values)
    enqueue(connection, trial.study_id, trial.number, [TrialStateMessage("paused")])
    return True


def resume(connection: Connection, study: Study, number: int) -> Row[Any] | None:
    """Resume a paused trial beyond its rung; return its row of ``anitune_trials``.

    The decision of the rung is changed, so that the training does not stop there again. A trial that was
    ended or deleted in the Optuna dashboard fails instead, and the function returns None.
    """
    this = trial_key(study.id, number)
    trial = connection.execute(_TRIAL, this).one()
    if not optuna_rows.unmark_paused(connection, trial.optuna_trial_id):
        reason = "it was ended or deleted in the Optuna dashboard"
        finalize.record(connection, trial, TrialResult("failed", reason=reason))
        return None
    connection.execute(_GO_ON, this)
    connection.execute(_UPDATED, this | {"state": "running", "value": None, "reason": None, "summary": {}})
    enqueue(connection, study.id, number, [TrialStateMessage("running")])
    return connection.execute(_TRIAL, this).one()


def end_surplus(connection: Connection, study: Study, keep: int) -> None:
    """End the paused trials beyond the ``keep`` most promising as pruned, in the open transaction.

    Trials at later rungs are more promising, and at the same rung those with lower errors. The next claim
    syncs the end to Optuna. The study's row must be locked, so that no claim resumes a trial meanwhile.
    """
    waiting = [result for result in results_in(connection, study.id) if result.paused]
    waiting.sort(key=lambda result: (-result.step, result.value, result.number))
    for result in waiting[keep:]:
        trial = connection.execute(_TRIAL, trial_key(study.id, result.number)).one()
        optuna_rows.unmark_paused(connection, trial.optuna_trial_id)
        finalize.record(connection, trial, TrialResult("pruned", trial.value, trial.reason, trial.summary))


# These statements run for each claim, so they are made once: see storage.records.keys.
_TRIAL: Final = select(trials).where(of_trial(trials))
_UPDATED: Final = update(trials).where(of_trial(trials))
_PAUSED: Final = (
    select(trials)
    .where(of_study(trials.c.study_id), trials.c.told.is_(False), trials.c.state == "paused")
    .order_by(trials.c.number)
)
_GO_ON: Final = update(rungs).where(of_trial(rungs), rungs.c.stop.is_(True)).values(stop=False)
_RESULTS: Final = (
    select(
        rungs.c.number,
        rungs.c.step,
        rungs.c.value,
        ((trials.c.state == "paused") & rungs.c.stop.is_(True)).label("paused"),
    )
    .join(trials, (trials.c.study_id == rungs.c.study_id) & (trials.c.number == rungs.c.number))
    .where(
        rungs.c.study_id == bindparam("of_study"),
        trials.c.same_as.is_(None),
        trials.c.state != "failed",
    )
    .order_by(rungs.c.step, rungs.c.number)
)
