"""Result reuse for trials with equal settings: one of them is trained, and the others take its result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from sqlalchemy import Connection, Row, bindparam, func, insert, select

from storage.records.keys import of_study, trial_key
from storage.records.tables import artifacts, attempts, metrics, rungs, trials
from storage.tracking.outbox import ArtifactMessage, MetricRow, TrialEnd
from storage.trials import optuna_rows
from storage.trials.finalize import TrialResult

DUPLICATE_TAG = "same_as"
"""Tag that names the original trial of a reused result."""


@dataclass(frozen=True)
class OriginalTrial:
    """The trial with equal settings whose result the duplicates take.

    Attributes
    ----------
    state
        State of the trial; a paused one counts as pruned, since it may never be resumed.
    value
        Best validation MAE, kcal/mol, once it has ended.
    epochs
        Number of epochs that it has trained.
    """

    number: int
    state: Literal["running", "complete", "pruned"]
    value: float | None
    epochs: int


def find(connection: Connection, trial: Row[Any]) -> OriginalTrial | None:
    """The trial whose result this one (a row of ``anitune_trials``) takes, if there is one."""
    if trial.settings is None or _epochs(connection, trial.study_id, trial.number):
        return None  # this trial is trained itself
    query = (
        select(trials)
        .where(
            trials.c.study_id == trial.study_id,
            trials.c.settings == trial.settings,
            trials.c.number != trial.number,
            trials.c.same_as.is_(None),
            trials.c.state.in_(("running", "paused", "complete", "pruned")),
        )
        .order_by(trials.c.state == "running", trials.c.number)
        .limit(1)
    )
    found = connection.execute(query).first()
    if found is None:
        return None
    state: Any = "pruned" if found.state == "paused" else found.state
    return OriginalTrial(found.number, state, found.value, _epochs(connection, trial.study_id, found.number))


def exists(connection: Connection, trial: Row[Any]) -> bool:
    """Whether another trial has the settings of this one (a row of ``anitune_trials``)."""
    this = trial_key(trial.study_id, trial.number) | {"settings": trial.settings}
    return connection.execute(_OF_EQUAL_SETTINGS, this).first() is not None


def history(connection: Connection, study_id: int, number: int) -> list[MetricRow]:
    """All metrics of a trial, with the times at which they were measured."""
    query = (
        select(metrics)
        .where(metrics.c.study_id == study_id, metrics.c.number == number)
        .order_by(metrics.c.step, metrics.c.key)
    )
    return [
        MetricRow(row.key, row.step, math.nan if row.value is None else row.value, row.time_ms)
        for row in connection.execute(query)
    ]


def copy_files_and_rungs(
    connection: Connection, trial: Row[Any], original: OriginalTrial, attempt: int
) -> list[ArtifactMessage]:
    """Copy the rungs and artifacts of the original to a trial; return the messages for MLflow."""
    source = _trial(connection, trial.study_id, original.number)
    optuna_rows.copy_reports(connection, source.optuna_trial_id, trial.optuna_trial_id)
    for table, columns, changed in (
        (rungs, ("step", "value", "stop"), {"earlier_marks": []}),
        (artifacts, ("path", "position", "digest", "size"), {"attempt": attempt}),
    ):
        copied = select(*(table.c[name] for name in columns)).where(*_is(table, source))
        if values := [
            {"study_id": trial.study_id, "number": trial.number, **row._mapping, **changed}
            for row in connection.execute(copied)
        ]:
            connection.execute(insert(table), values)
    query = select(artifacts).where(*_is(artifacts, trial)).order_by(artifacts.c.position)
    return [ArtifactMessage(row.path, row.digest, row.size) for row in connection.execute(query)]


def result(connection: Connection, trial: Row[Any], original: OriginalTrial) -> TrialResult:
    """The result of a duplicate: that of its original, with a tag that names the original."""
    source = _trial(connection, trial.study_id, original.number)
    return TrialResult(
        cast(TrialEnd, original.state),
        source.value,
        source.reason,
        source.summary,
        {DUPLICATE_TAG: f"trial {original.number}"},
    )


def _trial(connection: Connection, study_id: int, number: int) -> Row[Any]:
    query = select(trials).where(trials.c.study_id == study_id, trials.c.number == number)
    return connection.execute(query).one()


def _epochs(connection: Connection, study_id: int, number: int) -> int:
    reached = func.coalesce(func.max(attempts.c.last_epoch), 0)
    query = select(reached).where(attempts.c.study_id == study_id, attempts.c.number == number)
    return int(connection.execute(query).scalar_one())


def _is(table: Any, trial: Row[Any]) -> tuple[Any, ...]:
    return (table.c.study_id == trial.study_id, table.c.number == trial.number)


_OF_EQUAL_SETTINGS: Final = (
    select(trials.c.number)
    .where(
        of_study(trials.c.study_id),
        trials.c.settings == bindparam("settings"),
        trials.c.number != bindparam("of_number"),
    )
    .limit(1)
)
